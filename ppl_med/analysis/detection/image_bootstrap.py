"""Intervals of figures of boxes, and of their differences, by drawing images again.

Images, or whole patients, are the independent units: thirty cells of one image are not thirty
draws. Objects are paired with true boxes once; a resample gives images other weights. Two detectors
on the same images are compared on the same resamples, so that what makes an image hard for both
does not widen the interval of the difference.

Source: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from ppl_med.analysis.detection import (
    confidence_errors,
    edge_intervals,
    existence_curve,
    free_response,
    localisation_recall,
    mean_precision,
    spatial_quality,
)
from ppl_med.analysis.detection.image_figures import Figures, ImageFigures
from ppl_med.analysis.statistics.group_resampling import FEWEST, group_weights, spread
from ppl_med.analysis.tree import case_units, check_cases
from ppl_med.checks import choice, inside, whole

_PLANS: dict[str, Callable[..., ImageFigures]] = {
    "average_precision": mean_precision.plan,
    "calibration_errors": confidence_errors.plan,
    "edge_coverage": edge_intervals.plan,
    "existence": existence_curve.plan,
    "froc": free_response.plan,
    "lrp": localisation_recall.plan,
    "pdq": spatial_quality.plan,
}


def bootstrap(
    metric: str,
    tree: xr.DataTree,
    other: xr.DataTree | None = None,
    *,
    resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
    group: str | xr.DataArray | None = None,
    **options: Any,
) -> xr.Dataset:
    """Figures with intervals over images, of one detector or of the difference of two.

    Args:
        metric: Name of a function of `ppl_med.analysis.detection`: "average_precision",
            "calibration_errors", "edge_coverage", "existence", "froc", "lrp" or "pdq". Thresholds
            chosen inside "lrp" are chosen anew in every resample.
        tree: A tree of `objects` with true boxes.
        other: A tree of another detector on the same images.
        resamples: How often images are drawn.
        level: Probability of the percentile intervals, in (0, 1).
        seed: Seed of the draws.
        group: What is drawn: a column of constant_data, the groups (case), or "case"; None is the
            patient where the tree has such a column, and else the image.
        options: Of the metric.

    Returns:
        Dataset with every figure of the metric, and for all but thresholds ``<name>_se``,
        ``<name>_lower``, ``<name>_upper``; with ``other`` also ``<name>_other`` and
        ``<name>_difference`` (tree - other) with its ``_se``, ``_lower``, ``_upper``. Resamples
        without the figure do not count.
        Calibration errors are positive by chance, and more so in resamples: read their differences.

    Raises:
        TypeError, ValueError: No trees of objects, fewer than 5 groups, other images or true boxes
            in ``other``, or a malformed argument.
    """
    choice("metric", metric, _PLANS)
    whole("resamples", resamples, 20)
    inside("level", level)
    plans = [_PLANS[metric](tree, **options)]
    if other is not None:
        plans.append(_PLANS[metric](other, **options))
        _check_same_truth(*plans)
    unit, kind = case_units(tree, group, plans[0].found.array)
    number = int(unit.max(initial=-1)) + 1
    if number < FEWEST:
        raise ValueError(
            f"tree has {number} different {kind}(s) in {len(unit)} case(s); an error over them "
            f"needs {FEWEST} or more, and is worth something from 20 on."
        )
    results = [one.dataset() for one in plans]
    drawn: list[list[Figures]] = [[] for _ in plans]
    for weight in group_weights(number, int(resamples), seed):
        for found, one in zip(drawn, plans, strict=True):
            found.append(one.compute(weight[unit]))
    result = results[0].copy()
    for name, dims in plans[0].dims.items():
        if name == "threshold":  # no figure of quality, and infinite where nothing is kept
            continue
        stacks = [np.stack([figures[name] for figures in one]) for one in drawn]
        attrs = results[0][name].attrs
        _put(result, name, dims, spread(stacks[0], level), attrs)
        if other is None:
            continue
        result[f"{name}_other"] = results[1][name].drop_vars(list(results[1][name].coords))
        gap = results[0][name].values - results[1][name].values
        result[f"{name}_difference"] = (dims, gap, attrs)
        _put(result, f"{name}_difference", dims, spread(stacks[0] - stacks[1], level), attrs)
    own = {"metric": metric, "resamples": int(resamples), "level": level}
    return result.assign_attrs(own, unit=kind, num_units=number)


def _put(
    result: xr.Dataset, name: str, dims: tuple[str, ...], parts: tuple[Any, ...], attrs: Any
) -> None:
    for end, values in zip(("se", "lower", "upper"), parts, strict=True):
        result[f"{name}_{end}"] = (dims, values, attrs)


def _check_same_truth(first: ImageFigures, second: ImageFigures) -> None:
    one, two = first.found, second.found
    check_cases(two.array, one.array, "other", "tree")
    same = one.names == two.names and all(
        np.array_equal(getattr(one, name), getattr(two, name))
        for name in ("true_case", "true_label", "true_box")
    )
    if not same:
        raise ValueError(
            "other must have the classes and true boxes of tree, image by image; predict both on "
            "the same batches"
        )
