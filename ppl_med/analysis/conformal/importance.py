"""The posterior without one training case, or with one more, from the draws that there are.

Leaving case i out multiplies the weight of draw s by 1 / p(y_i | draw s); these ratios have a heavy
tail, which Pareto smoothing tames (PSIS) and whose shape k says whether they can be trusted: the
reweighted mean is reliable below min(1 - 1 / log10 S, 0.7) for S draws. Above it, refuse.

Source: Vehtari, Simpson, Gelman, Yao and Gabry, JMLR 25, 2024, arXiv:1507.02646.
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.statistics.tail_ties import explained_ties
from ppl_med.analysis.statistics.weight_draws import check_own_weights
from ppl_med.analysis.tree import (
    Posterior,
    case_ids,
    check_cases,
    check_disjoint,
    count_left_out,
    find_group,
    needed_log_likelihood,
    other_samples,
)
from ppl_med.axes import SAMPLES

_FEWEST = 25  # draws, of which PSIS smooths a fifth, five at least


def leave_one_out_weights(
    training: xr.DataTree,
    limit: float | None,
    cases: np.ndarray | slice = slice(None),
    num_draws: int | None = None,
) -> tuple[np.ndarray, xr.DataArray]:
    """Return the weights of the draws of the posterior without each training case.

    Args:
        training: The tree of `predict` on the training cases.
        limit: Largest Pareto k to accept; None for the limit above.
        cases: Positions of the cases with an observation.
        num_draws: Draws of the predictions, over all chains.

    Returns:
        Weights (case, sample), sums of one, samples chain by chain; and Pareto k (case).

    Raises:
        ValueError: No log-likelihood, one of held-out cases or of cases in another order, draws
            that all agree, or k too large.
    """
    opened = needed_log_likelihood(training, name="training")
    kind = training.attrs.get("log_likelihood_of")
    if kind != "training":
        raise ValueError(
            f"training.attrs['log_likelihood_of'] is {kind!r}; leaving cases out needs the "
            "log-likelihood of the cases the model was trained on. Set it to 'training' if it is."
        )
    likelihood = opened.read()
    if likelihood.ndim > 3:
        raise ValueError(f"log_likelihood has dimensions {likelihood.dims}; expected one per case.")
    for group in ("posterior", "observed_data"):
        for name, array in find_group(training, group).items():
            if "case" in array.dims:
                check_cases(array, likelihood, f"{group}/{name}", "log_likelihood")
    values = likelihood.values.reshape(-1, likelihood.sizes["case"]).T[cases]
    if not np.isfinite(values).all():
        raise ValueError("A training case has likelihood 0 under a draw; predict in float64.")
    if values.shape[1] < _FEWEST:
        raise ValueError(
            f"The tree holds {values.shape[1]} draws that differ; leaving a case out takes "
            f"{_FEWEST} or more. Of a point estimate use split conformal."
        )
    if num_draws not in (None, values.shape[1]):
        raise ValueError(
            f"training holds the log-likelihood of {values.shape[1]} draws that differ, and "
            f"predictions of {num_draws}; predict again, with log_likelihood and posterior of the "
            "same draws."
        )
    if (np.ptp(values, axis=1) == 0).any():
        raise ValueError(
            "All draws give some training case the same likelihood; a point estimate says nothing "
            "about leaving a case out. Use a guide with a posterior, or split conformal."
        )
    from arviz_stats.base import array_stats  # it imports matplotlib

    with explained_ties("training"):
        log_weights, shape = array_stats.psislw(values, axis=-1)
    log_weights = log_weights - log_weights.max(1, keepdims=True)
    weights = np.exp(log_weights)
    pareto_k = xr.DataArray(np.asarray(shape, np.float64), dims="training_case")
    _check_shape(pareto_k.values, len(values[0]), limit)
    return weights / weights.sum(1, keepdims=True), pareto_k


def good_shape(num_draws: int) -> float:
    """Return the largest reliable Pareto k for a number of draws."""
    return min(1 - 1 / np.log10(num_draws), 0.7) if num_draws > 1 else -np.inf


def check_pair(
    training: Posterior, test: Posterior, first: xr.DataArray, second: xr.DataArray
) -> None:
    """Raise unless two trees are of the same draws, as far as they tell, and of other cases.

    Draws that share their weights are refused: p(y | weights, latent of the case) is no density
    given the weights. Leaving a case out would need E[p] and takes 1 / E[1 / p]; an outcome tried
    would be scored by E[p^2], other cases by E[p q].

    Args:
        training: The tree of the training cases.
        test: The tree of other cases.
        first: Predictions of the training cases, (chain, draw, case[, class]).
        second: Predictions of the other cases, likewise.
    """
    if {first.ndim, second.ndim} - {3, 4} or first.ndim != second.ndim:
        raise ValueError("Sets and intervals are per case; the trees have further dimensions.")
    dim = other_samples(first, second)
    if dim:
        raise ValueError(
            f"The training tree and the test tree do not hold the same draws ({dim}); predict "
            "both with the same draws and seed."
        )
    if isinstance(training, xr.DataTree) and isinstance(test, xr.DataTree):
        for key in ("model", "guide", "seed"):
            old, new = training.attrs.get(key), test.attrs.get(key)
            if old is not None and new is not None and old != new:
                raise ValueError(
                    f"The training tree has {key} {old!r}, the test tree {new!r}; draw s must be "
                    "the same function in both. Predict both with the same seed."
                )
    for name, array in (("training", first), ("tree", second)):
        check_own_weights(array, name, "split conformal, conformal.calibrate")
    check_disjoint(case_ids(first, "training"), case_ids(second, "tree"))


def samples(array: xr.DataArray) -> np.ndarray:
    """Return values (sample, ...) with chains one after the other."""
    values = array.transpose(*SAMPLES, ...).values
    return values.reshape(-1, *values.shape[2:])


def _check_shape(shape: np.ndarray, num_draws: int, limit: float | None) -> None:
    limit = good_shape(num_draws) if limit is None else limit
    bad = ~(shape <= limit)  # also NaN, from ties in float32
    if bad.any():
        worst = np.nan if np.isnan(shape).any() else shape.max()
        raise ValueError(
            f"Pareto k is above {limit:.2f} for {bad.sum()} of {shape.size} training cases "
            f"(largest {worst:.2f}): with {num_draws} draws the posterior without them is not "
            "known. Predict more draws in float64, or use split conformal."
        )


def finish(
    result: xr.Dataset, hits: np.ndarray | None, alpha: float, **attrs: object
) -> xr.Dataset:
    """Add the coverage of test cases, where they were observed, and the settings.

    Args:
        result: Sets or intervals.
        hits: Which test cases are covered (case,), NaN for no observation; None without any.
        alpha: Miss rate.
        attrs: Further attributes.
    """
    if "set_size" in result:
        result["set_size"].attrs["units"] = "classes"
    if hits is not None:
        result["covered"] = ("case", hits)
        seen = result["covered"].notnull()
        share = float(result["covered"].mean()) if seen.any() else np.nan
        result["coverage"] = ((), share, {"units": "probability"})
        result.attrs |= count_left_out(seen, empty=True)
    return result.assign_attrs(alpha=float(alpha), within="", **attrs)
