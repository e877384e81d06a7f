"""Calibration errors of the confidence of objects.

Objects of an image and class take true boxes by falling confidence (`box_matching`). Over bins of
the confidence, with n_b of n objects in bin b,

    dece     sum of n_b / n |precision_b - mean confidence_b|, all classes together
    laece    the same of each class, with precision x mean IoU of the hits in place of precision;
             the mean over classes
    laace    mean of |IoU of the hit, 0 for a false object, - confidence|, likewise

D-ECE asks whether the confidence is the probability of a hit, LaECE whether it is the IoU to be
expected. Throwing objects away makes D-ECE small and helps nobody: compare detectors at thresholds
chosen on other cases by LRP (`thresholds`, `apply_thresholds`). All are positive by chance too.

Sources: Küppers et al., CVPR Workshops 2020, arXiv:2004.13546 (D-ECE); Oksuz, Joy and Dokania, CVPR
2023, arXiv:2307.00934 (LaECE, 25 bins); Kuzucu, Oksuz et al., ECCV 2024, arXiv:2405.20459 (LaACE,
and how to compare).
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.detection.box_matching import match
from ppl_med.analysis.detection.image_figures import Figures, ImageFigures, mean_of_known, ratio
from ppl_med.analysis.detection.open_objects import counted, open_objects
from ppl_med.analysis.statistics.binning import equal_width
from ppl_med.checks import share, whole


def calibration_errors(tree: xr.DataTree, *, bins: int = 25, iou: float = 0.5) -> xr.Dataset:
    """Detection calibration errors, with and without the place of the boxes.

    Args:
        tree: A tree of `objects` with true boxes, better after `apply_thresholds`.
        bins: Number of bins of equal width.
        iou: From which on an object is the true box, in [0, 1); at 0 any overlap will do, and LaECE
            is LaECE_0.

    Returns:
        Dataset of ``dece``, ``laece``, ``laace`` and, of every class, ``laece_per_class``,
        ``laace_per_class``, ``precision``, ``mean_iou`` of the hits, ``mean_confidence`` and
        ``count`` (class). NaN for a class without objects.

    Raises:
        TypeError, ValueError: No tree of objects with true boxes, or a malformed argument.
    """
    return plan(tree, bins=bins, iou=iou).dataset()


def plan(tree: xr.DataTree, *, bins: int = 25, iou: float = 0.5) -> ImageFigures:
    """The same, ready for other weights of the images."""
    whole("bins", bins)
    share("iou", iou)
    found = open_objects(tree)
    matches = match(found, np.array([iou])).first()
    place = equal_width(found.confidence.clip(0, 1), bins)
    shape = (found.num_cases, found.num_classes)
    cells = (found.num_cases, found.num_classes * bins)
    hit = matches.hit.astype(np.float64)
    gaps = [counted(found.case, found.label * bins + place, cells, outcome - found.confidence)
            for outcome in (hit, matches.iou)]  # fmt: skip
    distance = np.abs(matches.iou - found.confidence)
    number, hits, ious, confidence, distances = (
        counted(found.case, found.label, shape, values)
        for values in (None, hit, matches.iou, found.confidence, distance)
    )

    def compute(weight: np.ndarray) -> Figures:
        pooled, placed = (
            (weight @ one).reshape(found.num_classes, bins) for one in gaps
        )  # fmt: skip
        count = weight @ number
        laece = ratio(np.abs(placed).sum(1), count)
        laace = ratio(weight @ distances, count)
        return {
            "dece": ratio(np.abs(pooled.sum(0)).sum(), count.sum()),
            "laece": mean_of_known(laece),
            "laace": mean_of_known(laace),
            "laece_per_class": laece,
            "laace_per_class": laace,
            "precision": ratio(weight @ hits, count),
            "mean_iou": ratio(weight @ ious, weight @ hits),
            "mean_confidence": ratio(weight @ confidence, count),
            "count": count,
        }

    names = ("laece_per_class", "laace_per_class", "precision", "mean_iou", "mean_confidence",
             "count")  # fmt: skip
    dims: dict[str, tuple[str, ...]] = dict.fromkeys(names, ("class",))
    dims |= dict.fromkeys(("dece", "laece", "laace"), ())
    kept = tree.attrs.get("thresholds", "none: all objects of the tree count")
    attrs = {"bins": bins, "iou": iou, "thresholds": kept}
    return ImageFigures(found, compute, dims, {"class": found.names}, attrs, {})
