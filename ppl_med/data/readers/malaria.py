"""Malaria: grey 50 x 50 crops of red blood cells from thin smears, split by patient.

Cells from the public release of the NIH (Lister Hill Center), about half with a parasite. Read from
``malaria.npz``, which holds for each split "train", "val" and "test":

    <split>_images   uint8 (case, row=50, col=50)
    <split>_labels   0 uninfected, 1 parasitized, (case) or (case, 1)
    <split>_patient  bytes or str (case): P-numbers are patients, C-numbers healthy donors

Reference: Rajaraman et al., "Pre-trained convolutional neural networks as feature extractors toward
improved malaria parasite detection in thin blood smear images", PeerJ 6:e4568, 2018.
"""

from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import choice, is_finite, reject
from ppl_med.data.readers.array_files import grey_images, read_npz
from ppl_med.data.readers.folders import SPLITS, find_place
from ppl_med.data.splits import check_splits

CLASS_NAMES = ("uninfected", "parasitized")


def load_malaria(
    folder: str | PathLike[str],
    *,
    fraction: float = 1.0,
    by: Literal["cell", "patient"] = "cell",
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Read the three splits, of the training split only a fraction if asked.

    Fractions are nested: with one ``seed``, the cells at 0.25 are among those at 0.5, so a learning
    curve adds cases and never exchanges them. "val" and "test" are always whole.

    Args:
        folder: Holds ``malaria.npz``, itself or in a subfolder ``malaria``.
        fraction: Share of the training split to keep, above 0 and up to 1.
        by: "cell" keeps that share of the cells of each class, whoever they came from. "patient"
            keeps all cells of that share of the people, drawn apart among those with and without
            parasitized cells; it is the honest way to ask what more patients would bring.
        seed: Determines which are kept.

    Returns:
        For each split, arrays for ``Batches``: "image" uint8 (case, channel=1, row=50, col=50),
        "label" int64 (case) with the meaning of ``CLASS_NAMES``, "id" str (case) as
        "<split>-<row in the file>-<patient>", "patient" str (case).

    Raises:
        FileNotFoundError: There is no such folder or no ``malaria.npz`` in it.
        ValueError: An argument is out of range, the file is not as described above, or a patient
            is in two splits.
    """
    if not (is_finite(fraction) and 0 < fraction <= 1):
        reject("fraction", "above 0 and up to 1", fraction)
    choice("by", by, ("cell", "patient"))
    path = find_place(folder, "malaria", ("malaria.npz",), module=__name__) / "malaria.npz"
    parts = ("images", "labels", "patient")
    arrays = read_npz(path, [f"{split}_{part}" for split in SPLITS for part in parts])
    splits = {
        split: _named(path, split, *(arrays[f"{split}_{part}"] for part in parts))
        for split in SPLITS
    }
    check_splits(splits, "patient")
    if fraction < 1:
        train = splits["train"]
        kept = _cells_of(train, fraction, seed) if by == "cell" else _people(train, fraction, seed)
        splits["train"] = {name: values[kept] for name, values in train.items()}
    return splits


def _named(
    path: Path, split: str, images: NDArray, labels: NDArray, patient: NDArray
) -> dict[str, NDArray]:
    """Check one split and give it the names and shapes of ``Batches``."""
    arrays = grey_images(path, split, images, labels)
    if patient.shape != (len(images),):
        raise ValueError(
            f"{path}: {split}_patient has shape {patient.shape}; expected one for each of the "
            f"{len(images)} images"
        )
    patient = patient.astype(str)
    ids = [f"{split}-{row:05d}-{who}" for row, who in enumerate(patient.tolist())]
    return arrays | {"id": np.array(ids), "patient": patient}


def _cells_of(train: dict[str, NDArray], fraction: float, seed: int) -> NDArray[np.int64]:
    """Rows of a nested share of the cells of each class, in the order of the file."""
    random = np.random.default_rng(seed)
    orders = [random.permutation(np.flatnonzero(train["label"] == k)) for k in (0, 1)]
    return np.sort(np.concatenate([_head(order, fraction) for order in orders]))


def _people(train: dict[str, NDArray], fraction: float, seed: int) -> NDArray[np.int64]:
    """Rows of a nested share of the people with, and of those without, parasitized cells."""
    random = np.random.default_rng(seed)
    everyone = np.unique(train["patient"])
    ill = np.isin(everyone, train["patient"][train["label"] == 1])
    orders = [random.permutation(everyone[ill == one]) for one in (False, True)]
    kept = np.concatenate([_head(order, fraction) for order in orders])
    return np.flatnonzero(np.isin(train["patient"], kept))


def _head(order: NDArray, fraction: float) -> NDArray:
    """The first share of a permutation, rounded, at least one if there is any."""
    return order[: max(1, round(fraction * len(order)))]
