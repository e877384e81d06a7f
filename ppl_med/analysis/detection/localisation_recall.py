"""Localisation recall precision: one error for missed, false and badly placed objects.

    LRP = (FP + FN + sum over hits of (1 - IoU) / (1 - tau)) / (hits + FP + FN)

in [0, 1], 0 is perfect; tau is the IoU from which on an object is a hit. Of every class it is taken
at a confidence threshold: its own best one, given ones, or those learnt on other cases
(`ppl_med.analysis.detection.thresholds`).

Source: Oksuz, Cam, Akbas and Kalkan, ECCV 2018, arXiv:1807.01696, and TPAMI 2021, arXiv:2011.10772.
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.detection.box_matching import match
from ppl_med.analysis.detection.image_figures import (
    Figures,
    ImageFigures,
    by_falling_score,
    mean_of_known,
    ratio,
)
from ppl_med.analysis.detection.open_objects import FoundObjects, open_objects
from ppl_med.checks import finite, inside

_PARTS = ("lrp", "localisation", "false_share", "missed_share", "threshold")


def lrp(tree: xr.DataTree, *, iou: float = 0.5, threshold: float | None = None) -> xr.Dataset:
    """Localisation recall precision of every class.

    Args:
        tree: A tree of `objects` with true boxes.
        iou: From which on an object is the true box, in (0, 1).
        threshold: Least confidence of the objects that count; None chooses the one of least LRP for
            every class on these very cases (optimal LRP), which flatters a little.

    Returns:
        Dataset of ``lrp`` (class) with its parts ``localisation`` (mean 1 - IoU of hits),
        ``false_share`` (1 - precision), ``missed_share`` (1 - recall), ``threshold`` (class), the
        least confidence kept, infinite where it is best to keep nothing; ``lrp_mean`` and
        ``<part>_mean`` over classes. NaN for a class without true boxes.

    Raises:
        TypeError, ValueError: No tree of objects with true boxes, or a malformed argument.
    """
    return plan(tree, iou=iou, threshold=threshold).dataset()


def plan(tree: xr.DataTree, *, iou: float = 0.5, threshold: float | None = None) -> ImageFigures:
    """The same, ready for other weights of the images."""
    inside("iou", iou)
    if threshold is not None:
        finite("threshold", threshold, 0, 1)
    found = open_objects(tree)
    classes = [_Class(found, label, iou, threshold) for label in range(found.num_classes)]
    true = found.true_per_class()

    def compute(weight: np.ndarray) -> Figures:
        totals = weight @ true
        rows = [one.figures(weight, total) for one, total in zip(classes, totals, strict=True)]
        figures = dict(zip(_PARTS, np.array(rows).reshape(-1, len(_PARTS)).T, strict=True))
        means = {f"{name}_mean": mean_of_known(figures[name]) for name in _PARTS[:-1]}
        return figures | means

    dims: dict[str, tuple[str, ...]] = dict.fromkeys(_PARTS, ("class",))
    dims |= {f"{name}_mean": () for name in _PARTS[:-1]}
    attrs = {"iou": iou, "chosen": "least LRP of every class" if threshold is None else "given"}
    units = {"threshold": "probability"}
    return ImageFigures(found, compute, dims, {"class": found.names}, attrs, units)


class _Class:
    """Objects of one class by falling confidence."""

    def __init__(
        self, found: FoundObjects, label: int, iou: float, threshold: float | None
    ) -> None:
        matches = match(found, np.array([iou])).first()
        kept = found.label == label
        if threshold is not None:
            kept &= found.confidence >= threshold
        rows = np.flatnonzero(kept)
        order, self.ends = by_falling_score(found.confidence[rows])
        rows = rows[order]
        self.case, self.confidence = found.case[rows], found.confidence[rows][self.ends]
        self.hit = matches.hit[rows]
        self.loss = np.where(self.hit, 1 - matches.iou[rows], 0.0)
        self.scale, self.threshold = 1 - iou, threshold

    def figures(self, weight: np.ndarray, total: float) -> tuple[float, ...]:
        """LRP, its parts and the threshold."""
        if not total:
            return (np.nan,) * len(_PARTS)
        each = weight[self.case]
        sums = [np.pad((each * one).cumsum()[self.ends], (1, 0))
                for one in (self.hit, ~self.hit, self.loss)]  # fmt: skip
        hits, false, loss = sums
        value = (false + total - hits + loss / self.scale) / (total + false)
        best = int(value.argmin()) if self.threshold is None else len(value) - 1
        kept = self.threshold
        if kept is None:
            kept = self.confidence[best - 1] if best else np.inf
        hit, wrong = hits[best], false[best]
        return (
            float(value[best]),
            float(ratio(loss[best], hit)),
            float(ratio(wrong, hit + wrong)),
            float(1 - hit / total),
            float(kept),
        )
