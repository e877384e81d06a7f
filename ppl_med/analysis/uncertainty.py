"""Predictive uncertainty and its split into a data part and a model part.

With p_s the class probabilities of draw s and p their mean over draws (and chains):

    entropy    H(p)              =  mean H(p_s)          +  mutual information     nats
    variance   total             =  mean p_s (1 - p_s)   +  variance of p_s        per class
               predictive/total     expected/aleatoric      epistemic

Both identities hold exactly for any number of draws. The variance over n functions has the divisor
n - 1: it is unbiased, and the total exceeds p (1 - p) by 1/n of the epistemic part. Every figure
carries its Monte Carlo standard error over draws, ``<name>_mcse``: see
`ppl_med.analysis.statistics.monte_carlo`. The influence of draw s is given beside each figure
below; where it vanishes for all draws (H at a uniform p) the
error is of second order and the one reported is not smaller than it on average.
The epistemic part is that of all that differs between draws: the weights, and in a model with a
latent code or noise of each case that too, as another observer or another outline of the same case
is. The two are not told apart; ``attrs["epistemic_of"]`` of the result names them. Of masks they
are by `segmentation.rater_and_weight_variance`, given several samples of each draw of the weights,
which count once in the errors here (`ppl_med.analysis.statistics.weight_draws`). Draws under
several augmentations are split by `ppl_med.analysis.augmentation`.
The plug-in mutual information of S draws is too small by a share of about 1/S; that bias is
not part of the standard error.

Lazy trees are read in runs of cases and may be larger than the memory.
"""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from ppl_med.analysis.statistics import compiled, monte_carlo
from ppl_med.analysis.statistics.case_means import over_cases
from ppl_med.analysis.statistics.entropies import (
    Entropies,
    compiled_entropies,
    draw_entropies,
    logarithm,
)
from ppl_med.analysis.statistics.total_variance import Figures, variance_figures
from ppl_med.analysis.statistics.weight_draws import num_functions, weights_of
from ppl_med.analysis.tree import (
    Block,
    Classes,
    Posterior,
    find_distribution,
    join_blocks,
    open_classes,
    split_blocks,
)
from ppl_med.axes import SAMPLES

__all__ = ["entropy", "summary", "variance"]

_POINT = "epistemic parts are 0 by construction: all draws are the same function"


def entropy(tree: Posterior, *, mcse: bool = True) -> xr.Dataset:
    """Split the predictive entropy into expected entropy and mutual information.

    Args:
        tree: The tree of `predict`, or its ``probs`` (chain, draw, case, class, ...).
        mcse: Add standard errors. A single draw has none: pass False for a point estimate.

    Returns:
        Dataset over (case, ...): ``predictive_entropy``, ``expected_entropy``,
        ``mutual_information`` in nats, ``variation_ratio`` (share of the draws that do not
        vote for the most voted class, where a draw in which classes tie splits its vote; a
        probability), and ``<name>_mcse`` for each.

    Raises:
        ValueError: ``probs`` is malformed, or one draw with ``mcse=True``.

    Source: Gal, Uncertainty in Deep Learning, 2016, section 3.3; Houlsby et al.,
    arXiv:1112.5745. The variation ratio is Freeman's, of the mode of the votes.
    """
    probs = _open(tree, mcse)
    return _join(_entropy_parts(probs), probs.array, mcse, probs)


def _entropy_parts(probs: Classes) -> Iterator[tuple[Block, Figures, bool]]:
    if not probs.compiles:
        for block, part in probs.blocks():
            yield block, entropy_figures(part), monte_carlo.all_equal(part)
        return
    for block, values, mean in probs.means():
        entry = probs.array.isel(block).isel({"class": 0}, drop=True)
        log_mean = mean.copy(data=logarithm(mean.values))
        found, equal = compiled_entropies(values, log_mean.values, entry)
        yield block, _entropy_figures(mean, log_mean, found), equal


def entropy_figures(probs: xr.DataArray) -> Figures:
    """Return the figures of `entropy` with their influences, of draws as they are.

    Args:
        probs: Probabilities (chain, draw, case, class, ...), float64, checked.
    """
    mean = monte_carlo.mean(probs)
    log_mean = mean.copy(data=logarithm(mean.values))
    return _entropy_figures(mean, log_mean, draw_entropies(probs, log_mean.values))


def _entropy_figures(mean: xr.DataArray, log_mean: xr.DataArray, found: Entropies) -> Figures:
    # The same logarithm for both, and sums before differences: of equal draws exactly 0.
    divergence = found.cross - found.own
    return {  # name: (figure, influence of a draw, unit)
        # d H(p) / d p_k = -log p_k - 1, and the constant drops out as p sums to one
        "predictive_entropy": (-(mean * log_mean).sum("class"), found.cross, "nats"),
        "expected_entropy": (found.own.mean(SAMPLES), found.own, "nats"),
        # the mutual information is the mean of KL(p_s, p), so it is its own influence
        "mutual_information": (divergence.mean(SAMPLES).clip(min=0), divergence, "nats"),
        "variation_ratio": (found.dissent.mean(SAMPLES), found.dissent, "probability"),
    }


