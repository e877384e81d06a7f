"""Calibration bins: confidence cut into bins of equal width, and the gap inside each.

Bins are closed on the right, the first also on the left, so a confidence of exactly 1 belongs
to the last bin. Every function keeps chain and draw where the arrays have them. Entries that are
NaN in ``correct`` or ``confidence`` are left out.
"""

import numpy as np
import xarray as xr
from scipy.stats import beta, norm

from ppl_med.analysis.statistics.case_means import ratio_error
from ppl_med.axes import SAMPLES


def equal_width(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Return the index of the bin of every value, 0..bins-1, in the shape of ``confidence``."""
    edges = np.linspace(0, 1, bins + 1)
    # Where it should be, then one to the side where rounding has put it on that of an edge.
    guess = np.maximum(np.fmin(np.ceil(confidence * bins) - 1, bins - 1), 0).astype(np.intp)
    guess -= (confidence <= edges[guess]) & (guess > 0)
    guess += (confidence > edges[guess + 1]) & (guess < bins - 1)
    return guess


def calibration_error(correct: xr.DataArray, confidence: xr.DataArray, bins: int) -> xr.DataArray:
    """Return the expected calibration error.

    Args:
        correct: 1 where the prediction is right, else 0 ([chain, draw,] case, ...).
        confidence: Probability of the prediction, same dimensions.
        bins: Number of bins.

    Returns:
        Sum over bins of count / N |accuracy - mean confidence|; (chain, draw) or a scalar.
    """
    inner = [dim for dim in correct.dims if dim not in SAMPLES]
    number = (correct + confidence).count(inner)
    return abs(gap_sums(correct, confidence, bins)).sum("bin") / number


def gap_sums(
    correct: xr.DataArray,
    confidence: xr.DataArray,
    bins: int,
    keep: tuple[str, ...] = SAMPLES,
) -> xr.DataArray:
    """Return the sum of correct - confidence over the entries of every bin ([chain, draw,] bin).

    Sums of parts of the cases add up. Arguments as for `calibration_error`; ``keep`` names the
    dimensions not summed over.
    """
    kept = [dim for dim in keep if dim in correct.dims]
    correct = correct.transpose(*kept, ...)
    confidence = confidence.transpose(*correct.dims)
    gap = (correct - confidence).values
    if np.isnan(gap.sum()):
        gap = np.where(np.isnan(gap), 0.0, gap)
    rows = int(np.prod(gap.shape[: len(kept)], dtype=int))
    index = equal_width(confidence.values, bins).reshape(rows, -1)
    flat = index + bins * np.arange(rows)[:, None]
    sums = np.bincount(flat.ravel(), gap.ravel(), minlength=rows * bins)
    inner = {dim: 0 for dim in correct.dims if dim not in kept}
    template = correct.isel(inner, drop=True).expand_dims(bin=bins, axis=-1)
    return template.copy(data=sums.reshape(template.shape))


def calibration_error_se(gaps: np.ndarray, count: np.ndarray) -> float:
    """Return the standard error over cases of the calibration error.

    Near 0 the size of a gap moves less than the gap: a normal gap with error s loses its sign, and
    its size has the variance of the folded normal, 0.36 s^2 where the gap is truly 0. So the error
    at fixed signs is scaled by the root of sum over bins of those variances / sum of s^2. The true
    gap is taken as g^2 = max(gap^2 - s^2, 0); the result is off by at most 12 % for that.

    Args:
        gaps: Sum of correct - confidence of every case in every bin (case, bin).
        count: Entries of every case (case,).
    """
    linear = float(ratio_error(gaps @ np.sign(gaps.sum(0)), count))
    error = ratio_error(gaps, count[:, None])
    moves = error > 0
    if not moves.any():
        return linear
    error, gap = error[moves], (gaps.sum(0) / count.sum())[moves]
    ratio = np.sqrt(np.maximum((gap / error) ** 2 - 1, 0))
    folded = 2 * (norm.pdf(ratio) - ratio * norm.sf(ratio))  # what folding adds to the mean
    variance = error**2 * (1 - 2 * ratio * folded - folded**2)
    return linear * float(variance.sum() / (error**2).sum()) ** 0.5


def clopper_pearson(
    hits: np.ndarray, count: np.ndarray, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact binomial interval of a share; NaN where ``count`` is 0.

    Both may be effective numbers, which are no whole ones.

    Source: Clopper and Pearson, Biometrika 26, 1934.
    """
    tail = (1 - level) / 2
    misses = count - hits
    lower = np.where(hits > 0, beta.ppf(tail, np.where(hits > 0, hits, 1), misses + 1), 0.0)
    upper = np.where(misses > 0, beta.isf(tail, hits + 1, np.where(misses > 0, misses, 1)), 1.0)
    empty = count == 0
    return np.where(empty, np.nan, lower), np.where(empty, np.nan, upper)
