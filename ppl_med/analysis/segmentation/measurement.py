"""Areas and volumes of segmented structures with credible intervals.

The size is counted in every coherent mask and the interval is taken over the masks; adding up
pixel-wise probabilities gives the same mean but says nothing of its spread, because pixels move
together. The interval is equal-tailed, its ends at the ranks (1 - level) / 2 (n + 1) and
(1 + level) / 2 (n + 1) of the n draws: a further draw lies below the k-th smallest with probability
k / (n + 1), so that the interval holds it with probability `level`. Fewer than 2 / (1 - level) - 1
draws do not reach so far out: their interval ends at the smallest and the largest draw, and its
probability, (n - 1) / (n + 1), is the attribute `attained_level`. Draws that share their weights
are alike, so median and interval take one of each draw of the weights.

Where graders drew the structure, coverage is the share of graders whose size lies in the
interval. Predictive draws ("mode" of a latent-variable model, or "draw") should cover at
`attained_level`.

Reference: Hyndman and Fan, "Sample quantiles in statistical packages", The American Statistician
1996, definition 6.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.segmentation.summary import add_draws, case_dataset, describe
from ppl_med.analysis.statistics.draw_ranks import RANKS, attained
from ppl_med.analysis.tree import (
    UNANNOTATED,
    ClassList,
    Draws,
    Posterior,
    check_cases,
    class_indices,
    class_labels,
    class_site,
    count_left_out,
    open_annotations,
    open_draws,
)
from ppl_med.analysis.tree.geometry import pixel_spacing


def sizes(
    tree: Posterior,
    annotations: xr.DataArray | None = None,
    *,
    samples: str = "mode",
    classes: ClassList = None,
    spacing: Sequence[float] | xr.DataArray | str | None = None,
    unit: str = "mm",
    level: float = 0.95,
) -> xr.Dataset:
    """Measure every structure in every draw and give credible intervals.

    Args:
        tree: The tree of `predict`; or ``probs``, or masks (chain, draw, case, row, col).
        annotations: Graders' masks (case, grader, row, col), -1 where not annotated; by default
            those of the tree, if it has any.
        samples: "mode" (argmax of every draw) or "draw" (posterior_predictive/mask).
        classes: Structures to measure; by default all but class 0.
        spacing: Size of a pixel along each image axis, in the order (depth,) row, col; or a
            DataArray (case, axis) where cases differ; or "pixels" to count them. By default that of
            the tree (``spacing`` or ``affine`` of constant_data), in mm, where it has one.
        unit: Unit of ``spacing`` where that is given; areas are in unit^2, volumes in unit^3.
        level: Probability of the interval, in (0, 1); 0.95 takes 39 draws, 0.9 takes 19.

    Returns:
        Dataset with ``size`` (chain, draw, case, class); ``mean``, ``median``, ``lower``, ``upper``
        (case, class), the first with ``mean_mean`` and ``mean_se`` over cases. With annotations
        also ``grader_size`` (case, grader, class), NaN for a grader who left a pixel unannotated
        (the size is not known), and ``covered`` (case, class), the share of graders inside the
        interval, with ``covered_mean``, ``covered_se`` over cases. Attributes ``level`` and
        ``attained_level``, which is lower where there are too few draws.

    Raises:
        TypeError, ValueError: Samples, annotations, classes, spacing or level are malformed.
    """
    checks.inside("level", level)
    draws = open_draws(tree, samples)
    numbers = class_indices(classes, draws)
    graded = _annotations(tree, annotations, draws)
    factor, unit = pixel_size(tree, spacing, unit, draws)
    counts = [_count(masks, numbers) for masks in draws.samples()]
    values = np.array(counts) * factor[:, None, None]
    coords = {"class": class_labels(numbers, draws)}
    figures = {"mean": values.mean(1)}
    result = case_dataset(draws.array, figures, unit, dims=("class",), coords=coords)
    tail = (1 - level) / 2
    for name, quantile in (("median", 0.5), ("lower", tail), ("upper", 1 - tail)):
        found = np.quantile(values[:, draws.apart], quantile, axis=1, method=RANKS)
        result[name] = (("case", "class"), found, {"units": unit})
    result = add_draws(result, "size", values, draws, "class", unit)
    if graded is not None:
        result = _coverage(result, graded, draws, numbers, factor, unit)
        result.attrs |= count_left_out(graded, empty=True)
    reached = attained(level, len(draws.apart))
    return describe(
        result, level=level, attained_level=reached, samples=samples, num_samples=draws.num_samples
    )


def _annotations(
    tree: Posterior, annotations: xr.DataArray | None, draws: Draws
) -> xr.DataArray | None:
    if annotations is None and class_site(tree, "observed_data", ("mask",)) is None:
        return None
    return open_annotations(tree, annotations, draws)


def _count(masks: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return np.stack([(masks == number).sum(-1) for number in numbers], axis=-1)


def pixel_size(
    tree: Posterior,
    spacing: Sequence[float] | np.ndarray | xr.DataArray | str | None,
    unit: str,
    draws: Draws,
) -> tuple[np.ndarray, str]:
    """Return the area or volume of a pixel of every case (case,), and its unit.

    Args:
        tree: What may know it, in mm.
        spacing: As for `sizes`.
        unit: Unit of ``spacing`` where that is given.
        draws: The samples.

    Raises:
        ValueError: ``spacing`` is malformed.
    """
    dimension = len(draws.space)
    known = pixel_spacing(tree, dimension) if spacing is None else None
    if known is not None:
        spacing, unit = known, "mm"
    if spacing is None or isinstance(spacing, str):
        wanted = spacing or "pixels"
        checks.choice("spacing", wanted, ("pixels",), "or give sizes along the image axes")
        return np.ones(draws.num_cases), "pixels"
    if isinstance(spacing, xr.DataArray):
        if set(spacing.dims) != {"case", "axis"}:
            raise ValueError(f"spacing has dimensions {spacing.dims}; expected (case, axis).")
        check_cases(spacing, draws.array, "spacing")
        values = spacing.transpose("case", "axis").values.astype(np.float64)
    else:
        given = np.atleast_2d(np.asarray(spacing, np.float64))
        values = given.repeat(draws.num_cases, 0) if len(given) == 1 else given
    if values.shape[1] != dimension:
        raise ValueError(
            f"spacing holds {values.shape[1]} value(s); the image axes are {draws.space}."
        )
    if not ((values > 0) & np.isfinite(values)).all():
        raise ValueError("spacing must be positive and finite along every axis.")
    return values.prod(1), unit if dimension == 1 else f"{unit}^{dimension}"


def _coverage(
    result: xr.Dataset,
    graded: xr.DataArray,
    draws: Draws,
    numbers: np.ndarray,
    factor: np.ndarray,
    unit: str,
) -> xr.Dataset:
    shape = (graded.sizes["case"], graded.sizes["grader"], len(numbers))
    found = np.full(shape, np.nan)
    for case in range(shape[0]):
        masks = graded.isel(case=case).values.reshape(shape[1], -1)
        inside = draws.inside(slice(case, case + 1))[0]
        complete = (masks[:, inside] != UNANNOTATED).all(1)
        found[case, complete] = _count(masks[complete], numbers) * factor[case]
    lower, upper = result["lower"].values[:, None], result["upper"].values[:, None]
    held = (found >= lower) & (found <= upper)
    number = (~np.isnan(found)).sum(1)
    share = np.divide(held.sum(1), number, out=np.full(number.shape, np.nan), where=number > 0)
    covered = case_dataset(graded, {"covered": share}, "probability", dims=("class",))
    result = result.assign(covered.data_vars)
    result["grader_size"] = (("case", "grader", "class"), found, {"units": unit})
    if "grader" in graded.coords:
        result = result.assign_coords(grader=graded["grader"].variable)
    return result
