"""Which object is which true box: the one place where boxes are paired.

    greedy    by falling score each object takes the free true box with which it overlaps most, if
              by the threshold or more; what a lower score does changes nothing above it (COCO)
    optimal   the pairs of largest total quality, one to one (PDQ)

Boxes are x_min, y_min, x_max, y_max; one whose max is below its min has no area.

Sources: Lin et al., ECCV 2014, arXiv:1405.0312, and the evaluation code of COCO; Kuhn, Naval
Research Logistics Quarterly 2, 1955.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from ppl_med.analysis.detection.open_objects import FoundObjects
from ppl_med.analysis.tree import overlaps

NONE = -1


class Matches(NamedTuple):
    """What every object found.

    Args:
        true: Position among the true boxes, -1 for none (threshold, object).
        iou: Overlap with it, 0 for none (threshold, object).
        ignored: Whether an object counts neither as hit nor as false (threshold, object).
    """

    true: np.ndarray
    iou: np.ndarray
    ignored: np.ndarray

    @property
    def hit(self) -> np.ndarray:
        """Whether an object found a true box that counts (threshold, object)."""
        return (self.true != NONE) & ~self.ignored

    def first(self) -> "Matches":
        """The matches at the first threshold (object,)."""
        return Matches(self.true[0], self.iou[0], self.ignored[0])


def area(box: np.ndarray) -> np.ndarray:
    """Return the area of boxes (..., edge), in pixels^2; 0 where a max is below its min."""
    result: np.ndarray = (box[..., 2:] - box[..., :2]).clip(0).prod(-1)
    return result


def greedy(
    overlap: np.ndarray, thresholds: np.ndarray, ignored: np.ndarray | None = None
) -> np.ndarray:
    """Pair objects with true boxes by falling score, at several thresholds at once.

    Args:
        overlap: (object, true), objects by falling score.
        thresholds: Least overlap of a pair; at 0 any overlap will do.
        ignored: True boxes that an object takes only where it finds no other (true,), bool.

    Returns:
        Position of the true box of every object, -1 for none (threshold, object).
    """
    number, true = overlap.shape
    result = np.full((len(thresholds), number), NONE)
    if not true:
        return result
    second = np.zeros(true, bool) if ignored is None else ignored
    free = np.ones((len(thresholds), true), bool)
    every = np.arange(len(thresholds))
    for row in np.flatnonzero(overlap.max(1) > 0):
        can = free & (overlap[row] >= thresholds[:, None]) & (overlap[row] > 0)
        first = can & ~second
        can = np.where(first.any(1, keepdims=True), first, can)
        best = np.where(can, overlap[row], -1.0).argmax(1)
        takes = can[every, best]
        result[takes, row] = best[takes]
        free[every[takes], best[takes]] = False
    return result


def optimal(quality: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs (object, true) of largest total quality; pairs of quality 0 are none."""
    rows, columns = linear_sum_assignment(quality, maximize=True)
    kept = quality[rows, columns] > 0
    return rows[kept], columns[kept]


def match(
    found: FoundObjects,
    thresholds: np.ndarray,
    *,
    by_class: bool = True,
    order: np.ndarray | None = None,
    area_range: tuple[float, float] = (0.0, np.inf),
    most: int | None = None,
) -> Matches:
    """Pair the objects of all images greedily.

    Args:
        found: The objects and true boxes.
        thresholds: Least IoU of a pair.
        by_class: Pair only what is of one class.
        order: Score by which objects choose (object,); None is the confidence.
        area_range: True boxes of other areas are ignored, with the object that finds one, and so
            are false objects of other areas; pixels^2, both ends included.
        most: Most objects of an image and class that count; the others are ignored. None is all.
    """
    size = (len(thresholds), found.case.size)
    result = Matches(np.full(size, NONE), np.zeros(size), np.zeros(size, bool))
    outside = [(area(box) < area_range[0]) | (area(box) > area_range[1])
               for box in (found.box, found.true_box)]  # fmt: skip
    for mine, true in found.images():
        for label in np.unique(found.label[mine]) if by_class else (None,):
            rows, columns = np.arange(mine.start, mine.stop), np.arange(true.start, true.stop)
            if label is not None:
                rows = rows[found.label[rows] == label]
                columns = columns[found.true_label[columns] == label]
            if order is not None:
                rows = rows[np.argsort(-order[rows], kind="stable")]
            if most is not None:
                result.ignored[:, rows[most:]] = True
                rows = rows[:most]
            overlap = overlaps(found.box[rows], found.true_box[columns])
            pairs = greedy(overlap, thresholds, outside[1][columns])
            hit = pairs != NONE
            which, row = np.nonzero(hit)
            column = pairs[hit]
            result.true[which, rows[row]] = columns[column]
            result.iou[which, rows[row]] = overlap[row, column]
            result.ignored[which, rows[row]] = outside[1][columns[column]]
            result.ignored[:, rows] |= ~hit & outside[0][rows]
    return result
