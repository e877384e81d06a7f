"""Films and slices from DICOM files: grey levels as the scanner meant them, and their spacing.

Stored numbers become output values by slope and intercept (or a table), output values become
0..1 by a window, and MONOCHROME1, in which the largest is black, is inverted: PS3.3 of the DICOM
standard, C.7.6.3, C.11.1 and C.11.2.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import is_finite, reject
from ppl_med.data.readers.folders import naming_file

Window = tuple[float, float] | Literal["file"] | None
_LEAST_HEADER = 132  # bytes before the first element


@dataclass(frozen=True)
class DicomHeader:
    """What a file says before its pixels are decoded.

    Args:
        shape: Rows and columns.
        spacing: mm along rows and columns; NaN where it is not said.
        frames: Number of pictures in the file.
        channels: 1 for grey levels, 3 for colours.
        undecodable: Name of a compression that nothing here can decode, or "".
        patient: PatientID, or "".
        series: SeriesInstanceUID, or "".
        site: InstitutionName, or "".
        position: Place along the normal of the slice, mm; NaN where it is not said.
        orientation: The six cosines of the axes of rows and columns; empty where they are not said.
        origin: Place of the middle of the first pixel, mm, LPS+; likewise.
    """

    shape: tuple[int, int]
    spacing: tuple[float, float]
    frames: int
    channels: int
    undecodable: str
    patient: str
    series: str
    site: str
    position: float
    orientation: tuple[float, ...]
    origin: tuple[float, ...]


def check_window(window: Any) -> None:
    """Raise unless a window is "file", None, or a centre and a width above 0."""
    if window is None or (isinstance(window, str) and window == "file"):
        return
    pair = isinstance(window, tuple | list) and len(window) == 2 and all(map(is_finite, window))
    if not pair or window[1] <= 0:
        reject("window", '(centre, width) in the unit of the values, "file" or None', window)


def is_dicom(path: Path) -> bool:
    """Whether a file calls itself DICOM: many have no suffix, or one of their own."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(_LEAST_HEADER)[128:] == b"DICM"


def dicom_header(path: Path) -> DicomHeader:
    """What a file says of its picture; pixels are neither read nor decoded.

    Raises:
        ModuleNotFoundError: pydicom is not installed.
        ValueError: The file is damaged or holds no picture.
    """
    pydicom = _pydicom()
    with naming_file(path, "DICOM file"):
        found = pydicom.dcmread(path, stop_before_pixels=True)
        if "Rows" not in found or "Columns" not in found:
            raise ValueError("it holds no picture (no Rows and Columns)")
        orientation = tuple(map(float, found.get("ImageOrientationPatient") or ()))
        origin = tuple(map(float, found.get("ImagePositionPatient") or ()))
        return DicomHeader(
            shape=(int(found.Rows), int(found.Columns)),
            spacing=_spacing(found),
            frames=int(found.get("NumberOfFrames") or 1),
            channels=int(found.get("SamplesPerPixel") or 1),
            undecodable=_undecodable(pydicom, found),
            patient=str(found.get("PatientID") or "").strip(),
            series=str(found.get("SeriesInstanceUID") or "").strip(),
            site=str(found.get("InstitutionName") or "").strip(),
            position=_position(orientation, origin),
            orientation=orientation,
            origin=origin,
        )


def read_dicom(path: Path, window: Window = "file") -> NDArray[np.float32] | NDArray[np.uint8]:
    """The picture of a file, dims (channel, row, col).

    Args:
        path: The file, with one frame.
        window: (centre, width) in the unit of the values, for CT in HU, "file" for the file's own,
            or all that its bits can hold where it has none: grey levels are then 0..1, black to
            white. None gives the values themselves.

    Returns:
        float32 (1, row, col); uint8 (3, row, col) of a picture in colours.

    Raises:
        ModuleNotFoundError: pydicom is not installed.
        ValueError: The file is damaged, has several frames, or is compressed in a way that needs a
            decoder that is not installed.
    """
    pydicom = _pydicom()
    with naming_file(path, "DICOM file"):
        found = pydicom.dcmread(path)
        missing = _undecodable(pydicom, found)
        frames = int(found.get("NumberOfFrames") or 1)
    if missing:
        raise ValueError(f"{path} is compressed ({missing}), {decoder_fix()}")
    if frames != 1:
        raise ValueError(f"{path} has {frames} frames; expected one picture a file")
    with naming_file(path, "DICOM file"):
        return (
            _colours(pydicom, found)
            if found.get("SamplesPerPixel") == 3
            else _grey(pydicom, found, window)
        )


