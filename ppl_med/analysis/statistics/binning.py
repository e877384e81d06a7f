"""Calibration bins: confidence cut into bins of equal width, and the gap inside each.

Bins are closed on the right, the first also on the left, so a confidence of exactly 1 belongs
to the last bin. Every function keeps chain and draw where the arrays have them. Entries that are
NaN in ``correct`` or ``confidence`` are left out.
"""

import numpy as np
import xarray as xr
from scipy.stats import beta

from ppl_med.axes import SAMPLES


def membership(confidence: xr.DataArray, bins: int) -> xr.DataArray:
    """Return 1 where a case falls in a bin, else 0: the dimensions of confidence and bin."""
    index = confidence.copy(data=equal_width(confidence.values, bins))
    return (index == xr.DataArray(np.arange(bins), dims="bin")).astype(np.float64)


def equal_width(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Return the index of the bin of every value, 0..bins-1, in the shape of ``confidence``."""
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)


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


def gap_sums(correct: xr.DataArray, confidence: xr.DataArray, bins: int) -> xr.DataArray:
    """Return the sum of correct - confidence over the entries of every bin ([chain, draw,] bin).

    Sums of parts of the cases add up. Arguments as for `calibration_error`.
    """
    correct, confidence = _align(correct, confidence)
    sums, _ = _gaps(correct, confidence, bins)
    inner = {dim: 0 for dim in correct.dims if dim not in SAMPLES}
    template = correct.isel(inner, drop=True).expand_dims(bin=bins, axis=-1)
    return template.copy(data=sums.reshape(template.shape))


def calibration_terms(correct: xr.DataArray, confidence: xr.DataArray, bins: int) -> xr.DataArray:
    """Return what every case adds to the calibration error; its mean over cases is the error.

    The term is (correct - confidence) with the sign of the gap of its bin: the influence of the
    case wherever no gap is zero.
    """
    correct, confidence = _align(correct, confidence)
    sums, flat = _gaps(correct, confidence, bins)
    sign = np.sign(sums)[flat].reshape(correct.shape)
    return (correct - confidence) * correct.copy(data=sign)


def clopper_pearson(
    hits: np.ndarray, count: np.ndarray, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact binomial interval of a share; NaN where ``count`` is 0.

    Source: Clopper and Pearson, Biometrika 26, 1934.
    """
    tail = (1 - level) / 2
    misses = count - hits
    lower = np.where(hits > 0, beta.ppf(tail, np.maximum(hits, 1), misses + 1), 0.0)
    upper = np.where(misses > 0, beta.isf(tail, hits + 1, np.maximum(misses, 1)), 1.0)
    empty = count == 0
    return np.where(empty, np.nan, lower), np.where(empty, np.nan, upper)


def _align(correct: xr.DataArray, confidence: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    samples = [dim for dim in SAMPLES if dim in correct.dims]
    correct = correct.transpose(*samples, ...)
    return correct, confidence.transpose(*correct.dims)


def _gaps(
    correct: xr.DataArray, confidence: xr.DataArray, bins: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of (correct - confidence) for every draw and bin, and the flat bin of every entry."""
    num_samples = sum(dim in SAMPLES for dim in correct.dims)
    gap = (correct - confidence).values
    gap = np.where(np.isnan(gap), 0.0, gap)
    rows = int(np.prod(gap.shape[:num_samples], dtype=int))
    index = equal_width(confidence.values, bins).reshape(rows, -1)
    flat = index + bins * np.arange(rows)[:, None]
    return np.bincount(flat.ravel(), gap.ravel(), minlength=rows * bins), flat
