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

from ppl_med.analysis import monte_carlo
from ppl_med.analysis.number_draws import add_mean, case_means, describe, observed_and_drawn
from ppl_med.analysis.posterior import check_cases

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
    value, drawn = observed_and_drawn(tree, site)
    _check_estimator(estimator, drawn)
    flat = drawn.values.reshape(-1, value.size)
    near, spread = np.abs(flat - value.values.ravel()), _mean_distance(flat)
    result = _kernel_score("crps", near, spread, value, drawn, estimator)
    if law is not None:
        result["crps_per_draw"] = _closed_form(tree, value, law).assign_attrs(
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
    value, drawn = observed_and_drawn(tree, site)
    _check_estimator(estimator, drawn)
    missing = [dim for dim in over if dim not in value.dims or dim == "case"]
    if missing or not over:
        raise ValueError(f"over must name axes of {value.dims} other than case, not {over!r}.")
    rest = [dim for dim in value.dims if dim not in over]
    value, drawn = value.transpose(*rest, *over), drawn.transpose(*_SAMPLES, *rest, *over)
    if np.isnan(value.values).any():
        raise ValueError("The observation holds NaN; the energy score needs whole vectors.")
    template = value.isel(dict.fromkeys(over, 0), drop=True)
    truth = value.values.reshape(template.size, -1)
    vectors = drawn.values.reshape(-1, *truth.shape)
    near = np.linalg.norm(vectors - truth, axis=-1)
    spread = np.stack([cdist(v, v).mean(1) for v in vectors.transpose(1, 0, 2)], axis=1)
    return _kernel_score("energy", near, spread, template, drawn, estimator)


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


def _kernel_score(
    name: str,
    near: np.ndarray,
    spread: np.ndarray,
    template: xr.DataArray,
    drawn: xr.DataArray,
    estimator: str,
) -> xr.Dataset:
    """Score from distances to the truth and mean distances among draws, both (draw, entry)."""
    count = len(near)
    if estimator == "fair":
        spread = spread * (count / (count - 1))
    score = template.copy(data=(near.mean(0) - spread.mean(0) / 2).reshape(template.shape))
    result = xr.Dataset({name: score})
    add_mean(result, name)
    if count > 1:
        # First-order projection of the pairwise mean: a draw's distance to all others.
        shape = (drawn.sizes["chain"], drawn.sizes["draw"], *template.shape)
        influence = xr.DataArray((near - spread).reshape(shape), dims=(*_SAMPLES, *template.dims))
        result[f"{name}_mcse"] = template.copy(data=monte_carlo.standard_error(influence).values)
        total = case_means(influence).mean("case")
        result[f"{name}_mean_mcse"] = monte_carlo.standard_error(total)
        result.attrs["mcse"] = monte_carlo.CAVEAT
    result.attrs["estimator"] = estimator
    return describe(result, drawn, {})


def _closed_form(tree: xr.DataTree, value: xr.DataArray, law: str) -> xr.DataArray:
    """Mean CRPS over cases of every posterior draw (chain, draw)."""
    if law not in ("normal", "laplace"):
        raise ValueError(f"law must be 'normal' or 'laplace', not {law!r}.")
    group = tree["posterior"].to_dataset() if "posterior" in tree.children else xr.Dataset()
    if not {"loc", "scale"} <= set(group):
        raise ValueError(f"law={law!r} needs loc and scale in the posterior group of the tree.")
    loc, scale = group["loc"].astype(np.float64), group["scale"].astype(np.float64)
    check_cases(value, loc, "observed values")
    if not bool((scale > 0).all()):
        raise ValueError("scale must be positive.")
    z = (value - loc) / scale
    if law == "normal":
        shape = z * (2 * z.copy(data=ndtr(z.values)) - 1) + 2 * z.copy(data=norm.pdf(z.values))
        shape = shape - np.pi**-0.5
    else:
        shape = abs(z) + np.exp(-abs(z)) - 0.75
    return case_means(scale * shape).mean("case").transpose(*_SAMPLES)


def _check_estimator(estimator: str, drawn: xr.DataArray) -> None:
    if estimator not in _ESTIMATORS:
        raise ValueError(f"estimator must be one of {_ESTIMATORS}, not {estimator!r}.")
    if estimator == "fair" and drawn.sizes["chain"] * drawn.sizes["draw"] < 2:
        raise ValueError(
            "The fair estimator needs two draws and the tree holds one; predict more draws, or "
            "pass estimator='empirical'."
        )
