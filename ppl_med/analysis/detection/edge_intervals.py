"""Whether the edges of true boxes lie in the intervals predicted for them.

Of objects that are paired with a true box of any class at the IoU given; objects choose by falling
p_exists. All figures are of found objects alone: what is missed has no edges, so that coverage says
nothing of a detector that finds little. Objects of an image or patient are alike: standard errors
are over those.

    interval_score    width + (2 / alpha) distance of the true edge outside, alpha = 1 - level

Source: Gneiting and Raftery, JASA 102, 2007, section 6.2.
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.detection.box_matching import match
from ppl_med.analysis.detection.image_figures import Figures, ImageFigures, ratio
from ppl_med.analysis.detection.open_objects import object_group, open_objects
from ppl_med.analysis.statistics.case_means import ratio_error
from ppl_med.analysis.statistics.shares import share_interval
from ppl_med.analysis.tree import case_units
from ppl_med.axes import EDGES
from ppl_med.checks import inside, reject, share

_VARIANCES = ("edge_epistemic", "edge_aleatoric")
_MEANS = ("width", "interval_score", "squared_error", "variance")


def edge_coverage(
    tree: xr.DataTree,
    *,
    iou: float = 0.5,
    threshold: float = 0.0,
    confidence: float = 0.95,
    group: str | xr.DataArray | None = None,
) -> xr.Dataset:
    """Share of true edges inside the intervals of the objects that found them.

    Args:
        tree: A tree of `objects` with true boxes; its attribute ``level`` is that of the intervals.
        iou: From which on an object is the true box, in (0, 1).
        threshold: Least p_exists of the objects that count, in [0, 1).
        confidence: Probability of the intervals of the shares.
        group: What is independent: a column of constant_data, the groups (case), or "case"; None is
            the patient where the tree has such a column, and else the image.

    Returns:
        Dataset over edge: ``coverage`` with ``coverage_se``, ``coverage_lower``,
        ``coverage_upper``; ``width`` and ``interval_score`` (pixels) with ``_se``;
        ``squared_error`` of the mean beside ``variance``, the predicted total (pixels^2). Of all
        four edges at once ``all_edges`` with ``all_edges_se``, ``_lower``, ``_upper``. The
        attribute ``num_matched`` counts the objects, ``level`` is what one edge should attain.
        NaN where nothing was found.

    Raises:
        TypeError, ValueError: No tree of objects with true boxes, or a malformed argument.
    """
    inside("confidence", confidence)
    figures = plan(tree, iou=iou, threshold=threshold)
    unit, kind = case_units(tree, group, figures.found.array)
    sums = figures.of_units(unit)
    result = figures.dataset()
    number = sums["number"][:, None]
    for name, held in (("coverage", sums["coverage"]), ("all_edges", sums["all_edges"][:, None])):
        count = np.broadcast_to(number, held.shape)
        _, lower, upper = share_interval(held, count, confidence)
        ends = {"se": ratio_error(held, count), "lower": lower, "upper": upper}
        for end, values in ends.items():
            array = result[name].copy(data=values.reshape(result[name].shape))
            result[f"{name}_{end}"] = array
    for name in ("width", "interval_score"):
        error = ratio_error(sums[name], number)
        result[f"{name}_se"] = ("edge", error, {"units": "pixels"})
    about = {"confidence": confidence, "unit": kind, "num_units": len(number)}
    return result.assign_attrs(about)


def plan(tree: xr.DataTree, *, iou: float = 0.5, threshold: float = 0.0) -> ImageFigures:
    """The same without errors, ready for other weights of the images."""
    inside("iou", iou)
    share("threshold", threshold)
    found = open_objects(tree, "edge_lower", "edge_upper", *_VARIANCES)
    level = tree.attrs.get("level", object_group(tree).attrs.get("level"))
    if level is None:
        reject("tree", "one whose attribute 'level' is that of edge_lower and edge_upper", level)
    alpha = 1 - inside("tree.attrs['level']", level)
    matches = match(found, np.array([iou]), by_class=False, order=found.p_exists).first()
    rows = np.flatnonzero(matches.hit & (found.p_exists >= threshold))
    true = found.true_box[matches.true[rows]]
    lower, upper = (found.others[name][rows] for name in ("edge_lower", "edge_upper"))
    if (lower > upper).any():
        reject("objects/edge_lower", "at most edge_upper", f"{int((lower > upper).sum())} above it")
    outside = (lower - true).clip(0) + (true - upper).clip(0)
    case = found.case[rows]
    each = {
        "coverage": outside == 0,
        "width": upper - lower,
        "interval_score": upper - lower + 2 / alpha * outside,
        "squared_error": (found.box[rows] - true) ** 2,
        "variance": sum(found.others[name][rows] for name in _VARIANCES),
        "all_edges": (outside == 0).all(1),
    }
    sums = {name: _summed(case, np.asarray(one, float), found.num_cases)
            for name, one in each.items()}  # fmt: skip
    sums["number"] = np.bincount(case, minlength=found.num_cases).astype(np.float64)

    def compute(weight: np.ndarray) -> Figures:
        number = weight @ sums["number"]
        return {name: ratio(weight @ sums[name], number) for name in each}

    dims: dict[str, tuple[str, ...]] = dict.fromkeys(("coverage", *_MEANS), ("edge",))
    dims["all_edges"] = ()
    units = dict.fromkeys(("width", "interval_score"), "pixels")
    units |= dict.fromkeys(("squared_error", "variance"), "pixels^2")
    attrs = {"iou": iou, "threshold": threshold, "level": level, "num_matched": int(rows.size)}
    return ImageFigures(found, compute, dims, {"edge": list(EDGES)}, attrs, units, sums)


def _summed(case: np.ndarray, values: np.ndarray, num_cases: int) -> np.ndarray:
    total = np.zeros((num_cases, *values.shape[1:]))
    np.add.at(total, case, values)
    return total
