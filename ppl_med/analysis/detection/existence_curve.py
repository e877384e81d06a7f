"""Whether the probability that an object is there is what it says.

An object is there where it is paired with a true box of any class at the IoU given; objects choose
by falling p_exists. True objects that nobody has labelled count as false ones, so that a detector
that finds them looks over-confident: read a gap as an upper limit where annotations are incomplete.
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.detection.box_matching import match
from ppl_med.analysis.detection.image_figures import Figures, ImageFigures, ratio
from ppl_med.analysis.detection.open_objects import counted, open_objects
from ppl_med.analysis.statistics.binning import equal_width
from ppl_med.analysis.statistics.shares import share_interval
from ppl_med.analysis.tree import case_units
from ppl_med.checks import inside, whole

_WARNING = "true objects that are not labelled look like over-confidence"


def existence(
    tree: xr.DataTree,
    *,
    bins: int = 10,
    iou: float = 0.5,
    level: float = 0.95,
    group: str | xr.DataArray | None = None,
) -> xr.Dataset:
    """Reliability of the probability that an object is there.

    Args:
        tree: A tree of `objects` with true boxes.
        bins: Number of bins of equal width.
        iou: From which on an object is the true box, in (0, 1).
        level: Probability of the intervals of ``frequency``, which know that objects of one image
            or patient are alike (`statistics.shares`).
        group: What is independent: a column of constant_data, the groups (case), or "case"; None is
            the patient where the tree has such a column, and else the image.

    Returns:
        Dataset over bin: mean ``probability``, ``frequency`` with ``lower`` and ``upper``,
        ``count``, NaN and 0 for an empty bin; ``ece``, ``brier`` (probability^2), the mean
        ``probability_mean`` and ``frequency_mean``, and ``expected_objects`` an image beside
        ``true_objects``.

    Raises:
        TypeError, ValueError: No tree of objects with true boxes, or a malformed argument.
    """
    inside("level", level)
    figures = plan(tree, bins=bins, iou=iou)
    unit, kind = case_units(tree, group, figures.found.array)
    sums = figures.of_units(unit)
    result = figures.dataset()
    _, lower, upper = share_interval(sums["hits"], sums["count"], level)
    result["lower"], result["upper"] = ("bin", lower), ("bin", upper)
    return result.assign_attrs(level=level, unit=kind, num_units=len(sums["count"]))


def plan(tree: xr.DataTree, *, bins: int = 10, iou: float = 0.5) -> ImageFigures:
    """The same without intervals, ready for other weights of the images."""
    whole("bins", bins)
    inside("iou", iou)
    found = open_objects(tree)
    matches = match(found, np.array([iou]), by_class=False, order=found.p_exists).first()
    hit, probability = matches.hit.astype(np.float64), found.p_exists.clip(0, 1)
    place = equal_width(probability, bins)
    shape = (found.num_cases, bins)
    sums = {
        name: counted(found.case, place, shape, values)
        for name, values in (("count", None), ("hits", hit), ("probability", probability))
    }
    square = np.bincount(found.case, (hit - probability) ** 2, found.num_cases)
    true = np.bincount(found.true_case, minlength=found.num_cases)

    def compute(weight: np.ndarray) -> Figures:
        count, hits, given = (weight @ sums[name] for name in ("count", "hits", "probability"))
        number, images = count.sum(), weight.sum()
        return {
            "probability": ratio(given, count),
            "frequency": ratio(hits, count),
            "count": count,
            "ece": ratio(np.abs(hits - given).sum(), number),
            "brier": ratio(weight @ square, number),
            "probability_mean": ratio(given.sum(), number),
            "frequency_mean": ratio(hits.sum(), number),
            "expected_objects": ratio(given.sum(), images),
            "true_objects": ratio(weight @ true, images),
        }

    dims: dict[str, tuple[str, ...]] = dict.fromkeys(
        ("probability", "frequency", "count"), ("bin",)
    )
    singles = ("ece", "brier", "probability_mean", "frequency_mean")
    dims |= dict.fromkeys((*singles, "expected_objects", "true_objects"), ())
    units = dict.fromkeys(("probability", "frequency", *singles), "probability")
    units |= {"brier": "probability^2"}
    attrs = {"bins": bins, "iou": iou, "warning": _WARNING}
    coords = {"bin": np.arange(bins)}
    return ImageFigures(found, compute, dims, coords, attrs, units, sums)
