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

from ppl_med.data.readers.folders import find_place
from ppl_med.data.readers.medmnist import MEDMNIST, load_medmnist

NAME = "pneumoniamnist"
CLASS_NAMES = MEDMNIST[NAME].classes


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
    path = find_place(folder, NAME, (f"{NAME}.npz",), module=__name__)
    return dict(load_medmnist(path, NAME))
