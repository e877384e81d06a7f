"""CRPS and energy score of predicted numbers: ``posterior_predictive`` against what came.

The prediction scored is the mixture: all draws of all chains. With y the observation, X and X'
independent draws, in the unit of y; lower is better, and the true law is best on average:

    crps      E|X - y| - E|X - X'| / 2
    energy    the same with Euclidean norms over the axes of a vector or map

A single posterior draw gives one value a case, which says nothing of the law it came from; its
score needs that law in closed form (``law`` of `crps`). For log scores see `elpd_heldout`.

Sources: Gneiting and Raftery, JASA 102, 2007, sections 4.2 and 4.3; Ferro, QJRMS 140, 2014 (fair
estimators); Grimit et al., QJRMS 132, 2006 (normal), Jordan et al., Journal of
Statistical Software 90, 2019 (Laplace).
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from scipy.spatial.distance import cdist
from scipy.special import ndtr
from scipy.stats import norm

from ppl_med.analysis import monte_carlo, tree_blocks
from ppl_med.analysis.number_draws import add_mean, check_observed, describe
from ppl_med.analysis.number_laws import check_law
from ppl_med.analysis.posterior import check_cases
from ppl_med.analysis.tree_blocks import Numbers, open_numbers

_SAMPLES = ("chain", "draw")
_ESTIMATORS = ("fair", "empirical")


def crps(
    tree: xr.DataTree,
    site: str | None = None,
    *,
    estimator: str = "fair",
    law: str | None = None,
) -> xr.Dataset:
    """Continuous ranked probability score of every entry of every case.

    Args:
        tree: The tree of `predict` on cases with observed numbers.
        site: Name of the observed site; None takes the only one.
        estimator: "fair" is unbiased for the law behind the draws, and can be negative;
            "empirical" scores the draws as if they were the law: biased by E|X - X'| / (2 draws),
            and the absolute error for one draw.
        law: "normal" or "laplace", the likelihood that ``loc`` and ``scale`` of the posterior
            group belong to: adds the score of every posterior draw.

    Returns:
        Dataset with ``crps`` (case, ...), its mean ``crps_mean`` and standard error over cases
        ``crps_mean_se``, both with ``_mcse`` from the draws where there are two or more; with
        ``law`` ``crps_per_draw`` (chain, draw). Entries whose observation is NaN are left out.

    Raises:
        TypeError, ValueError: A site is missing or not numeric, a draw is NaN, an unknown
            estimator or law, or one draw for the fair estimator.
    """
    numbers = open_numbers(tree, site)
    _check_estimator(estimator, numbers)
    value = check_observed(numbers.observed)
    parameters = None if law is None else _parameters(tree, numbers.observed, law)
    score, per_draw = _Score("crps", estimator, value), xr.DataArray(0.0)
    for block in numbers.blocks():
        truth = value.isel(block)
        flat = numbers.draws(block).values.reshape(-1, truth.size)
        score.add(block, truth, np.abs(flat - truth.values.ravel()), _mean_distance(flat), numbers)
        if parameters is not None:
            own = _closed_form(truth, parameters.isel(block), str(law))
            per_draw = per_draw + (own * score.weight.isel(block)).sum(truth.dims)
    result = score.result(numbers)
    if law is not None:
        result["crps_per_draw"] = per_draw.transpose(*_SAMPLES).assign_attrs(
            result["crps"].attrs, law=law
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
        cases, and ``_mcse`` of both where there are two draws or more.

    Raises:
        TypeError, ValueError: As for `crps`; an axis is missing, or an observation is NaN.
    """
    numbers = open_numbers(tree, site)
    _check_estimator(estimator, numbers)
    value = check_observed(numbers.observed)
    missing = [dim for dim in over if dim not in value.dims or dim == "case"]
    if missing or not over:
        raise ValueError(f"over must name axes of {value.dims} other than case, not {over!r}.")
    if np.isnan(value.values).any():
        raise ValueError("The observation holds NaN; the energy score needs whole vectors.")
    template = value.isel(dict.fromkeys(over, 0), drop=True)
    sizes = {str(dim): size for dim, size in template.sizes.items()}
    length = value.size // template.size
    score = _Score("energy", estimator, template)
    for block in tree_blocks.blocks(sizes, numbers.num_draws * length):
        part = template.isel(block)
        truth = value.isel(block).transpose(*sizes, *over).values
        drawn = numbers.draws(block).transpose(*_SAMPLES, *sizes, *over).values
        vectors = drawn.reshape(-1, part.size, length)
        near = np.linalg.norm(vectors - truth.reshape(part.size, length), axis=-1)
        spread = np.stack([cdist(v, v).mean(1) for v in vectors.transpose(1, 0, 2)], axis=1)
        score.add(block, part, near, spread, numbers)
    return score.result(numbers)


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


