"""One picture or volume of any format: what its file says before it is read, and its pixels."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.data.readers.dicom_files import (
    Window,
    dicom_header,
    is_dicom,
    linear_window,
    read_dicom,
)
from ppl_med.data.readers.folders import naming_file
from ppl_med.data.readers.image_files import read_grey, read_rgb
from ppl_med.data.readers.nifti_files import read_volume, volume_header

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")
VOLUMES = (".nii", ".nii.gz")
DICOM = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Args:
        kind: "picture", "volume" or "dicom".
        shape: (row, col) or (depth, row, col).
        spacing: mm along them; NaN where it is not said.
        channels: 1 or 3.
        volumes: Volumes or frames in the file; 1 is what can be read without a choice.
        undecodable: Name of a compression that cannot be decoded, or "".
        columns: What else the file knows: "patient", "site".
    """

    kind: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    channels: int = 1
    volumes: int = 1
    undecodable: str = ""
    columns: dict[str, str] = field(default_factory=dict)


def kind_of(path: Path) -> str:
    """Whether a file is a "picture", a "volume" or "dicom", by its suffix, or by its first bytes.

    Raises:
        ValueError: It is none of them.
    """
    name = path.name.lower()
    for kind, suffixes in (("volume", VOLUMES), ("picture", PICTURES), ("dicom", DICOM)):
        if name.endswith(suffixes):
            return kind
    if is_dicom(path):
        return "dicom"
    known = ", ".join((*PICTURES, *VOLUMES, *DICOM))
    raise ValueError(f"{path} is of no format that is read here: {known}")


def read_header(path: Path) -> Header:
    """What a file of any format says; its pixels are not decoded.

    Raises:
        ModuleNotFoundError: What reads the format is not installed.
        ValueError: The file is damaged or of another format.
    """
    return _HEADERS[kind_of(path)](path)


def read_pixels(
    path: Path, *, colour: bool, window: Window = "file", volume: int | None = None
) -> tuple[NDArray[Any], Any]:
    """Pixels, dims (channel, [depth,] row, col), and the grid of a volume, None of others.

    ``colour`` asks for three channels of pictures; ``volume`` chooses one of a 4D file.
    """
    kind = kind_of(path)
    if kind == "picture":
        return (read_rgb(path) if colour else read_grey(path)[None]), None
    if kind == "dicom":
        pixels = read_dicom(path, window)
        return np.repeat(pixels, 3, axis=0) if colour and len(pixels) == 1 else pixels, None
    grid, values = read_volume(path, np.float32, volume=volume)
    shown = linear_window(values, window) if isinstance(window, tuple) else values
    return shown.T[None].astype(np.float32), grid


def _picture_header(path: Path) -> Header:
    from PIL import Image

    with naming_file(path, "picture"), Image.open(path) as file:
        turned = file.getexif().get(0x0112, 1) >= 5
        rows, cols = (file.width, file.height) if turned else (file.height, file.width)
        grey = file.mode in ("1", "L", "LA", "I", "F") or file.mode.startswith("I;16")
        frames = int(getattr(file, "n_frames", 1))
    return Header("picture", (rows, cols), (np.nan, np.nan), 1 if grey else 3, frames)


def _volume_header(path: Path) -> Header:
    shape, spacing, volumes = volume_header(path)
    return Header("volume", shape, spacing, 1, volumes)


def _dicom_header(path: Path) -> Header:
    found = dicom_header(path)
    known = {"patient": found.patient, "site": found.site}
    return Header(
        "dicom",
        found.shape,
        found.spacing,
        found.channels,
        found.frames,
        found.undecodable,
        {name: value for name, value in known.items() if value},
    )


_HEADERS: dict[str, Callable[[Path], Header]] = {
    "picture": _picture_header,
    "volume": _volume_header,
    "dicom": _dicom_header,
}