def variance(tree: Posterior, *, mcse: bool = True) -> xr.Dataset:
    """Split the variance of the predicted class indicator, class by class, or of a number.

    Args:
        tree: The tree of `predict`, its posterior group, or ``probs`` (chain, draw, case, class,
            ...). A group without ``probs`` is one of numbers: ``loc`` and ``scale`` or
            ``variance`` (chain, draw, case, ...).
        mcse: Add standard errors. A single draw has none: pass False for a point estimate.

    Returns:
        Dataset over (case, class, ...): ``aleatoric``, ``epistemic`` and their sum ``total``,
        squared probabilities, and ``<name>_mcse`` for each. For numbers over
        (case, ...), in the unit of the value, squared.

    Raises:
        ValueError: ``probs`` is malformed, or one draw with ``mcse=True``.

    Sources: Kwon, Won, Kim and Paik, Uncertainty quantification using Bayesian neural networks
    in classification, CSDA 142, 2020: the diagonal of their equation for the two covariances.
    Numbers: Kendall and Gal, NeurIPS 2017, eq. 9.
    """
    group = find_distribution(tree)
    if group is not None:
        if mcse:
            drawn = find_distribution(tree, copies=True)
            assert drawn is not None
            monte_carlo.require_draws(drawn)
        return _join(_number_parts(group), group[_number_names(group)[0]], mcse)
    probs = _open(tree, mcse)
    parts = (
        (block, probability_figures(part), monte_carlo.all_equal(part))
        for block, part in probs.blocks()
    )
    return _join(parts, probs.array, mcse, probs)


def summary(tree: Posterior, *, mcse: bool = True) -> xr.Dataset:
    """Average `variance` over cases: one figure per model, and one per class.

    Args:
        tree: The tree of `predict`, or its ``probs`` (chain, draw, case, class, ...).
        mcse: Add standard errors. A single draw has none: pass False for a point estimate.

    Returns:
        Dataset of scalars ``aleatoric``, ``epistemic``, ``total``: mean over cases (of maps the
        mean over the pixels of each case first) and mean (not sum) over classes;
        ``<name>_per_class`` (class); for both
        ``_mcse`` (error from the number of draws; draws are shared by all cases) and ``_se``
        (error from the number of cases; NaN for one case).

    Raises:
        ValueError: ``probs`` is malformed, or one draw with ``mcse=True``.
    """
    figures = {}
    spread = {}
    probs = _open(tree, mcse)
    means, equal = _means(probs)
    for name, (figure, influence) in means.items():
        for suffix, over in (("", ["class"]), ("_per_class", [])):
            per_case = figure.mean(over)
            unit = "probability^2, class mean" if over else "probability^2"
            figures[name + suffix] = (per_case.mean("case"), influence.mean(over), unit)
            spread[f"{name}{suffix}_se"] = _case_error(per_case)
    draws = influence.assign_attrs(probs.array.attrs)
    result = _describe(_dataset(figures, mcse), draws, mcse, equal).assign(spread)
    result.attrs["reduction"] = "mean over cases; without _per_class also mean over classes"
    return result


def _means(
    probs: Classes,
) -> tuple[dict[str, tuple[xr.DataArray, xr.DataArray]], bool]:
    """Means over pixels of each variance (case, class) and, over cases too, of its influence.

    Also whether all draws are equal.
    """
    cases, classes = probs.array.shape[2:4]
    per_case: dict[str, np.ndarray] = {}
    total: dict[str, xr.DataArray] = {}
    equal, number = True, _pixels_per_case(probs)
    most = int(number.max())
    fast = probs.compiles and weights_of(probs.array) is None
    for block, sums, same in _compiled_sums(probs) if fast else _sums(probs, number):
        equal = equal and same
        for name, (rows, added) in sums.items():
            per_case.setdefault(name, np.zeros((cases, classes)))[block["case"]] += rows
            total[name] = total[name] + added if name in total else added
    per_case["total"] = per_case["aleatoric"] + per_case["epistemic"]
    total["total"] = total["aleatoric"] + total["epistemic"]
    template = probs.array.isel(dict.fromkeys((*SAMPLES, *probs.array.dims[4:]), 0), drop=True)
    return {
        name: (template.copy(data=rows / number.values[:, None]), total[name] / (most * cases))
        for name, rows in per_case.items()
    }, equal


_Sums = Iterator[tuple[Block, dict[str, tuple[np.ndarray, xr.DataArray]], bool]]


