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

from ppl_med.data.folders import check_splits, find_place

CLASS_NAMES = ("uninfected", "parasitized")
SPLITS = ("train", "val", "test")


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
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}; it is a share, above 0 and up to 1")
    if by not in ("cell", "patient"):
        raise ValueError(f'by is {by!r}; it is "cell" or "patient"')
    path = find_place(folder, "malaria", ("malaria.npz",), module=__name__) / "malaria.npz"
    with np.load(path, allow_pickle=False) as file:
        missing = [
            f"{split}_{part}"
            for split in SPLITS
            for part in ("images", "labels", "patient")
            if f"{split}_{part}" not in file
        ]
        if missing:
            raise ValueError(f"{path} lacks {missing}; it holds {file.files}")
        splits = {
            split: _read(
                path, split, *(file[f"{split}_{part}"] for part in ("images", "labels", "patient"))
            )
            for split in SPLITS
        }
    check_splits(splits, "patient")
    if fraction < 1:
        train = splits["train"]
        kept = _cells_of(train, fraction, seed) if by == "cell" else _people(train, fraction, seed)
        splits["train"] = {name: values[kept] for name, values in train.items()}
    return splits


def _read(
    path: Path, split: str, images: NDArray, labels: NDArray, patient: NDArray
) -> dict[str, NDArray]:
    """Check one split and give it the names and shapes of ``Batches``."""
    if images.dtype != np.uint8 or images.ndim != 3 or len(images) == 0:
        raise ValueError(
            f"{path}: {split}_images is {images.dtype} {images.shape}; expected uint8 "
            "(case, row, col)"
        )
    labels = labels.reshape(-1)
    if not len(images) == len(labels) == len(patient):
        raise ValueError(
            f"{path}: {split} has {len(images)} images, {len(labels)} labels, "
            f"{len(patient)} patients; expected one of each per cell"
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"{path}: {split}_labels holds {np.unique(labels)}; expected 0 and 1")
    patient = patient.astype(str)
    ids = [f"{split}-{row:05d}-{who}" for row, who in enumerate(patient.tolist())]
    return {
        "image": images[:, None],
        "label": labels.astype(np.int64),
        "id": np.array(ids),
        "patient": patient,
    }


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