class _Score:
    """Scores of all entries, from distances to the truth and among draws, added block by block.

    Args:
        name: Of the score.
        estimator: As for `crps`.
        value: One number an entry (case, ...), NaN where there is no score.
    """

    def __init__(self, name: str, estimator: str, value: xr.DataArray) -> None:
        self.name, self.estimator = name, estimator
        self.parts: list[tuple[tree_blocks.Block, xr.Dataset]] = []
        # What an entry adds to the mean over cases of the means over their entries.
        share = value.notnull() / value.notnull().sum([d for d in value.dims if d != "case"])
        self.weight = (share / share.notnull().any(share.dims[1:]).sum()).fillna(0.0)
        self.total = xr.DataArray(0.0)  # influence of every draw on that mean

    def add(
        self,
        block: tree_blocks.Block,
        template: xr.DataArray,
        near: np.ndarray,
        spread: np.ndarray,
        numbers: Numbers,
    ) -> None:
        """Add a block.

        Args:
            block: Which entries.
            template: (case, ...) of these entries.
            near: Distance of every draw to the truth (draw, entry).
            spread: Mean distance of every draw to all draws, itself included (draw, entry).
            numbers: Whose draws they are.
        """
        count = len(near)
        if self.estimator == "fair":
            spread = spread * (count / (count - 1))
        values = (near.mean(0) - spread.mean(0) / 2).reshape(template.shape)
        part = xr.Dataset({self.name: template.copy(data=values)})
        if count > 1:
            # First-order projection of the pairwise mean: a draw's distance to all others.
            chains, draws = (numbers.drawn.sizes[dim] for dim in _SAMPLES)
            shape = (chains, draws, *template.shape)
            influence = xr.DataArray(
                (near - spread).reshape(shape), dims=(*_SAMPLES, *template.dims)
            )
            error = monte_carlo.standard_error(influence)
            part[f"{self.name}_mcse"] = template.copy(data=error.values)
            weight = self.weight.isel(block).variable
            self.total = self.total + (influence.variable * weight).sum(template.dims)
        self.parts.append((block, part))

    def result(self, numbers: Numbers) -> xr.Dataset:
        """The scores, their mean and its errors."""
        result = tree_blocks.join(self.parts)
        add_mean(result, self.name)
        if numbers.num_draws > 1:
            total = xr.DataArray(self.total, dims=_SAMPLES)
            result[f"{self.name}_mean_mcse"] = monte_carlo.standard_error(total)
            result.attrs["mcse"] = monte_carlo.CAVEAT
        result.attrs["estimator"] = self.estimator
        return describe(result, numbers.drawn, {})


def _parameters(tree: xr.DataTree, value: xr.DataArray, law: str) -> xr.Dataset:
    """``loc`` and ``scale`` of the posterior group, not yet read."""
    if law not in ("normal", "laplace"):
        raise ValueError(f"law must be 'normal' or 'laplace', not {law!r}.")
    group = tree["posterior"].to_dataset() if "posterior" in tree.children else xr.Dataset()
    if not {"loc", "scale"} <= set(group):
        raise ValueError(f"law={law!r} needs loc and scale in the posterior group of the tree.")
    check_cases(value, group["loc"], "observed values")
    return group[[name for name in ("loc", "scale", "variance") if name in group]]


def _closed_form(value: xr.DataArray, parameters: xr.Dataset, law: str) -> xr.DataArray:
    """CRPS of every entry and posterior draw (chain, draw, case, ...)."""
    loc, scale = (parameters[name].astype(np.float64).load() for name in ("loc", "scale"))
    if not bool((scale > 0).all()):
        raise ValueError("scale must be positive.")
    if "variance" in parameters:
        check_law(law, (parameters["variance"].astype(np.float64) / scale**2).values)
    z = (value - loc) / scale
    if law == "normal":
        shape = z * (2 * z.copy(data=ndtr(z.values)) - 1) + 2 * z.copy(data=norm.pdf(z.values))
        shape = shape - np.pi**-0.5
    else:
        shape = abs(z) + np.exp(-abs(z)) - 0.75
    return scale * shape


def _check_estimator(estimator: str, numbers: Numbers) -> None:
    if estimator not in _ESTIMATORS:
        raise ValueError(f"estimator must be one of {_ESTIMATORS}, not {estimator!r}.")
    if estimator == "fair" and numbers.num_draws < 2:
        raise ValueError(
            "The fair estimator needs two draws and the tree holds one; predict more draws, or "
            "pass estimator='empirical'."
        )