def _sums(probs: Classes, number: xr.DataArray) -> _Sums:
    """Sums of each variance over the pixels of a block, and of its influence over cases too.

    The latter count as much in a case of few pixels (``number``) as in one of many. Also whether
    all draws are equal.
    """
    most = int(number.max())
    for block, part in probs.blocks():
        inside, found = probs.inside(block), {}
        for name, influence in _variance_parts(part).items():
            figure = influence.mean(SAMPLES, skipna=False)
            inner = list(figure.dims[2:])
            if inside is not None:
                figure, influence = (one.where(inside, 0.0) for one in (figure, influence))
            weight = most / number.isel(case=block["case"])  # 1, but in smaller cases
            weighted = influence * weight if weight.max() > 1 else influence
            rows = figure.sum(inner, skipna=False).values
            found[name] = rows, weighted.sum(["case", *inner], skipna=False)
        yield block, found, monte_carlo.all_equal(part)


def _compiled_sums(probs: Classes) -> _Sums:
    """As `_sums`, of draws with weights of their own and without pixels."""
    draws, number = probs.array.isel(case=0, drop=True), int(np.prod(probs.num_samples))
    factors = {"aleatoric": 1.0, "epistemic": number / max(number - 1, 1)}
    for block, values, mean in probs.means():
        rows, added, equal = compiled.variance_sums(values, mean.values)
        found = {
            name: (
                factor * rows[at] / number,
                draws.copy(data=factor * added[at].reshape(draws.shape)),
            )
            for at, (name, factor) in enumerate(factors.items())
        }
        yield block, found, equal


def _pixels_per_case(probs: Classes) -> xr.DataArray:
    """Pixels (case) of every case, without what a smaller one is filled up with."""
    inside, pixels = probs.inside(), probs.array.dims[4:]
    if inside is not None:
        return inside.sum(pixels).reset_coords(drop=True).drop_vars("case", errors="ignore")
    count = int(np.prod(probs.array.shape[4:], dtype=int))
    return xr.DataArray(np.full(probs.sizes["case"], count), dims="case")


def probability_figures(probs: xr.DataArray) -> Figures:
    """Return the figures of `variance` with their influences; as `entropy_figures`."""
    named = _variance_parts(probs)
    named["total"] = named["aleatoric"] + named["epistemic"]
    return {
        name: (influence.mean(SAMPLES, skipna=False), influence, "probability^2")
        for name, influence in named.items()
    }


def _variance_parts(probs: xr.DataArray) -> dict[str, xr.DataArray]:
    """What every draw adds to the two parts of the variance (chain, draw, case, class, ...)."""
    aleatoric = 1 - probs
    aleatoric *= probs  # in place, for it is as large as the draws
    return {"aleatoric": aleatoric, "epistemic": monte_carlo.variance_influence(probs)}


def _number_names(group: xr.Dataset) -> list[str]:
    return [name for name in ("loc", "mean", "scale", "variance") if name in group]


def _number_parts(group: xr.Dataset) -> Iterator[tuple[Block, Figures, bool]]:
    names = _number_names(group)
    sizes = dict(group[names[0]].transpose("case", ...).sizes)
    per_entry = sizes.pop("chain") * sizes.pop("draw")
    for block in split_blocks({str(dim): size for dim, size in sizes.items()}, per_entry):
        figures, location = variance_figures(group[names], block)
        yield block, figures, monte_carlo.all_equal(location)


def _open(tree: Posterior, mcse: bool) -> Classes:
    if mcse:
        monte_carlo.require_draws(open_classes(tree, copies=True).array)
    return open_classes(tree)


def _case_error(per_case: xr.DataArray) -> xr.DataArray:
    error = over_cases(per_case)
    known = per_case.sizes["case"] > 1
    return error.assign_attrs(note="standard error over cases") if known else error


def _join(
    parts: Iterator[tuple[Block, Figures, bool]],
    draws: xr.DataArray,
    mcse: bool,
    source: Classes | None = None,
) -> xr.Dataset:
    """Put the figures of all blocks together; each says whether its draws are equal.

    They are NaN in what a map of ``source`` is filled up with. ``draws`` are those that the figures
    are of (chain, draw, ...).
    """
    found, equal = [], True
    for block, figures, same in parts:
        inside = None if source is None else source.inside(block)
        result = _dataset(figures, mcse)
        found.append((block, result if inside is None else result.where(inside)))
        equal = equal and same
    return _describe(join_blocks(found), draws, mcse, equal)


def _dataset(figures: Figures, mcse: bool) -> xr.Dataset:
    result = xr.Dataset()
    for name, (figure, influence, unit) in figures.items():
        result[name] = figure.assign_attrs(units=unit)
        if mcse:
            result[f"{name}_mcse"] = monte_carlo.standard_error(influence).assign_attrs(units=unit)
    return result


def _describe(result: xr.Dataset, draws: xr.DataArray, mcse: bool, equal: bool) -> xr.Dataset:
    result.attrs["num_chains"] = draws.sizes["chain"]
    result.attrs["num_draws"] = draws.sizes["draw"]
    if weights_of(draws) is not None:
        result.attrs["num_functions"] = num_functions(draws)
    result.attrs["mcse"] = monte_carlo.CAVEAT if mcse else "not computed"
    if "draws_of" in draws.attrs:
        result.attrs["epistemic_of"] = draws.attrs["draws_of"]
    if equal:
        result.attrs["note"] = _POINT
    return result
