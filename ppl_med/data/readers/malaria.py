"""Malaria: crops of red blood cells from thin smears, split by patient.

Cells from the public release of the NIH (Lister Hill Center), about half with a parasite. Read from
the folder as it was released, in colour, pictures of 40 to 400 pixels a side:

    cell_images/Parasitized/C33P1thinF_IMG_20150619_114756a_cell_179.png    patient P1
    cell_images/Uninfected/C1_thinF_IMG_20150604_104722_cell_9.png          healthy donor C1

or from ``malaria.npz``, grey 50 x 50, which holds for each split "train", "val" and "test":

    <split>_images   uint8 (case, row=50, col=50)
    <split>_labels   0 uninfected, 1 parasitized, (case) or (case, 1)
    <split>_patient  bytes or str (case): P-numbers are patients, C-numbers healthy donors

Reference: Rajaraman et al., "Pre-trained convolutional neural networks as feature extractors toward
improved malaria parasite detection in thin blood smear images", PeerJ 6:e4568, 2018.
"""

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import a_path, choice, is_finite, reject
from ppl_med.data.readers.array_files import grey_images, read_npz
from ppl_med.data.readers.folders import SPLITS, check_memory, find_place, some_of
from ppl_med.data.readers.image_files import check_size, read_rgb
from ppl_med.data.splits import apply_split, check_splits, split_patients

CLASS_NAMES = ("uninfected", "parasitized")
SHARES = {"train": 0.75, "val": 0.15, "test": 0.1}
_FOLDERS = ("Uninfected", "Parasitized")
_PATIENT = re.compile(r"(C\d+)(P\d+)?[A-Za-z_]")


def load_malaria(
    folder: str | PathLike[str],
    *,
    fraction: float = 1.0,
    by: Literal["cell", "patient"] = "cell",
    seed: int = 0,
    size: tuple[int, int] = (50, 50),
    shares: Mapping[str, float] | None = None,
    split_seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Read the three splits, of the training split only a fraction if asked.

    Fractions are nested: with one ``seed``, the cells at 0.25 are among those at 0.5, so a learning
    curve adds cases and never exchanges them. "val" and "test" are always whole.

    Args:
        folder: Holds ``malaria.npz`` or ``cell_images``, itself or in a subfolder ``malaria``; of
            both the first is read.
        fraction: Share of the training split to keep, above 0 and up to 1.
        by: "cell" keeps that share of the cells of each class, whoever they came from. "patient"
            keeps all cells of that share of the people, drawn apart among those with and without
            parasitized cells; it is the honest way to ask what more patients would bring.
        seed: Determines which are kept.
        size: Rows and columns to which the pictures of the folder are stretched.
        shares: Share of the people of the folder for every split, likewise of those with and
            without parasites; by default 0.75, 0.15 and 0.1, about those of the arrays.
        split_seed: Seed of the splits of the folder.

    Returns:
        For each split, arrays for ``Batches``: "image" uint8 (case, channel=3, row, col), red,
        green, blue, of the folder and (case, channel=1, row=50, col=50) of the arrays; "label"
        int64 (case) with the meaning of ``CLASS_NAMES``; "id" str (case), the file's name without
        ending, of the arrays "<split>-<row in the file>-<patient>"; "patient" str (case).

    Raises:
        FileNotFoundError: There is no such folder, or neither ``malaria.npz`` nor ``cell_images``
            in it.
        ValueError: An argument is out of range, a file is not as described above, or a patient
            is in two splits.
    """
    if not (is_finite(fraction) and 0 < fraction <= 1):
        reject("fraction", "above 0 and up to 1", fraction)
    choice("by", by, ("cell", "patient"))
    check_size(size, ("rows", "cols"))
    pictures = _pictures(folder)
    splits = (
        _of_pictures(pictures, size, SHARES if shares is None else shares, split_seed)
        if pictures
        else _of_arrays(find_place(folder, "malaria", ("malaria.npz",), module=__name__))
    )
    check_splits(splits, "patient")
    if fraction < 1:
        train = splits["train"]
        kept = _cells_of(train, fraction, seed) if by == "cell" else _people(train, fraction, seed)
        splits["train"] = {name: values[kept] for name, values in train.items()}
    return splits


def _pictures(folder: str | PathLike[str]) -> list[Path]:
    """The pictures of the folder as it was released; none where there are arrays."""
    root = a_path("folder", folder)
    if any((place / "malaria.npz").is_file() for place in (root, root / "malaria")):
        return []
    for place in (root, root / "cell_images", root / "malaria" / "cell_images"):
        if all((place / name).is_dir() for name in _FOLDERS):
            break
    else:
        return []
    found = [path for name in _FOLDERS for path in sorted((place / name).glob("*.png"))]
    if not found:
        raise FileNotFoundError(f"{place} has no .png files in {' and '.join(_FOLDERS)}")
    return found


def _of_pictures(
    paths: list[Path], size: tuple[int, int], shares: Mapping[str, float], seed: int
) -> dict[str, dict[str, Any]]:
    nameless = [path.name for path in paths if not _PATIENT.match(path.name)]
    if nameless:
        raise ValueError(
            f"{some_of(nameless, len(paths))} do not begin as C<slide>P<patient> or C<donor>_, so "
            "that nobody knows whose cells they are; restore the names of the release"
        )
    patient = np.array([_whose(path.name) for path in paths])
    label = np.array([_FOLDERS.index(path.parent.name) for path in paths], np.int64)
    ill = np.isin(patient, patient[label == 1])
    split = split_patients(patient, shares, seed=seed, stratify=ill)
    check_memory(3 * len(paths) * size[0] * size[1])
    arrays = {
        "image": np.stack([read_rgb(path, size) for path in paths]),
        "label": label,
        "id": np.array([path.stem for path in paths]),
        "patient": patient,
    }
    return apply_split(arrays, split)


def _whose(name: str) -> str:
    """P-number of a patient, C-number of a healthy donor."""
    found = _PATIENT.match(name)
    assert found is not None
    return found[2] or found[1]


def _of_arrays(place: Path) -> dict[str, dict[str, Any]]:
    path, parts = place / "malaria.npz", ("images", "labels", "patient")
    arrays = read_npz(path, [f"{split}_{part}" for split in SPLITS for part in parts])
    return {
        split: _named(path, split, *(arrays[f"{split}_{part}"] for part in parts))
        for split in SPLITS
    }


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
