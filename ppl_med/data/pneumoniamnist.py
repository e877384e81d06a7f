"""PneumoniaMNIST: grey 28 x 28 chest X-rays of children, with and without pneumonia.

Read from ``pneumoniamnist.npz`` as MedMNIST distributes it; it holds for each split "train", "val"
and "test":

    <split>_images   uint8 (case, row=28, col=28)
    <split>_labels   0 normal, 1 pneumonia, (case, 1) or (case)

The splits are the file's own. It says of no picture which patient it is of, so whether two splits
share one cannot be checked here.

References: Yang et al., "MedMNIST v2", Scientific Data 10, 2023. Kermany et al., "Identifying
Medical Diagnoses and Treatable Diseases by Image-Based Deep Learning", Cell 172, 2018.
"""

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.data.folders import find_place

CLASS_NAMES = ("normal", "pneumonia")
SPLITS = ("train", "val", "test")
_FILE = "pneumoniamnist.npz"


def load_pneumoniamnist(folder: str | PathLike[str]) -> dict[str, dict[str, Any]]:
    """Read the three splits.

    Args:
        folder: Holds ``pneumoniamnist.npz``, itself or in a subfolder ``pneumoniamnist``.

    Returns:
        For each split, arrays for ``Batches``: "image" uint8 (case, channel=1, row=28, col=28),
        "label" int64 (case) with the meaning of ``CLASS_NAMES``, "id" str (case) as
        "<split>-<row in the file>".

    Raises:
        FileNotFoundError: There is no such folder or no such file in it.
        ValueError: The file is not as described above.
    """
    path = find_place(folder, "pneumoniamnist", (_FILE,), module=__name__) / _FILE
    keys = [f"{split}_{part}" for split in SPLITS for part in ("images", "labels")]
    with np.load(path, allow_pickle=False) as file:
        missing = [key for key in keys if key not in file]
        if missing:
            raise ValueError(f"{path} lacks {missing}; it holds {file.files}")
        return {
            split: _read(path, split, file[f"{split}_images"], file[f"{split}_labels"])
            for split in SPLITS
        }


def _read(path: Path, split: str, images: NDArray, labels: NDArray) -> dict[str, NDArray[Any]]:
    """Check one split and give it the names and shapes of ``Batches``."""
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
    return {
        "image": images[:, None],
        "label": labels.astype(np.int64),
        "id": np.array([f"{split}-{row:05d}" for row in range(len(images))]),
    }
