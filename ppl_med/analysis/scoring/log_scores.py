"""Log scores of held-out cases: the log of the mean likelihood over draws."""

import warnings

import numpy as np
import xarray as xr
from scipy.special import logsumexp

from ppl_med.analysis.statistics import monte_carlo
from ppl_med.analysis.tree import (
    Posterior,
    count_left_out,
    join_blocks,
    needed_log_likelihood,
    open_log_likelihood,
)
from ppl_med.axes import SAMPLES


def elpd_heldout(tree: Posterior, site: str | None = None, *, mcse: bool = True) -> xr.Dataset:
    """Estimate the expected log predictive density from held-out cases.

    Args:
        tree: The tree of `predict` on cases with observations that were not used for training.
            Entries that were not observed (-1 or NaN) are left out: they have no density.
        site: Name of the observed site; None takes label or mask, or the only one.
        mcse: Add Monte Carlo standard errors. A single draw has none: then pass False.

    Returns:
        Dataset with ``elpd`` (case, ...), the log of the mean likelihood over draws, nats, and
        ``elpd_mcse``; ``elpd_sum`` over all cases with ``elpd_sum_mcse`` (draws are shared by
        the cases) and ``elpd_sum_se`` (from the number of cases; NaN for one).

    Raises:
        ValueError: No log-likelihood or one that is a loss and no density, the tree is of training
            cases or does not say, or one draw with ``mcse=True``.

    Warns:
        RuntimeWarning: A case has likelihood 0 under every draw.

    Source: Vehtari, Gelman and Gabry, Statistics and Computing 27, 2017, equations 1 to 4.
    """
    likelihood = needed_log_likelihood(tree, site)
    kind = tree.attrs.get("log_likelihood_of")
    if kind == "training":
        raise ValueError(
            "The log-likelihood is of training cases, so log-mean-exp is too optimistic. Use "
            "arviz_stats.loo(tree), or predict on held-out cases."
        )
    if str(kind).startswith("held-out cases, but"):
        raise ValueError(
            f"The log-likelihood is of {kind}. Score the predictions themselves, boxes by "
            "analysis.detection."
        )
    if kind != "held-out":
        raise ValueError(
            f"tree.attrs['log_likelihood_of'] is {kind!r}; set it to 'held-out' if no case of "
            "this tree was used in training."
        )
    if mcse:
        drawn = open_log_likelihood(tree, site, copies=True)
        assert drawn is not None
        monte_carlo.require_draws(drawn.array)
    parts, total = [], xr.DataArray(0.0)
    for block in likelihood.blocks():
        part, influence = _elpd(likelihood.read(block), mcse)
        parts.append((block, part))
        total = total + influence
    result = join_blocks(parts)
    elpd = result["elpd"]
    counts = count_left_out(elpd)
    warn_infinite(elpd)
    per_case = elpd.sum([dim for dim in elpd.dims if dim != "case"], min_count=1)
    num_cases = counts["num_cases"]
    result["elpd_sum"] = elpd.sum()
    with np.errstate(invalid="ignore"):  # infinite scores have no spread
        spread = per_case.std(ddof=1) if num_cases > 1 else np.nan
        result["elpd_sum_se"] = num_cases**0.5 * spread
    if mcse:
        result["elpd_sum_mcse"] = monte_carlo.standard_error(total)
        result.attrs["mcse"] = monte_carlo.CAVEAT
    for name in result.data_vars:
        result[name].attrs["units"] = "nats"
    result.attrs.update(counts)
    return result


def _elpd(likelihood: xr.DataArray, mcse: bool) -> tuple[xr.Dataset, xr.DataArray]:
    """``elpd`` (case, ...), with its error, and the influence of every draw on the sum."""
    elpd = log_mean_exp(likelihood)
    result = xr.Dataset({"elpd": elpd})
    if not mcse:
        return result, xr.DataArray(0.0)
    # d log m = d m / m for the mean likelihood m of a case
    relative = xr.ufuncs.exp(likelihood - elpd.where(np.isfinite(elpd), 0.0))
    result["elpd_mcse"] = monte_carlo.standard_error(relative)
    return result, relative.sum(elpd.dims)


def log_mean_exp(array: xr.DataArray) -> xr.DataArray:
    """Return the log of the mean over draws of exp(array), without overflow."""
    num_draws = array.sizes["chain"] * array.sizes["draw"]
    template = array.isel(chain=0, draw=0, drop=True)
    with np.errstate(divide="ignore"):
        values = logsumexp(array.transpose(*SAMPLES, ...).values, axis=(0, 1))
    return template.copy(data=values - np.log(num_draws))


def warn_infinite(values: xr.DataArray) -> None:
    """Warn where a log score is infinite."""
    count = int(np.isinf(values.values).sum())
    if count:
        warnings.warn(
            f"{count} observation(s) have probability exactly 0 under every draw: the log score "
            "is infinite. Predict in float64 with log-likelihoods from logits.",
            RuntimeWarning,
            stacklevel=3,
        )
