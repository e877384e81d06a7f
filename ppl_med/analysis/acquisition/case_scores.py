"""Scores of single cases: the larger, the more a label is asked for.

With p_s the class probabilities of draw s and p their mean over draws and chains:

    max_entropy        H(p)                                   nats
    bald               H(p) - mean H(p_s)                     nats, in [0, ln K]
    variation_ratio    share of draws that do not vote for the most voted class
    mean_sd            mean over classes of the sd over draws of p_s
    margin             1 - (largest p - second largest p)
    least_confidence   1 - largest p

All but ``max_entropy``, ``margin`` and ``least_confidence`` tell draws apart and are refused for a
point estimate. Of S draws BALD is too small by about (K - 1) / (2 S) of the weight of disagreement:
its order is less affected than its size. The variation ratio has many exact ties, between which
`acquire` chooses at random.

A map of a class per pixel gives a map of scores, reduced to one per case by ``aggregation``, which
must be named: the choice decides more than the score (`ppl_med.analysis.aggregation`).

Sources: Gal, Islam and Ghahramani, ICML 2017, arXiv:1703.02910, section 4; Houlsby et al.,
arXiv:1112.5745; Settles, Active Learning Literature Survey, 2009, section 3.1.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis import uncertainty
from ppl_med.analysis.aggregation import METHODS as AGGREGATIONS
from ppl_med.analysis.aggregation import aggregate, predicted_mask
from ppl_med.analysis.statistics import monte_carlo
from ppl_med.analysis.statistics.weight_draws import num_functions
from ppl_med.analysis.tree import Classes, Posterior, open_classes
from ppl_med.axes import SAMPLES, SPACE

Settings = Mapping[str, Any] | None
_OF_MASK = ("boundary", "foreground")


def max_entropy(
    tree: Posterior, aggregation: str | None = None, *, settings: Settings = None
) -> xr.Dataset:
    """Entropy of the mean of the draws.

    Args:
        tree: The tree of `predict`, its posterior group, or ``probs`` (chain, draw, case, class,
            ...).
        aggregation: Of maps, how a case's score follows from those of its pixels: a name in
            `ppl_med.analysis.aggregation`. None where there is one class per case.
        settings: Further arguments of `ppl_med.analysis.aggregation.aggregate`, such as ``level``.

    Returns:
        Dataset over case: the score under the name of the function, and ``<name>_mcse``, its
        standard error over draws (of scores per case from two draws on). Attributes:
        ``num_functions``, the draws that are no copies; the ``aggregation``.

    Raises:
        TypeError, ValueError: ``probs`` is malformed; maps without ``aggregation``, or
            ``aggregation`` without maps; further axes, such as of findings.
    """
    return _reduced("max_entropy", _entropy("predictive_entropy"), tree, aggregation, settings)


def bald(
    tree: Posterior, aggregation: str | None = None, *, settings: Settings = None
) -> xr.Dataset:
    """Mutual information between the label of a case and the function; as `max_entropy`.

    Raises:
        TypeError, ValueError: As `max_entropy`, or all draws are one function.
    """
    return _reduced("bald", _entropy("mutual_information"), tree, aggregation, settings, True)


def variation_ratio(
    tree: Posterior, aggregation: str | None = None, *, settings: Settings = None
) -> xr.Dataset:
    """Share of the draws that do not vote for the most voted class; as `max_entropy`.

    Raises:
        TypeError, ValueError: As `max_entropy`, or all draws are one function.
    """
    return _reduced(
        "variation_ratio", _entropy("variation_ratio"), tree, aggregation, settings, True
    )


def mean_sd(
    tree: Posterior, aggregation: str | None = None, *, settings: Settings = None
) -> xr.Dataset:
    """Mean over classes of the standard deviation over draws; as `max_entropy`.

    The variance has the divisor n - 1 for n functions.

    Raises:
        TypeError, ValueError: As `max_entropy`, or all draws are one function.
    """
    return _reduced("mean_sd", _mean_sd, tree, aggregation, settings, True)


def margin(
    tree: Posterior, aggregation: str | None = None, *, settings: Settings = None
) -> xr.Dataset:
    """One less the lead of the most probable class over the second; as `max_entropy`."""
    return _reduced("margin", _of_classes(_margin), tree, aggregation, settings)


def least_confidence(
    tree: Posterior, aggregation: str | None = None, *, settings: Settings = None
) -> xr.Dataset:
    """One less the largest probability; as `max_entropy`.

    Of a single draw this is what Gal et al. call the variation ratio of a deterministic net.
    """
    return _reduced("least_confidence", _of_classes(_confidence), tree, aggregation, settings)


SCORES: dict[str, Callable[..., xr.Dataset]] = {
    score.__name__: score
    for score in (max_entropy, bald, variation_ratio, mean_sd, margin, least_confidence)
}

Figure = Callable[[Classes], tuple[xr.DataArray, xr.DataArray | None]]
"""From probabilities to a score (case, ...) and, of two draws or more, its standard error."""


def require_functions(probs: xr.DataArray, name: str) -> int:
    """Return how many functions the draws are; raise where they are one.

    Args:
        probs: Probabilities (chain, draw, ...) without copies.
        name: What needs more of them.

    Raises:
        ValueError: There is one.
    """
    number = num_functions(probs)
    if number < 2:
        raise ValueError(
            f"{name} is a disagreement between draws, and the tree holds one function (a point "
            "estimate, or a single draw); predict 32 draws or more of a posterior, or ask by "
            "'max_entropy', 'margin' or 'least_confidence'."
        )
    return int(number)


def _reduced(
    name: str,
    figure: Figure,
    tree: Posterior,
    aggregation: str | None,
    settings: Settings,
    of_draws: bool = False,
) -> xr.Dataset:
    """A score per case, checked before any work."""
    probs = open_classes(tree)
    space = _space(probs)
    if aggregation is None and (settings or space):
        checks.reject(
            "aggregation",
            f"one of {', '.join(AGGREGATIONS)} for a class per pixel ({', '.join(space)})"
            if space
            else "named where settings are given",
            aggregation,
        )
    if aggregation is not None:
        checks.choice("aggregation", aggregation, AGGREGATIONS)
        if not space:
            checks.reject("aggregation", "None for a tree of one class per case", aggregation)
    number = num_functions(probs.array)
    if of_draws:
        require_functions(probs.array, name)
    score, error = figure(probs)
    if aggregation is not None:
        chosen = dict(settings or {})
        if aggregation in _OF_MASK:
            chosen.setdefault("mask", predicted_mask(tree))
        score, error = aggregate(score, aggregation, **chosen), None
    units = {"units": score.attrs.get("units", "probability")}
    kept = {"aggregation": score.attrs["aggregation"]} if aggregation is not None else {}
    result = xr.Dataset({name: score.drop_attrs().assign_attrs(units | kept)})
    if error is not None:
        result[f"{name}_mcse"] = error.drop_attrs().assign_attrs(units)
    result.attrs = {"num_functions": number, **kept}
    result.attrs["mcse"] = "not computed" if error is None else monte_carlo.CAVEAT
    return result


def _space(probs: Classes) -> tuple[str, ...]:
    """Axes of an image.

    Raises:
        ValueError: There are others, as of findings.
    """
    inner = tuple(str(dim) for dim in probs.array.dims[4:])
    others = [dim for dim in inner if dim not in SPACE[3]]
    if others:
        raise ValueError(
            f"probs has the axis {others[0]!r}: there is no one score per case. Take one of it "
            f"first, as tree.isel({others[0]}=0) or ppl_med.analysis.findings.select."
        )
    return inner


def _entropy(name: str) -> Figure:
    return partial(_entropy_part, name=name)


def _entropy_part(probs: Classes, name: str) -> tuple[xr.DataArray, xr.DataArray | None]:
    several = num_functions(probs.array) > 1
    found = uncertainty.entropy(probs.array, mcse=several)
    return found[name], found[f"{name}_mcse"] if several else None


def _mean_sd(probs: Classes) -> tuple[xr.DataArray, xr.DataArray | None]:
    """By the delta method: d sd = d variance / (2 sd), 0 where no draw moves."""

    def part(values: xr.DataArray) -> xr.Dataset:
        influence = monte_carlo.variance_influence(values)
        sd = influence.mean(SAMPLES) ** 0.5
        moved = xr.where(sd > 0, influence / (2 * sd.where(sd > 0, 1.0)), 0.0).mean("class")
        return xr.Dataset(
            {"score": sd.mean("class"), "mcse": monte_carlo.standard_error(moved)}
        ).assign_coords(sd.drop_vars("class", errors="ignore").coords)

    found = probs.map(part)
    return _inside(probs, found["score"]), found["mcse"]


def _of_classes(function: Callable[[xr.DataArray, xr.DataArray], xr.DataArray]) -> Figure:
    return partial(_class_part, function=function)


def _class_part(
    probs: Classes, function: Callable[[xr.DataArray, xr.DataArray], xr.DataArray]
) -> tuple[xr.DataArray, xr.DataArray | None]:
    """A score that is linear in the mean of the draws, given which classes lead."""
    several = num_functions(probs.array) > 1

    def part(values: xr.DataArray) -> xr.Dataset:
        influence = function(values, monte_carlo.mean(values))
        found = {"score": monte_carlo.mean(influence)}
        if several:
            found["mcse"] = monte_carlo.standard_error(influence)
        return xr.Dataset(found)

    found = probs.map(part)
    return _inside(probs, found["score"]), found["mcse"] if several else None


def _inside(probs: Classes, score: xr.DataArray) -> xr.DataArray:
    inside = probs.inside()
    return score if inside is None else score.where(inside)


def _confidence(values: xr.DataArray, mean: xr.DataArray) -> xr.DataArray:
    return 1 - _ranked(values, mean, 1)


def _margin(values: xr.DataArray, mean: xr.DataArray) -> xr.DataArray:
    return 1 - _ranked(values, mean, 1) + _ranked(values, mean, 2)


def _ranked(values: xr.DataArray, mean: xr.DataArray, rank: int) -> xr.DataArray:
    """Every draw's probability of the class that is so probable under the mean."""
    if rank > mean.sizes["class"]:
        return xr.zeros_like(values.isel({"class": 0}, drop=True))
    axis = mean.get_axis_num("class")
    order = np.argsort(-mean.values, axis=axis, kind="stable")
    place = mean.isel({"class": 0}, drop=True).copy(data=np.take(order, rank - 1, axis=axis))
    return values.isel({"class": place}).drop_vars("class", errors="ignore")
