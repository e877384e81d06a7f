"""Volumes from NIfTI files: read whole, with their checksum, and compared grid by grid."""

import gzip
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import whole
from ppl_med.data.readers.folders import check_memory, naming_file

_HEADER = 540  # bytes of the longer of the two kinds of header
_DENSEST = 1032  # bytes that one byte of a gzip file can hold
_SLACK = 2**20  # bytes that may follow the voxels
_BLOCK = 2**24


def read_volume(
    path: Path, kind: type | None = None, *, volume: int | Literal["all"] | None = None
) -> tuple[Any, NDArray[Any]]:
    """A volume's grid, on the axes right, front, up, and its values (col, row, depth).

    A ``.nii.gz`` is decompressed to its end, where its checksum stands; a plain ``.nii`` has none.
    Axes of one entry after the third are dropped. ``kind`` is the type of the values, None for the
    file's. Of a file with four axes, ``volume`` chooses one volume, from 0, or "all" of them, which
    gives values (col, row, depth, volume); without it such a file is refused.

    Raises:
        ModuleNotFoundError: nibabel is not installed.
        ValueError: The file is damaged, has other than three axes and no choice was made, has no
            such volume, or is in other units than mm.
    """
    nibabel = _nibabel()
    with naming_file(path, "NIfTI file"):
        image = _image(nibabel, path)
        if image.ndim > 3 and set(image.shape[3:]) == {1}:
            image = nibabel.squeeze_image(image)
    if image.ndim != 3 and (image.ndim != 4 or volume is None):
        choose = ", or choose one by volume=" if image.ndim == 4 else ""
        raise ValueError(f"{path} has shape {image.shape}; expected three axes{choose}")
    if image.ndim == 4 and volume != "all":
        whole("volume", volume, 0, image.shape[3] - 1, f"{path} has {image.shape[3]}")
    with naming_file(path, "NIfTI file"):
        if image.ndim == 4 and volume != "all":
            image = image.slicer[..., volume]
        image = nibabel.as_closest_canonical(image)
        values = np.asarray(image.dataobj, kind)
    unit = image.header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        raise ValueError(f"{path} is in {unit}; expected mm, or volumes would be wrong")
    return image, values[..., None] if volume == "all" and values.ndim == 3 else values


def volume_header(path: Path) -> tuple[tuple[int, ...], tuple[float, ...], int]:
    """Shape and spacing (depth, row, col) as ``read_volume`` turns them, and number of volumes.

    Raises:
        ModuleNotFoundError: nibabel is not installed.
        ValueError: The file is damaged or has fewer than three axes.
    """
    nibabel = _nibabel()
    with naming_file(path, "NIfTI file"):
        image = nibabel.load(path)
        shape = image.shape
        if len(shape) < 3:
            raise ValueError(f"it has shape {shape}; expected three axes")
        axes = nibabel.orientations.io_orientation(image.affine)[:3, 0].astype(int)
        order = [int(np.flatnonzero(axes == axis)[0]) for axis in (2, 1, 0)]
        spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    return (
        tuple(int(shape[axis]) for axis in order),
        tuple(float(spacing[axis]) for axis in order),
        math.prod(shape[3:]),
    )


def affine_of(image: Any) -> NDArray[np.float64]:
    """From index (depth, row, col) to mm, RAS+, 4 x 4: the columns in the order of the axes."""
    return np.asarray(image.affine, np.float64)[:, [2, 1, 0, 3]]


def _nibabel() -> Any:
    try:
        import nibabel
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'reading NIfTI files needs nibabel: pip install "ppl-med[data]"'
        ) from error
    return nibabel


def check_one_grid(name: str, image: Any, label: Any) -> None:
    """Raise a ValueError that says how the grids of a volume, 3D or 4D, and its label differ."""
    if image.shape[:3] == label.shape and np.allclose(image.affine, label.affine, atol=1e-3):
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
