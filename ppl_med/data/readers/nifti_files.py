"""Volumes from NIfTI files: read whole, with their checksum, and compared grid by grid."""

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.data.readers.folders import check_memory, naming_file

_HEADER = 540  # bytes of the longer of the two kinds of header
_DENSEST = 1032  # bytes that one byte of a gzip file can hold
_SLACK = 2**20  # bytes that may follow the voxels
_BLOCK = 2**24


def read_volume(path: Path, kind: type | None = None) -> tuple[Any, NDArray[Any]]:
    """A volume's grid, on the axes right, front, up, and its values (col, row, depth).

    A ``.nii.gz`` is decompressed to its end, where its checksum stands; a plain ``.nii`` has none.
    Axes of one entry after the third are dropped. ``kind`` is the type of the values, None for the
    file's.

    Raises:
        ModuleNotFoundError: nibabel is not installed.
        ValueError: The file is damaged, has other than three axes, or is in other units than mm.
    """
    try:
        import nibabel
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'reading NIfTI files needs nibabel: pip install "ppl-med[data]"'
        ) from error
    with naming_file(path, "NIfTI file"):
        volume = _image(nibabel, path)
        if volume.ndim > 3 and set(volume.shape[3:]) == {1}:
            volume = nibabel.squeeze_image(volume)
        if volume.ndim == 3:
            volume = nibabel.as_closest_canonical(volume)
        values = np.asarray(volume.dataobj, kind)
    if volume.ndim != 3:
        raise ValueError(f"{path} has shape {volume.shape}; expected three axes")
    unit = volume.header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        raise ValueError(f"{path} is in {unit}; expected mm, or volumes would be wrong")
    return volume, values


def check_one_grid(name: str, image: Any, label: Any) -> None:
    """Raise a ValueError that says how the grids of a volume and its label differ."""
    if image.shape == label.shape and np.allclose(image.affine, label.affine, atol=1e-3):
        return
    found = []
    (spacing, other), (origin, start) = (
        ((np.linalg.norm(one.affine[:3, :3], axis=0)) for one in (image, label)),
        (one.affine[:3, 3] for one in (image, label)),
    )
    if not np.allclose(spacing, other, atol=1e-4):
        found.append(_difference("spacing", spacing, other))
    cosines = (image.affine[:3, :3] / spacing * label.affine[:3, :3] / other).sum(0)
    angle = np.degrees(np.arccos(np.clip(cosines, -1, 1))).max()
    if not angle < 0.01:
        found.append(f"direction differs by {angle:.3g} degrees")
    if not np.allclose(origin, start, atol=1e-4):
        found.append(_difference("origin", origin, start))
    raise ValueError(
        f"{name}: image {image.shape} and label {label.shape} do not lie on one grid"
        + "".join(f"; {one}" for one in found)
        + "; resample the label to the image"
    )


def _difference(what: str, one: NDArray[Any], other: NDArray[Any]) -> str:
    shown = [tuple(round(float(value), 4) for value in values) for values in (one, other)]
    return f"{what} differs by {np.abs(one - other).max():.3g} mm, {shown[0]} and {shown[1]}"


def _image(nibabel: Any, path: Path) -> Any:
    size = path.stat().st_size
    packed = path.suffix == ".gz"
    with gzip.open(path) if packed else path.open("rb") as file:
        head = file.read(_HEADER)
        kind = nibabel.Nifti1Image
        if _HEADER in (int.from_bytes(head[:4], order) for order in ("little", "big")):
            kind = nibabel.Nifti2Image
        header = kind.header_class(head[: kind.header_class.sizeof_hdr], check=False)
        shape = header.get_data_shape()
        needed = header.get_data_offset() + math.prod(shape) * header.get_data_dtype().itemsize
        if min(shape, default=-1) < 0 or needed > size * (_DENSEST if packed else 1):
            raise ValueError(f"its header tells of {shape} voxels, more than it can hold")
        check_memory(needed)
        blocks, length = [head], len(head)
        while block := file.read(_BLOCK):  # to the end, where gzip compares the checksum
            length += len(block)
            if length > needed + _SLACK:
                raise ValueError(f"it holds more than the {shape} voxels of its header")
            blocks.append(block)
    return kind.from_bytes(b"".join(blocks))
