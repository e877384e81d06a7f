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
from typing import Any

import numpy as np

from ppl_med.data.readers.array_files import grey_images, read_npz
from ppl_med.data.readers.folders import SPLITS, find_place

CLASS_NAMES = ("normal", "pneumonia")
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
    names = [f"{split}_{part}" for split in SPLITS for part in ("images", "labels")]
    arrays, splits = read_npz(path, names), {}
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        ids = np.array([f"{split}-{row:05d}" for row in range(len(images))])
        splits[split] = grey_images(path, split, images, labels) | {"id": ids}
    return splits
