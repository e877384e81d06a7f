"""Monte Carlo standard error of a figure computed from posterior draws.

A figure that is a mean over draws, or a smooth function of such means, is linearised
(delta method): every draw s gets an influence phi_s, and the error of the figure is the
error of mean(phi). Chains are random effects. With C chains of D independent draws

    MCSE^2 = max(between, within) / (C D)

where `between` is the mean square between chains and `within` the mean square inside them:
the analysis-of-variance estimate with its variance component truncated at zero. So one chain
gives sd / sqrt(D); members of an ensemble with one draw each give sd / sqrt(C); chains that
disagree (another mode, autocorrelated draws) raise the error, and copies of the same member
do not lower it. With few chains that agree it errs on the large side. Draws that share their
weights (`predict` with ``samples``) are averaged first: D counts draws of the weights, see
`ppl_med.analysis.statistics.weight_draws`.

Source: Searle, Casella and McCulloch, Variance Components, Wiley 1992, chapter 3.
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.statistics.weight_draws import (
    between_pairs,
    num_functions,
    over_weights,
    own_means,
    weights_of,
)
from ppl_med.axes import SAMPLES

CAVEAT = (
    "delta method over draws with chains as random effects; draws of a single chain are taken "
    "as independent, but for those that share their weights, which count once"
)


def standard_error(influence: xr.DataArray) -> xr.DataArray:
    """Return the standard error of ``influence.mean(SAMPLES)``.

    Args:
        influence: Influence of every draw (chain, draw, ...), in the unit of the figure.

    Returns:
        Standard error (...), in the same unit; NaN where the influence is, and where all of several
        draws share their weights, for nobody knows what others say; 0 of one function.
    """
    alone = influence.sizes["draw"] > 1 and num_functions(influence) == 1
    influence = over_weights(influence)
    chains, draws = influence.sizes["chain"], influence.sizes["draw"]
    # Equal draws must give exactly zero, so the first draw is taken off before averaging.
    first = influence.isel(chain=0, draw=0, drop=True)
    shifted = influence - first
    skip = bool(np.isnan(shifted.values.sum()))
    chain_mean = shifted.mean("draw", skipna=skip)
    square = xr.zeros_like(chain_mean.isel(chain=0, drop=True))
    if draws > 1:
        shifted -= chain_mean  # in place, for it is as large as the draws
        shifted **= 2
        square = shifted.sum(SAMPLES, skipna=skip) / (chains * (draws - 1))
    if chains > 1:
        spread = chain_mean.var("chain", ddof=1, skipna=skip)
        square = xr.ufuncs.maximum(square, draws * spread)
    error = (square / (chains * draws)) ** 0.5
    known = first.notnull() & (not alone)
    return error if bool(known.all()) else error.where(known)


def mean(array: xr.DataArray) -> xr.DataArray:
    """Return the mean over chain and draw; exact when all draws are equal."""
    first = array.isel(chain=0, draw=0, drop=True)
    values = array.transpose(*SAMPLES, *first.dims).values
    start = values[0, 0]
    total = np.zeros_like(start, start.dtype if start.dtype.kind == "f" else np.float64)
    shifted = np.empty_like(total)
    for place in np.ndindex(*values.shape[:2]):  # draw by draw, which fits the cache
        total += np.subtract(values[place], start, out=shifted)
    total /= values.shape[0] * values.shape[1]
    total += start
    if np.isnan(total.sum()):  # draws that are NaN are left out
        return first + (array - first).mean(SAMPLES, skipna=True)
    return first.copy(data=total)


def variance_influence(array: xr.DataArray) -> xr.DataArray:
    """Return what every draw adds to the variance between draws; its mean over them is that.

    The variance is unbiased for the distribution behind n independent functions: its divisor is
    n - 1. Of one function it is 0. Of draws that share their weights, it is the variance of two
    draws with different ones; where all share them, that of this function's draws.
    """
    if weights_of(array) is not None:
        deviation = array - mean(array)
        return between_pairs(deviation**2, (array - own_means(array)) ** 2)
    number = array.sizes["chain"] * array.sizes["draw"]
    influence = array - mean(array)
    influence *= influence  # in place, for it is as large as the draws
    influence *= number / max(number - 1, 1)
    return influence


def spread(array: xr.DataArray) -> xr.DataArray:
    """Return the standard deviation of two draws that share no weights, divisor n - 1."""
    return variance_influence(array).mean(SAMPLES) ** 0.5


def require_draws(array: xr.DataArray | xr.Dataset) -> None:
    """Raise unless ``array`` holds two draws of the weights, counted over chain and draw."""
    if num_functions(array) > 1:
        return
    if array.sizes["draw"] > 1:
        raise ValueError(
            "A Monte Carlo standard error needs at least two draws of the weights, and all draws "
            "of the tree share theirs. Predict with draws=32 or more beside samples; for a point "
            "estimate pass mcse=False."
        )
    raise ValueError(
        "A Monte Carlo standard error needs at least two draws and the tree holds one. "
        "Predict with draws=32 or more; for a point estimate pass mcse=False."
    )


def all_equal(probs: xr.DataArray) -> bool:
    """Return whether every draw of every chain is the same function (a point estimate)."""
    return bool((probs == probs.isel(chain=0, draw=0)).all())