def linear_window(values: NDArray[Any], window: tuple[float, float]) -> NDArray[Any]:
    """Values as 0..1 by the function LINEAR of PS3.3 C.11.2.1.2.1."""
    centre, width = window
    if width <= 1:
        return (values > centre - 0.5).astype(values.dtype)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def decoder_fix() -> str:
    """What to install where a compression cannot be decoded."""
    return (
        "and no decoder for it is installed: pip install pylibjpeg pylibjpeg-libjpeg "
        "pylibjpeg-openjpeg, or store the files uncompressed"
    )


def _pydicom() -> Any:
    try:
        import pydicom
        import pydicom.pixels
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'reading DICOM files needs pydicom: pip install "ppl-med[data]"'
        ) from error
    return pydicom


def _undecodable(pydicom: Any, found: Any) -> str:
    syntax = found.file_meta.get("TransferSyntaxUID")
    if syntax is None or not syntax.is_compressed:
        return ""
    try:
        if pydicom.pixels.get_decoder(syntax).is_available:
            return ""
    except NotImplementedError:
        pass
    return str(syntax.name)


def _spacing(found: Any) -> tuple[float, float]:
    """PixelSpacing; for films ImagerPixelSpacing, at the detector; only a ratio is no spacing."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        values = found.get(name)
        if values is not None and len(values) == 2:
            return float(values[0]), float(values[1])
    ratio = found.get("PixelAspectRatio")
    if ratio is not None and float(ratio[0]) != float(ratio[1]):
        raise ValueError(
            f"its pixels are not square (PixelAspectRatio {float(ratio[0]):g}:{float(ratio[1]):g}) "
            "and it has no PixelSpacing"
        )
    return float("nan"), float("nan")


def _position(orientation: tuple[float, ...], origin: tuple[float, ...]) -> float:
    if len(orientation) != 6 or len(origin) != 3:
        return float("nan")
    normal = np.cross(orientation[:3], orientation[3:])
    return float(normal @ np.array(origin))


def _colours(pydicom: Any, found: Any) -> NDArray[np.uint8]:
    pixels = found.pixel_array  # pydicom turns YBR into RGB when it decodes
    if pixels.dtype != np.uint8:
        raise ValueError(f"it holds colours of {pixels.dtype}; expected 8 bits")
    kind = str(found.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        raise ValueError("it holds a palette; save it as grey levels or RGB")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _grey(pydicom: Any, found: Any, window: Window) -> NDArray[np.float32]:
    kind = str(found.get("PhotometricInterpretation") or "")
    if not kind:
        raise ValueError(
            "it has no PhotometricInterpretation, which says whether its largest number is black "
            "or white"
        )
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"it is {kind}; expected MONOCHROME1, MONOCHROME2 or three colours")
    stored = found.pixel_array
    values = pydicom.pixels.apply_modality_lut(stored, found).astype(np.float64)
    low, high = _ends(found, values)
    if window is None:
        out = low + high - values if kind == "MONOCHROME1" else values
        return out[None].astype(np.float32)
    shown = _windowed(pydicom, found, values, (low, high), window)
    out = 1 - shown if kind == "MONOCHROME1" else shown
    return out[None].astype(np.float32)


def _ends(found: Any, values: NDArray[np.float64]) -> tuple[float, float]:
    """Least and largest value that the bits of the file can hold, after slope and intercept."""
    if "ModalityLUTSequence" in found:
        return float(values.min()), float(values.max())
    bits, signed = int(found.BitsStored), int(found.get("PixelRepresentation") or 0)
    stored = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope = float(found.get("RescaleSlope", 1) or 1)
    ends = [one * slope + float(found.get("RescaleIntercept", 0) or 0) for one in stored]
    return min(ends), max(ends)


def _windowed(
    pydicom: Any,
    found: Any,
    values: NDArray[np.float64],
    ends: tuple[float, float],
    window: tuple[float, float] | Literal["file"],
) -> NDArray[np.float64]:
    """Values as 0..1 by the functions of PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    kind = str(found.get("VOILUTFunction") or "LINEAR") if window == "file" else "LINEAR"
    pair = _first_window(found) if window == "file" else (float(window[0]), float(window[1]))
    if pair is None and "VOILUTSequence" in found:
        table = found.VOILUTSequence[0].LUTDescriptor
        shown = pydicom.pixels.apply_voi(values.astype(found.pixel_array.dtype), found, index=0)
        return shown / float(2 ** int(table[2]) - 1)
    if pair is None:
        low, high = ends
        return np.clip((values - low) / (high - low), 0, 1)
    centre, width = pair
    if kind == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if kind == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    return linear_window(values, pair)


def _first_window(found: Any) -> tuple[float, float] | None:
    centre, width = found.get("WindowCenter"), found.get("WindowWidth")
    if centre is None or width is None or str(centre) == "" or str(width) == "":
        return None
    first = [one if isinstance(one, int | float) else one[0] for one in (centre, width)]
    return (float(first[0]), float(first[1])) if float(first[1]) > 0 else None
