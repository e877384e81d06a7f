"""Arrays from NumPy's and MATLAB's files."""

import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.data.readers.folders import check_memory, naming_file

_MOST_COMPRESSED = 2**28  # bytes of one compressed array of a MATLAB file


def read_npz(
    path: str | PathLike[str], names: Sequence[str], fix: str = "download it again"
) -> dict[str, NDArray[Any]]:
    """Arrays of an npz file, nothing in which is executed.

    What the file says of their sizes is compared with what it holds before memory is taken, and
    their checksums while they are read. ``fix`` is what to do where an array is missing.
    """
    path = Path(path)
    with naming_file(path, "npz file", fix), zipfile.ZipFile(path) as file:
        found = [name.removesuffix(".npy") for name in file.namelist()]
        wanted = [name for name in names if name in found]
        check_memory(sum(_size(file, name) for name in wanted))
        arrays = {name: _array(file, name) for name in wanted}
    _check_names(path, names, arrays, found, fix)
    return arrays


def _size(file: zipfile.ZipFile, name: str) -> int:
    """Bytes of an array, which its header and the table of the archive must agree on."""
    place = file.getinfo(f"{name}.npy")
    with file.open(place) as member:
        version = np.lib.format.read_magic(member)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            raise ValueError(f"{name} has version {version}; expected (1, 0) or (2, 0)")
        shape, _, dtype = readers[version](member)
        if dtype.hasobject:
            raise ValueError(
                f"{name} holds Python objects, which are not read (allow_pickle=False)"
            )
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or member.tell() + size != place.file_size:
            raise ValueError(
                f"{name} is said to be {dtype} {shape}, but holds {place.file_size} bytes"
            )
    return size


def _array(file: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with file.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def read_mat(path: Path, names: Sequence[str], fix: str = "download it again") -> dict[str, Any]:
    """Arrays of a MATLAB file of version 5; see ``read_npz``.

    Warns:
        UserWarning: Where a checksum is wrong, as of one file of Make3D's training set, which is
            whole. Arrays that are not compressed have none.
    """
    from scipy.io import loadmat

    with naming_file(path, "MATLAB file of version 5", fix):
        wrong = _damage_of_mat(path)
        arrays = loadmat(path, variable_names=list(names), verify_compressed_data_integrity=False)
    _check_names(path, names, arrays, list(arrays), fix)
    if wrong:
        warnings.warn(
            f"{path} can be read but may be damaged ({wrong}); look at it, or {fix}", stacklevel=2
        )
    return arrays


def _damage_of_mat(path: Path) -> str:
    """What is wrong with the compressed arrays of a file; a ValueError where one is too large."""
    content = path.read_bytes()
    order, at = "<" if content[126:128] == b"IM" else ">", 128
    while at + 8 <= len(content):
        kind, size = struct.unpack(f"{order}II", content[at : at + 8])
        if kind == 15:  # compressed
            stream = zlib.decompressobj()
            try:
                stream.decompress(content[at + 8 : at + 8 + size], _MOST_COMPRESSED)
            except zlib.error as error:
                return str(error)
            if stream.unconsumed_tail:
                raise ValueError(f"it holds an array of more than {_MOST_COMPRESSED} bytes")
            if not stream.eof:
                return "the end of an array is missing"
        at += 8 + size
    return ""


def grey_images(
    path: Path, split: str, images: NDArray[Any], labels: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """Grey images of two classes, with the names and shapes of ``Batches``.

    Refused unless images are uint8 (case, row, col) and labels 0 or 1, (case) or (case, 1). Gives
    "image" (case, channel=1, row, col) and "label" int64 (case); path and split are for messages.
    """
    if images.dtype != np.uint8 or images.ndim != 3 or len(images) == 0:
        raise ValueError(
            f"{path}: {split}_images is {images.dtype} {images.shape}; expected uint8 "
            "(case, row, col)"
        )
    labels = labels.reshape(-1)
    if len(labels) != len(images):
        raise ValueError(f"{path}: {split} has {len(images)} images but {len(labels)} labels")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"{path}: {split}_labels holds {np.unique(labels)}; expected 0 and 1")
    return {"image": images[:, None], "label": labels.astype(np.int64)}


def _check_names(
    path: Path, names: Sequence[str], arrays: dict[str, Any], found: list[str], fix: str
) -> None:
    missing = [name for name in names if name not in arrays]
    if missing:
        shown = [name for name in found if not name.startswith("__")]
        raise ValueError(f"{path} lacks {missing}; it holds {shown}: {fix}")
