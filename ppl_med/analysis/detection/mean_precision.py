"""Average precision of boxes, as COCO measures it, without its limit of 100 objects.

Objects of an image and class take true boxes by falling confidence (`box_matching`), at every IoU
threshold. The precision at a recall is the largest at that recall or a higher one; the average is
over the recalls 0, 0.01, ..., 1. Objects of equal confidence pass together: COCO's own code takes
them in the order in which they came, which is no property of a detector. Without ties both agree.

Of a size only true boxes of that area count; an object that finds another, or that finds nothing
and is of another size itself, counts neither way. A class without true boxes has no average.

Source: Lin et al., ECCV 2014, arXiv:1405.0312, and the evaluation code of COCO.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from ppl_med.analysis.detection.box_matching import area, match
from ppl_med.analysis.detection.image_figures import (
    Figures,
    ImageFigures,
    by_falling_score,
    mean_of_known,
)
from ppl_med.analysis.detection.open_objects import FoundObjects, counted, open_objects
from ppl_med.checks import inside, reject, whole

COCO = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
_RECALLS = np.linspace(0, 1, 101)
_SIZES = ("all", "small", "medium", "large")


def average_precision(
    tree: xr.DataTree,
    *,
    thresholds: Sequence[float] = COCO,
    sides: tuple[float, float] = (32.0, 96.0),
    most: int | None = None,
) -> xr.Dataset:
    """Average precision and recall by class, size and IoU threshold.

    Args:
        tree: A tree of `objects` with true boxes.
        thresholds: IoU from which on an object is the true box, in (0, 1), rising.
        sides: Where sizes part, as the side of a square in pixels: small up to the first, large
            from the second on, as in COCO both ends belong to both.
        most: Most objects of an image and class that count, the most confident; None takes all,
            100 is COCO's choice. Images with more are counted in the attribute ``cut_images``.

    Returns:
        Dataset of ``ap`` (class, size, iou_threshold); ``map``, ``map_50``, ``map_75``, means over
        classes of all sizes over the thresholds or at one (NaN where it is none of them);
        ``map_per_class``, ``map_50_per_class`` (class), ``map_per_size`` (size); and
        ``mar_per_size`` (size), the share of true boxes found, the same mean. All in [0, 1].

    Raises:
        TypeError, ValueError: No tree of objects with true boxes, or a malformed argument.
    """
    return plan(tree, thresholds=thresholds, sides=sides, most=most).dataset()


def plan(
    tree: xr.DataTree,
    *,
    thresholds: Sequence[float] = COCO,
    sides: tuple[float, float] = (32.0, 96.0),
    most: int | None = None,
) -> ImageFigures:
    """The same, ready for other weights of the images."""
    levels = check_levels(thresholds)
    if len(sides) != 2 or not 0 < sides[0] < sides[1] < np.inf:
        reject("sides", "two rising numbers of pixels above 0", sides)
    if most is not None:
        whole("most", most)
    found = open_objects(tree)
    small, large = sides[0] ** 2, sides[1] ** 2
    ranges = ((0.0, np.inf), (0.0, small), (small, large), (large, np.inf))
    parts = [_Size(found, levels, bounds, most) for bounds in ranges]
    places = [_place(levels, 0.5), _place(levels, 0.75)]

    def compute(weight: np.ndarray) -> Figures:
        pairs = [part.figures(weight) for part in parts]
        ap, recall = (np.stack(one, 1) for one in zip(*pairs, strict=True))
        at = [ap[:, 0, place] if place is not None else np.full(len(ap), np.nan)
              for place in places]  # fmt: skip
        return {
            "ap": ap,
            "map": mean_of_known(ap[:, 0]),
            "map_50": mean_of_known(at[0]),
            "map_75": mean_of_known(at[1]),
            "map_per_class": mean_of_known(ap[:, 0], 1),
            "map_50_per_class": at[0],
            "map_per_size": mean_of_known(ap, (0, 2)),
            "mar_per_size": mean_of_known(recall, (0, 2)),
        }

    dims: dict[str, tuple[str, ...]] = {
        "ap": ("class", "size", "iou_threshold"),
        **dict.fromkeys(("map", "map_50", "map_75"), ()),
        **dict.fromkeys(("map_per_class", "map_50_per_class"), ("class",)),
        **dict.fromkeys(("map_per_size", "mar_per_size"), ("size",)),
    }
    coords = {"class": found.names, "size": list(_SIZES), "iou_threshold": levels}
    number = counted(found.case, found.label, (found.num_cases, found.num_classes))
    cut = 0 if most is None else int((number > most).any(1).sum())
    attrs = {"small_below": sides[0], "large_above": sides[1], "cut_images": cut,
             "most_objects": "all" if most is None else int(most)}  # fmt: skip
    return ImageFigures(found, compute, dims, coords, attrs, {})


def check_levels(thresholds: Sequence[float]) -> np.ndarray:
    """Return IoU thresholds, rising and inside (0, 1).

    Raises:
        ValueError: They are not.
    """
    levels = np.array([inside("thresholds", one) for one in thresholds])
    if not len(levels) or (np.diff(levels) <= 0).any():
        reject("thresholds", "one or more rising numbers", list(thresholds))
    return levels


class _Size:
    """Hits and false objects among boxes of one size."""

    def __init__(
        self, found: FoundObjects, levels: np.ndarray, bounds: tuple[float, float], most: int | None
    ) -> None:
        matches = match(found, levels, area_range=bounds, most=most)
        own = (area(found.true_box) >= bounds[0]) & (area(found.true_box) <= bounds[1])
        shape = (found.num_cases, found.num_classes)
        self.true = counted(found.true_case[own], found.true_label[own], shape)
        self.classes = []
        for label in range(found.num_classes):
            rows = np.flatnonzero(found.label == label)
            order, ends = by_falling_score(found.confidence[rows])
            rows = rows[order]
            counts = ~matches.ignored[:, rows]
            self.classes.append((found.case[rows], ends, matches.hit[:, rows], counts))

    def figures(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Average precision and recall (class, threshold)."""
        pairs = [
            _average(weight[case], ends, hit, counts, total)
            for (case, ends, hit, counts), total in zip(
                self.classes, weight @ self.true, strict=True
            )
        ]
        ap, recall = (np.stack(one) for one in zip(*pairs, strict=True))
        return ap, recall


def _average(
    weight: np.ndarray, ends: np.ndarray, hit: np.ndarray, counts: np.ndarray, total: float
) -> tuple[np.ndarray, np.ndarray]:
    if not total:
        return np.full(len(hit), np.nan), np.full(len(hit), np.nan)
    found = (weight * hit).cumsum(1)[:, ends]
    taken = (weight * counts).cumsum(1)[:, ends]
    precision = np.divide(found, taken, out=np.zeros(found.shape), where=taken > 0)
    best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    best = np.pad(best, ((0, 0), (0, 1)))
    recall = found / total
    ap = [row[np.searchsorted(one, _RECALLS)].mean() for row, one in zip(best, recall, strict=True)]
    return np.array(ap), np.pad(recall, ((0, 0), (1, 0)))[:, -1]


def _place(levels: np.ndarray, value: float) -> int | None:
    near = np.flatnonzero(np.isclose(levels, value, rtol=0, atol=1e-9))
    return int(near[0]) if near.size else None
