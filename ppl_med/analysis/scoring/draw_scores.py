"""CRPS and energy score of predicted numbers: ``posterior_predictive`` against the observation.

The prediction scored is the mixture: all draws of all chains. With y the observation, X and X'
independent draws, in the unit of y; lower is better, and the true distribution is best on average:

    crps      E|X - y| - E|X - X'| / 2
    energy    the same with Euclidean norms over the axes of a vector or map

A single posterior draw gives one value per case, which says nothing of the distribution it came
from; its score needs that distribution in closed form (``distribution`` of `crps`). For log scores
see `elpd_heldout`.

Sources: Gneiting and Raftery, JASA 102, 2007, sections 4.2 and 4.3; Ferro, QJRMS 140, 2014 (fair
estimators).
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from scipy.spatial.distance import cdist

from ppl_med.analysis.statistics import location_scale, monte_carlo
from ppl_med.analysis.statistics.case_fill import finite_or_fill, first_entries
from ppl_med.analysis.statistics.case_means import add_mean
from ppl_med.analysis.statistics.weight_draws import between_pairs, function_numbers, weights_of
from ppl_med.analysis.tree import (
    Block,
    Numbers,
    check_cases,
    count_left_out,
    find_group,
    join_blocks,
    open_numbers,
    split_blocks,
)
from ppl_med.axes import SAMPLES, WEIGHTS
from ppl_med.checks import choice
from ppl_med.moved import renamed_argument

_ESTIMATORS = ("fair", "empirical")


@renamed_argument("law", "distribution")
def crps(
    tree: xr.DataTree,
    site: str | None = None,
    *,
    estimator: str = "fair",
    distribution: str | None = None,
) -> xr.Dataset:
    """Continuous ranked probability score of every entry of every case.

    Args:
        tree: The tree of `predict` on cases with observed numbers.
        site: Name of the observed site; None takes the only one.
        estimator: "fair" is unbiased for the distribution behind the draws, and can be negative;
            "empirical" scores the draws as if they were the distribution: biased by
            E|X - X'| / (2 draws), and the absolute error for one draw.
        distribution: "normal" or "laplace", what ``loc`` and ``scale`` of the posterior group
            belong to: adds the score of every posterior draw.

    Returns:
        Dataset with ``crps`` (case, ...), its mean ``crps_mean`` and standard error over cases
        ``crps_mean_se``, both with ``_mcse`` from the draws where there are two or more; with
        ``distribution`` ``crps_per_draw`` (chain, draw). Entries whose observation is NaN are left
        out.

    Raises:
        TypeError, ValueError: A site is missing or not numeric, a draw is NaN, an unknown
            estimator or distribution, or one draw for the fair estimator.
    """
    numbers = open_numbers(tree, site)
    _check_estimator(estimator, numbers)
    value = numbers.observations()
    counts = count_left_out(value)
    parameters = None if distribution is None else _parameters(tree, numbers.observed, distribution)
    score, per_draw = _Score("crps", estimator, value), xr.DataArray(0.0)
    for block in numbers.blocks():
        truth = value.isel(block)
        flat = numbers.draws(block).values.reshape(-1, truth.size)
        functions = function_numbers(numbers.drawn)
        score.add(  # nothing of a block is kept by name, as each array is as large as it
            block,
            truth,
            np.abs(flat - truth.values.ravel()),
            (_mean_distance(flat), _own_distance(flat, functions)),
            numbers,
        )
        if parameters is not None:
            of_draws = _closed_form(truth, parameters, block, str(distribution))
            of_draws *= score.weight.isel(block)
            per_draw = per_draw + of_draws.sum(truth.dims)
            del of_draws
    result = score.result(numbers).assign_attrs(counts)
    if distribution is not None:
        result["crps_per_draw"] = per_draw.transpose(*SAMPLES).assign_attrs(
            result["crps"].attrs, distribution=distribution
        )
    return result


def energy(
    tree: xr.DataTree,
    site: str | None = None,
    *,
    over: Sequence[str],
    estimator: str = "fair",
) -> xr.Dataset:
    """Energy score: the CRPS of a vector or a map, which also sees its correlations.

    Args:
        tree: The tree of `predict` on cases with observed numbers.
        site: Name of the observed site; None takes the only one.
        over: Axes of the vector, such as ("row", "col").
        estimator: As for `crps`.

    Returns:
        Dataset with ``energy`` (case, ...), its mean ``energy_mean``, ``energy_mean_se`` over
        cases, and ``_mcse`` of both where there are two draws or more. Components that are NaN are
        left out of their vector: its score is that of the others, and NaN where there are none.

    Raises:
        TypeError, ValueError: As for `crps`; an axis is missing.
    """
    numbers = open_numbers(tree, site)
    _check_estimator(estimator, numbers)
    value = numbers.observations()
    counts = count_left_out(value)
    missing = [dim for dim in over if dim not in value.dims or dim == "case"]
    if missing or not over:
        raise ValueError(f"over must name axes of {value.dims} other than case, not {over!r}.")
    template = value.isel(dict.fromkeys(over, 0), drop=True)
    template = template.copy(data=value.min(list(over)).values)  # NaN where nothing was observed
    sizes = {str(dim): size for dim, size in template.sizes.items()}
    length = value.size // template.size
    score = _Score("energy", estimator, template)
    for block in split_blocks(sizes, numbers.num_draws * length):
        part = template.isel(block)
        truth = value.isel(block).transpose(*sizes, *over).values
        drawn = numbers.draws(block).transpose(*SAMPLES, *sizes, *over).values
        vectors, truth = drawn.reshape(-1, part.size, length), truth.reshape(part.size, length)
        if counts["left_out"]:  # the same number in all draws adds no distance
            vectors = np.where(np.isnan(truth), 0.0, vectors)
            truth = np.where(np.isnan(truth) & part.notnull().values.reshape(-1, 1), 0.0, truth)
        near = np.linalg.norm(vectors - truth, axis=-1)
        distances = [cdist(v, v) for v in vectors.transpose(1, 0, 2)]
        own = function_numbers(numbers.drawn)
        same = (own[:, None] == own) / (own[:, None] == own).sum(1, keepdims=True)
        spread = [np.stack([(d * w).sum(1) for d in distances], 1) for w in (1 / len(own), same)]
        score.add(block, part, near, (spread[0], spread[1]), numbers)
    return score.result(numbers).assign_attrs(counts)


def describe_numbers(
    result: xr.Dataset, numbers: Numbers, probabilities: Sequence[str] = ()
) -> xr.Dataset:
    """Name units, that of the observation unless named otherwise, and count chains and draws."""
    for name, variable in result.data_vars.items():
        is_share = str(name) in probabilities
        variable.attrs["units"] = "probability" if is_share else "unit of the observation"
    sizes = numbers.drawn.sizes
    return result.assign_attrs(num_chains=sizes["chain"], num_draws=sizes["draw"])


def _mean_distance(flat: np.ndarray) -> np.ndarray:
    """Mean distance of every draw to all draws, itself included; (draw, entry) both ways."""
    flat = flat - flat.mean(0)
    order = flat.argsort(0)
    ranked = np.take_along_axis(flat, order, 0)
    below = np.cumsum(ranked, 0) - ranked
    rank, count = np.arange(len(flat))[:, None], len(flat)
    total = ranked * (2 * rank - count) - 2 * below + ranked.sum(0)
    result = np.empty_like(flat)
    np.put_along_axis(result, order, total / count, 0)
    return result


def _own_distance(flat: np.ndarray, functions: np.ndarray) -> np.ndarray:
    """Mean distance of every draw to those that share its weights, itself included."""
    names, index, counts = np.unique(functions, return_inverse=True, return_counts=True)
    if len(names) == len(index):  # nobody reads it, so it takes no memory
        return np.broadcast_to(np.zeros((), flat.dtype), flat.shape)
    result = np.zeros_like(flat)
    for name in np.flatnonzero(counts > 1):
        result[index == name] = _mean_distance(flat[index == name])
    return result


class _Score:
    """Scores of all entries, from distances to the truth and among draws, added block by block.

    Args:
        name: Name of the score.
        estimator: As for `crps`.
        value: One number an entry (case, ...), NaN where there is no score.
    """

    def __init__(self, name: str, estimator: str, value: xr.DataArray) -> None:
        self.name, self.estimator = name, estimator
        self.parts: list[tuple[Block, xr.Dataset]] = []
        # What an entry adds to the mean over cases of the means over their entries.
        share = value.notnull() / value.notnull().sum([d for d in value.dims if d != "case"])
        self.weight = (share / share.notnull().any(share.dims[1:]).sum()).fillna(0.0)
        self.total = xr.DataArray(0.0)  # influence of every draw on that mean

    def add(
        self,
        block: Block,
        template: xr.DataArray,
        near: np.ndarray,
        spreads: tuple[np.ndarray, np.ndarray],
        numbers: Numbers,
    ) -> None:
        """Add a block.

        Args:
            block: Which entries.
            template: (case, ...) of these entries.
            near: Distance of every draw to the truth (draw, entry).
            spreads: Mean distance of every draw to all draws, itself included (draw, entry), and to
                those that share its weights.
            numbers: Whose draws they are.
        """
        count, spread = len(near), spreads[0]
        shape = (*(numbers.drawn.sizes[dim] for dim in SAMPLES), *template.shape)
        coords = _weights(numbers)
        every, own = (
            xr.DataArray(one.reshape(shape), coords, (*SAMPLES, *template.dims)) for one in spreads
        )
        factor = 1.0
        if self.estimator == "fair" and weights_of(every) is not None:
            spread = between_pairs(every, own).values.reshape(near.shape)
        elif self.estimator == "fair":
            factor = count / (count - 1)
        values = (near.mean(0) - factor * spread.mean(0) / 2).reshape(template.shape)
        part = xr.Dataset({self.name: template.copy(data=values)})
        if count > 1:
            # First-order projection of the pairwise mean: a draw's distance to all others.
            near -= factor * spread  # in place, for these are as large as the block
            influence = every.copy(data=near.reshape(shape))
            error = monte_carlo.standard_error(influence)
            part[f"{self.name}_mcse"] = template.copy(data=error.values)
            weight = self.weight.isel(block).variable
            self.total = self.total + (influence.variable * weight).sum(template.dims)
        self.parts.append((block, part))

    def result(self, numbers: Numbers) -> xr.Dataset:
        """The scores, their mean and its errors."""
        result = join_blocks(self.parts)
        add_mean(result, self.name)
        if numbers.num_draws > 1:
            total = xr.DataArray(self.total, _weights(numbers), SAMPLES)
            result[f"{self.name}_mean_mcse"] = monte_carlo.standard_error(total)
            result.attrs["mcse"] = monte_carlo.CAVEAT
        result.attrs["estimator"] = self.estimator
        return describe_numbers(result, numbers)


def _weights(numbers: Numbers) -> dict[str, xr.Variable]:
    """Which draw of the weights every draw has, where that is told."""
    coords = numbers.drawn.coords
    return {WEIGHTS: coords[WEIGHTS].variable} if WEIGHTS in coords else {}


def _parameters(tree: xr.DataTree, value: xr.DataArray, distribution: str) -> xr.Dataset:
    """``loc`` and ``scale`` of the posterior group, not yet read."""
    choice("distribution", distribution, ("normal", "laplace"))
    group = find_group(tree, "posterior")
    if not {"loc", "scale"} <= set(group):
        raise ValueError(
            f"distribution={distribution!r} needs loc and scale in the posterior group of the tree."
        )
    check_cases(value, group["loc"], "observed values")
    return group[[name for name in ("loc", "scale", "variance") if name in group]]


def _closed_form(
    value: xr.DataArray, parameters: xr.Dataset, block: Block, distribution: str
) -> xr.DataArray:
    """CRPS of every entry of a block and posterior draw (chain, draw, case, ...)."""
    first, parameters = first_entries(parameters["scale"], block), parameters.isel(block)
    loc, scale = (parameters[name].astype(np.float64).load() for name in ("loc", "scale"))
    if bool((scale <= 0).any()) or not finite_or_fill(scale.values, first):
        raise ValueError("scale must be positive.")
    if "variance" in parameters:
        ratio = parameters["variance"].astype(np.float64) / scale**2
        location_scale.check_distribution(distribution, ratio.values)
    z = value - loc  # from here on in place: each array is as large as the block
    del loc
    z /= scale
    scale *= scale.copy(data=location_scale.crps(z.transpose(*scale.dims).values, distribution))
    return scale


def _check_estimator(estimator: str, numbers: Numbers) -> None:
    choice("estimator", estimator, _ESTIMATORS)
    if estimator == "fair" and numbers.num_draws < 2:
        raise ValueError(
            "The fair estimator needs two draws that differ and the tree holds one; predict more "
            "draws, or pass estimator='empirical'."
        )
