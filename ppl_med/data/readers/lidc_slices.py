"""LIDC as pylidc exports it, a folder of pictures for each nodule, in the form of the arrays.

    LIDC-IDRI-0001/nodule-0/images/slice-0.png    8-bit, 128 x 128, about the nodule
    LIDC-IDRI-0001/nodule-0/mask-0/slice-0.png    what reader 0 outlined, 0 and 255; up to mask-3

A reader who outlined a nodule on no slice is taken as absent from it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.data.readers.folders import check_files, check_memory
from ppl_med.data.readers.image_files import read_grey

PATIENTS = "LIDC-IDRI-*"
READERS = 4
_FOLDERS = ("LIDC-IDRI-slices", "lidc/LIDC-IDRI-slices", "lidc", "")


def slices_folder(root: Path) -> Path | None:
    """The folder whose subfolders are patients with nodules, or None."""
    for name in _FOLDERS:
        if next((root / name).glob(f"{PATIENTS}/nodule-*/images"), None) is not None:
            return root / name
    return None


def read_slices(place: Path, side: int, *, every: bool = False) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file of ``load_lidc``, of all patients.

    Of each nodule the slice is kept on which the readers' outlines together are largest, and where
    all four outlined it the one more on which they differ most; or ``every`` slice.

    Raises:
        FileNotFoundError: A picture has not all masks.
        ValueError: A picture is damaged, or of another size than ``side``.
    """
    parts = list(_nodules(place, side, every))
    check_memory(5 * side * side * sum(len(part["images"]) for part in parts))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _nodules(place: Path, side: int, every: bool) -> Iterator[dict[str, NDArray[Any]]]:
    for folder in sorted(place.glob(f"{PATIENTS}/nodule-*"), key=_order):
        paths = sorted((folder / "images").glob("*.png"), key=lambda path: _number(path.stem))
        readers = [folder / f"mask-{reader}" for reader in range(READERS)]
        check_files([one / path.name for path in paths for one in readers], needed_by=folder)
        if not paths:
            raise FileNotFoundError(f"{folder / 'images'} has no .png files")
        images = np.stack([_square(path, side) for path in paths])
        outlines = [[_square(one / path.name, side) for one in readers] for path in paths]
        masks = np.greater(outlines, 127)
        present = np.asarray(masks.any((0, 2, 3)))
        kept = np.arange(len(paths)) if every else _chosen(masks, bool(present.all()))
        yield {
            "images": images[kept],
            "masks": masks[kept].astype(np.uint8),
            "reader_present": np.repeat(present[None], len(kept), 0).astype(np.uint8),
            "patient": np.repeat(folder.parent.name, len(kept)),
            "nodule": np.repeat(_number(folder.name), len(kept)),
            "slice": np.array([_number(paths[index].stem) for index in kept.tolist()]),
        }


def _chosen(masks: NDArray[np.bool_], by_all: bool) -> NDArray[np.int64]:
    """Largest union, and largest disagreement among the other slices."""
    largest = int(masks.any(1).sum((1, 2)).argmax())
    share = masks.mean(1)
    apart = (share * (1 - share)).sum((1, 2))
    apart[largest] = -1
    second = int(apart.argmax())
    more = by_all and len(masks) > 1
    return np.unique([largest, second] if more else [largest])


def _square(path: Path, side: int) -> NDArray[np.uint8]:
    pixels = read_grey(path)
    if pixels.shape != (side, side):
        raise ValueError(f"{path} is {pixels.shape}; expected ({side}, {side})")
    return pixels


def _number(name: str) -> int:
    digits = name.rpartition("-")[2]
    if not digits.isdigit():
        raise ValueError(f"{name!r} does not end in -<number>, as nodule-0 and slice-0 do")
    return int(digits)


def _order(folder: Path) -> tuple[str, int]:
    return folder.parent.name, _number(folder.name)
