"""Overlap of pairs of masks: intersections counted by matrix products, then IoU or Dice.

    IoU  = |A and B| / |A or B|          Dice = 2 |A and B| / (|A| + |B|)

are taken per class and averaged over the classes. Where a class is absent from both masks the
ratio is 0/0: `empty` says what it counts as. 1 is agreement on absence (the convention of PHiSeg,
SSN, CCDM and of the LIDC experiments); NaN leaves the class out of the mean of that pair (the
Cityscapes experiments of Kohl et al.), and a pair without any class left has no overlap, NaN.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ppl_med import checks

_CHUNK = 2**18  # pixels per product; float32 counts exactly up to 2^24


class Counts(NamedTuple):
    """Pixels per class of the masks of two sets and of their intersections."""

    both: np.ndarray  # (class, first, second)
    first: np.ndarray  # (class, first)
    second: np.ndarray  # (class, second)


def check_empty(empty: float) -> float:
    """Return what an absent class counts, as float, or raise unless it is NaN or in [0, 1]."""
    if (checks.is_finite(empty) and 0 <= empty <= 1) or empty != empty:
        return float(empty)
    checks.reject("empty", "a number from 0 to 1, or nan", empty)


def count(first: np.ndarray, second: np.ndarray, classes: np.ndarray) -> Counts:
    """Count the pixels that pairs of masks share.

    Args:
        first: Masks (first, pixel), class indices.
        second: Masks (second, pixel); the same object for the pairs inside one set.
        classes: Indices of the classes to count.

    Returns:
        Exact counts, float64.
    """
    same = second is first
    both = np.zeros((len(classes), len(first), len(second)))
    sizes = (np.zeros((len(classes), len(first))), np.zeros((len(classes), len(second))))
    for start in range(0, first.shape[1], _CHUNK):
        pixels = slice(start, start + _CHUNK)
        for index, number in enumerate(classes):
            left = (first[:, pixels] == number).astype(np.float32)
            right = left if same else (second[:, pixels] == number).astype(np.float32)
            both[index] += left @ right.T
            sizes[0][index] += left.sum(1)
            sizes[1][index] += right.sum(1)
    return Counts(both, *sizes)


def iou_per_class(counts: Counts, empty: float) -> np.ndarray:
    """Return the IoU of every pair (class, first, second), 0..1."""
    union = counts.first[:, :, None] + counts.second[:, None, :] - counts.both
    return _ratio(counts.both, union, empty)


def dice_per_class(counts: Counts, empty: float) -> np.ndarray:
    """Return the Dice coefficient of every pair (class, first, second), 0..1."""
    total = counts.first[:, :, None] + counts.second[:, None, :]
    return _ratio(2 * counts.both, total, empty)


PER_CLASS: dict[str, Callable[[Counts, float], np.ndarray]] = {
    "iou": iou_per_class,
    "dice": dice_per_class,
}


def pairwise(
    first: np.ndarray,
    second: np.ndarray,
    classes: np.ndarray,
    empty: float,
    overlap: str = "iou",
) -> np.ndarray:
    """Return the overlap of every pair, averaged over classes: (first, second), 0..1 or NaN."""
    return known_mean(PER_CLASS[overlap](count(first, second, classes), empty))


def known_mean(values: np.ndarray) -> np.ndarray:
    """Average over the leading axis without NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    number = known.sum(0)
    total = np.where(known, values, 0.0).sum(0)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


def _ratio(part: np.ndarray, whole: np.ndarray, empty: float) -> np.ndarray:
    return np.divide(part, whole, out=np.full(part.shape, float(empty)), where=whole > 0)
