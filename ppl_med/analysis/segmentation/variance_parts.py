"""How much of the spread of sampled masks is between raters, and how much between weights.

`predict` with ``samples=S`` draws S masks with each of W draws of the weights. Masks with the same
weights differ as raters do, in the model's belief; means over them differ as far as the weights are
not known. With y the indicator of a class in a pixel, or the size of the class,

    between_raters     variance of y between masks with the same weights          aleatoric
    between_weights    variance between draws of the weights of the mean of y     epistemic
    between_all        their sum: the variance of one mask under one draw

by the law of total variance. More training cases make the second small and not the first. Both are
unbiased: the variance between W means is less the noise that S masks leave in each (one-way
analysis of variance, `ppl_med.analysis.statistics.one_way`). So ``between_weights`` may be negative
where it is small; it is given as it is, for means over pixels and cases to be right. The part that
S masks leave is large where raters differ much and S is small; more draws and more samples both
make ``between_weights`` sharper.

``<name>_mcse`` is the error from the number of draws of the weights, which are shared by all cases:
a jackknife over them, with chains as random effects (`ppl_med.analysis.statistics.monte_carlo`),
NaN below three functions. ``<name>_mean_se`` is that of a mean over cases, or over patients.

Sources: Kendall and Gal, NeurIPS 2017, for the two kinds; Searle, Casella and McCulloch, Variance
Components, Wiley 1992, chapter 3.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr

from ppl_med.analysis.segmentation.measurement import pixel_size
from ppl_med.analysis.segmentation.summary import describe
from ppl_med.analysis.statistics import monte_carlo, one_way
from ppl_med.analysis.statistics.case_means import over_cases
from ppl_med.analysis.statistics.weight_draws import function_numbers, own_means, weights_of
from ppl_med.analysis.tree import (
    ClassList,
    Draws,
    Posterior,
    case_coords,
    case_units,
    class_indices,
    class_labels,
    find_group,
    open_draws,
)
from ppl_med.axes import SAMPLES

NAMES = ("between_raters", "between_weights", "between_all")
_BLOCK_NUMBERS = 2**23  # of an indicator (sample, pixel), float64
_FIX = "call predict(model, guide, batches, draws=16, samples=8)"
_LOCAL = "of each case"  # in the attribute draws_of, what differs beside the weights


def rater_and_weight_variance(
    tree: Posterior,
    *,
    samples: str = "mode",
    classes: ClassList = None,
    spacing: Sequence[float] | xr.DataArray | str | None = None,
    unit: str = "mm",
    group: str | xr.DataArray | None = None,
) -> xr.Dataset:
    """Split the variance of sampled masks into that between raters and that between weights.

    Args:
        tree: The tree of `predict` with several ``samples``; or its ``probs``, or masks (chain,
            draw, case, row, col) with the coordinate ``weights`` (draw).
        samples: "mode" (argmax of every sample) or "draw" (posterior_predictive/mask), whose noise
            per pixel counts among the raters.
        classes: Classes to split; by default all but class 0.
        spacing: Size of a pixel along each image axis, in the order (depth,) row, col; or a
            DataArray (case, axis); or "pixels" to count them. By default that of the tree, in mm,
            where it has one.
        unit: Unit of ``spacing`` where that is given.
        group: What cases have in common in an error over them, such as "patient": a column of
            constant_data, or the groups (case); None for the patient where that is known, and
            "case" for every case by itself.

    Returns:
        Dataset with, for each name of ``between_raters``, ``between_weights``, ``between_all``:
        maps ``<name>`` (case, class, row, col), probability^2, float32; ``<name>_per_case`` (case,
        class), the mean over pixels; ``size_<name>`` (case, class), of the size of the class, in
        the squared unit of the size (pixels^2, or mm^4 of an area); each with ``_mcse``. Of the
        last two means over cases too, ``<name>_mean`` and ``size_<name>_mean`` (class), with
        ``_mcse`` from the draws and ``_se`` over cases or groups; NaN for one. Behind the end of a
        case that is smaller than others maps are NaN, and count in no mean.

    Raises:
        TypeError, ValueError: Masks, classes, spacing or groups are malformed; one sample per draw
            of the weights, or unequal numbers of them; one draw of the weights, or a point
            estimate; a model without latents of a case, whose masks with the same weights are
            copies.
    """
    draws = open_draws(tree, samples)
    if draws.array.dtype.kind != "f":  # equal masks may be drawn by chance
        draws = open_draws(tree, samples, copies=True)
    order, chains = _table(tree, draws)
    numbers = class_indices(classes, draws)
    factor, size_unit = pixel_size(tree, spacing, unit, draws)
    units, of = case_units(tree, group, draws.array)
    shape = (draws.num_cases, len(numbers))
    maps = np.full((2, len(NAMES), *shape, draws.num_pixels), np.nan, np.float32)
    pixels, size = np.empty((2, len(NAMES), len(order), *shape))
    for case, masks in enumerate(draws.samples()):
        inside = draws.inside(slice(case, case + 1))[0]
        for index, number in enumerate(numbers):
            added = np.zeros((len(NAMES), len(order)))
            for run, found in _indicators(masks[order], int(number), inside):
                added += found.sum(-1)
                estimate, error = _figures(found, chains)
                maps[:, :, case, index, run] = estimate, error
            pixels[:, :, case, index] = added / inside.sum()
            counted = (masks[order][..., inside] == number).sum(-1) * factor[case]
            size[:, :, case, index] = one_way.influences(counted)
    coords = {**case_coords(draws.array, *draws.space), "class": class_labels(numbers, draws)}
    result = xr.Dataset(coords=coords)
    space = ("case", "class", *draws.space)
    for index, name in enumerate(NAMES):
        for suffix, values in zip(("", "_mcse"), maps, strict=True):
            whole = values[index].reshape(*shape, *draws.shape)
            result[name + suffix] = (space, whole, {"units": "probability^2"})
        result = result.assign(_per_case(name, pixels[index], chains, units, "probability^2"))
        own = _per_case(f"size_{name}", size[index], chains, units, f"({size_unit})^2")
        result = result.assign(own)
    result = result.rename({f"size_{name}_per_case": f"size_{name}" for name in NAMES})
    result = result.rename({f"size_{name}_per_case_mcse": f"size_{name}_mcse" for name in NAMES})
    return describe(
        result,
        samples=samples,
        num_weight_draws=len(order),
        samples_per_draw=order.shape[1],
        mcse="jackknife over draws of the weights, with chains as random effects",
        errors_over=of,
    )


def _table(tree: Posterior, draws: Draws) -> tuple[np.ndarray, int]:
    """Positions of the samples (draw of the weights, sample), chain by chain, and the chains.

    Raises:
        ValueError: Raters and weights cannot be told apart.
    """
    functions = function_numbers(draws.array)
    _check_shared(tree, draws.array)
    told = str(draws.array.attrs.get("draws_of", f"weights; {_LOCAL}"))
    if _LOCAL not in told:
        raise ValueError(
            f"The model draws {told} and nothing of each case: its masks with the same weights are "
            "one mask, and it says nothing of raters. Use a model with a latent of each case, such "
            "as CategoricalDiffusion, or uncertainty.variance."
        )
    chains = draws.array.sizes["chain"]
    if told.startswith(_LOCAL) or _is_point(tree):
        functions = np.repeat(np.arange(chains), draws.array.sizes["draw"])
        if chains == 1:
            raise ValueError(
                "All draws of the tree have the same weights (a point estimate, or weights without "
                "a prior), so nothing lies between weights. Predict with a guide that has a spread "
                "over random weights, or an Ensemble."
            )
    names, counts = np.unique(functions, return_counts=True)
    if counts.max() == 1:
        raise ValueError(
            "tree has one sample of each draw of the weights (or copies of one), so what differs "
            f"between raters and what between weights cannot be told apart; {_FIX}."
        )
    if len(names) == 1:
        raise ValueError(
            "tree has one draw of the weights, so nothing is known of what differs between them; "
            f"{_FIX}."
        )
    if counts.min() < counts.max():
        raise ValueError(
            f"tree has {counts.min()} to {counts.max()} samples of a draw of the weights; choose "
            "draws so that all have equally many."
        )
    return np.argsort(functions, kind="stable").reshape(len(names), -1), chains


def _is_point(tree: Posterior) -> bool:
    """Whether summaries of the weights, where there are any, are equal in all draws of a chain."""
    known = _summaries(tree)
    return bool(known) and all(bool((a == a.isel(draw=0)).all()) for a in known)


def _check_shared(tree: Posterior, array: xr.DataArray) -> None:
    """Raise where summaries of the weights differ between draws that are said to share them."""
    for one in _summaries(tree):
        if one.sizes["draw"] != array.sizes["draw"] or weights_of(one) is None:
            continue
        if bool((own_means(one) != one).any()):
            raise ValueError(
                f"{one.name} differs between draws of which the coordinate weights says that they "
                "share their weights, as where chains were made one; pass the tree of predict."
            )


def _summaries(tree: Posterior) -> list[xr.DataArray]:
    group = find_group(tree, "posterior")
    known = [a for a in group.values() if {*SAMPLES} <= set(a.dims) and "case" not in a.dims]
    return [array.load() for array in known]


def _indicators(
    masks: np.ndarray, number: int, inside: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield runs of pixels of the case itself, and influences (component, weights, pixel) there."""
    own = np.flatnonzero(inside)
    step = max(1, _BLOCK_NUMBERS // (masks.shape[0] * masks.shape[1]))
    for start in range(0, len(own), step):
        run = own[start : start + step]
        yield run, one_way.influences((masks[..., run] == number).astype(np.float64))


def _figures(influence: np.ndarray, chains: int) -> tuple[np.ndarray, np.ndarray]:
    """Estimates and errors (component, ...) from influences (component, weights, ...)."""
    groups = influence.shape[1]
    split = influence.reshape(len(influence), chains, groups // chains, *influence.shape[2:])
    rest = [f"dim_{axis}" for axis in range(influence.ndim - 2)]
    array = xr.DataArray(split, dims=("component", *SAMPLES, *rest))
    error = monte_carlo.standard_error(array.transpose(*SAMPLES, "component", ...)).values
    return influence.mean(1), error if groups > 2 else np.full(error.shape, np.nan)


def _per_case(
    name: str, influence: np.ndarray, chains: int, units: np.ndarray, unit: str
) -> dict[str, xr.Variable]:
    """A component of every case and its mean over cases, from influences (weights, case, class)."""
    estimate, error = (one[0] for one in _figures(influence[None], chains))
    mean, mean_error = (one[0] for one in _figures(influence.mean(1)[None], chains))
    spread = over_cases(xr.DataArray(estimate, dims=("case", "class")), units)
    dims, attrs = ("case", "class"), {"units": unit}
    return {
        f"{name}_per_case": xr.Variable(dims, estimate, attrs),
        f"{name}_per_case_mcse": xr.Variable(dims, error, attrs),
        f"{name}_mean": xr.Variable(("class",), mean, attrs),
        f"{name}_mean_mcse": xr.Variable(("class",), mean_error, attrs),
        f"{name}_mean_se": xr.Variable(("class",), spread.values, attrs),
    }
