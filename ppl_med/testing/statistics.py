"""Assertions with a false-alarm rate in the place of a tolerance."""

from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

from ppl_med.checks import inside

SMALLEST_SAMPLE = 10


def assert_mean(samples: Any, expected: Any, false_alarm: float = 1e-6) -> None:
    """Assert that independent samples have an expected mean.

    A two-sided z-test of each entry with its estimated standard error, so the normal law is
    replaced by Student's t; the false-alarm rate is shared among the entries (Bonferroni).

    Args:
        samples: Array or tensor (sample, ...), at least 10 samples.
        expected: Its mean, a number or an array of the other axes' shape.
        false_alarm: Probability that samples with this mean fail.

    Raises:
        AssertionError: If the mean is another one; the message gives the entry furthest off.
        ValueError: If there are too few samples, shapes do not fit, or a value is not finite.
    """
    values, wanted = _array(samples, "samples"), _array(expected, "expected")
    inside("false_alarm", false_alarm)
    if values.ndim == 0 or len(values) < SMALLEST_SAMPLE:
        raise ValueError(
            f"samples has shape {values.shape}; give {SMALLEST_SAMPLE} or more samples"
        )
    if wanted.ndim and wanted.shape != values.shape[1:]:
        raise ValueError(f"expected has shape {wanted.shape}; a sample has {values.shape[1:]}")
    difference = values.mean(0) - wanted
    standard_error = values.std(0, ddof=1) / np.sqrt(len(values))
    # Equal samples have no standard error; what rounding leaves is not evidence.
    rounding = 8 * np.finfo(np.float64).eps * np.abs(values).max(0)
    excess = np.maximum(np.abs(difference) - rounding, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.where(excess > 0, excess / standard_error, 0.0)
    limit = stats.t.isf(false_alarm / 2 / score.size, len(values) - 1)
    if (score > limit).any():
        at = np.unravel_index(score.argmax(), score.shape)
        where = f" at {tuple(map(int, at))}" if score.ndim else ""
        raise AssertionError(
            f"the mean of {len(values)} samples{where} is {values.mean(0)[at]:.6g}, expected "
            f"{np.broadcast_to(wanted, score.shape)[at]:.6g}: {score[at]:.1f} standard errors off, "
            f"limit {limit:.1f} (false-alarm rate {false_alarm:g})"
        )


def assert_uniform(pvalues: Any, false_alarm: float = 1e-6) -> None:
    """Assert that independent p-values, PIT values or scaled ranks are uniform on 0 to 1.

    The Kolmogorov-Smirnov test, two-sided; conservative for discrete values.

    Args:
        pvalues: Array or tensor (sample,), at least 10 values from 0 to 1.
        false_alarm: Probability that uniform values fail.

    Raises:
        AssertionError: If they are not uniform; the message gives the largest distance.
        ValueError: If there are too few values, or one is not finite or outside 0 to 1.
    """
    values = _array(pvalues, "pvalues")
    inside("false_alarm", false_alarm)
    if values.ndim != 1 or len(values) < SMALLEST_SAMPLE:
        raise ValueError(
            f"pvalues has shape {values.shape}; give {SMALLEST_SAMPLE} or more in one axis"
        )
    if values.min() < 0 or values.max() > 1:
        raise ValueError(
            f"pvalues runs from {values.min():.6g} to {values.max():.6g}; it must stay in 0 to 1"
        )
    test = stats.kstest(values, "uniform")
    if test.pvalue < false_alarm:
        raise AssertionError(
            f"{len(values)} values are not uniform: their distribution function is "
            f"{test.statistic:.4f} off at {test.statistic_location:.4g}, p = {test.pvalue:.2g} "
            f"(false-alarm rate {false_alarm:g})"
        )


def _array(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return array
