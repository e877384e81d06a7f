"""Arrays from NumPy's and MATLAB's files."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.data.readers.folders import naming_file


def read_npz(
    path: str | PathLike[str], names: Sequence[str], fix: str = "download it again"
) -> dict[str, NDArray[Any]]:
    """Arrays of an npz file, nothing in which is executed.

    ``fix`` is what to do where an array is missing.
    """
    path = Path(path)
    with naming_file(path, "npz file"), path.open("rb") as raw:
        with np.load(raw, allow_pickle=False) as file:
            found = file.files
            arrays = {name: file[name] for name in names if name in found}
    _check_names(path, names, arrays, found, fix)
    return arrays


def read_mat(path: Path, names: Sequence[str], fix: str = "download it again") -> dict[str, Any]:
    """Arrays of a MATLAB file of version 5; see ``read_npz``."""
    from scipy.io import loadmat

    with naming_file(path, "MATLAB file of version 5"):
        # One file of Make3D's training set has a wrong checksum but is whole.
        arrays = loadmat(path, variable_names=list(names), verify_compressed_data_integrity=False)
    _check_names(path, names, arrays, list(arrays), fix)
    return arrays


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
