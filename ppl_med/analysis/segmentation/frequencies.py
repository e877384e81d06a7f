"""Frequencies of modes against their true probabilities: divergences and their errors.

    kl_empirical_true  sum f log(f / p)      nats; a perfect sampler has (M - 1) / (2 N) on average
    kl_true_empirical  sum p log(p / f)      nats; infinite where a mode was never drawn
    total_variation    sum |f - p| / 2       probability

f is the mean over cases of the frequencies per case. Errors come from the spread over cases, by
the delta method; at f = p the first derivative vanishes, and there the value for a perfect sampler
is the yardstick, not the error.
"""

import numpy as np
import xarray as xr
from scipy.special import rel_entr, xlogy

_SUM_TOLERANCE = 1e-6


def check_probabilities(probabilities: np.ndarray, name: str) -> np.ndarray:
    """Return probabilities (mode,) as float64, or raise unless they are a law."""
    values = np.asarray(probabilities, dtype=np.float64)
    if not (values >= 0).all() or abs(float(values.sum()) - 1) > _SUM_TOLERANCE:
        raise ValueError(
            f"{name} must be non-negative and sum to one; the smallest is {values.min():.3g}, the "
            f"sum {values.sum():.6g}."
        )
    return values


def compare(per_case: np.ndarray, weight: np.ndarray, truth: np.ndarray) -> xr.Dataset:
    """Compare pooled frequencies with a law.

    Args:
        per_case: Counts of every mode (case, mode).
        weight: Samples counted per case (case), the sums of ``per_case``.
        truth: True probability of every mode (mode,).

    Returns:
        Dataset of scalars ``kl_empirical_true``, ``kl_true_empirical`` (nats),
        ``total_variation`` (probability), each with ``_se`` over cases and ``_perfect``, the value
        expected from as many independent samples of the truth (large N; none for the second, which
        is infinite with positive probability).
    """
    total = float(weight.sum())
    pooled = per_case.sum(0) / total
    residual = per_case - weight[:, None] * pooled  # what a case adds to the error of f
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = {
            "kl_empirical_true": np.where(pooled > 0, np.log(pooled / truth), 0.0),
            "kl_true_empirical": np.where(truth > 0, -truth / pooled, 0.0),
            "total_variation": np.sign(pooled - truth) / 2,
        }
    values = {
        "kl_empirical_true": float(rel_entr(pooled, truth).sum()),
        "kl_true_empirical": float(rel_entr(truth, pooled).sum()),
        "total_variation": float(np.abs(pooled - truth).sum() / 2),
    }
    support = int((truth > 0).sum())
    perfect = {
        "kl_empirical_true": (support - 1) / (2 * total),
        # the mean absolute value of a normal variable of variance p (1 - p) / N
        "total_variation": float(np.sqrt(truth * (1 - truth) / (2 * np.pi * total)).sum()),
    }
    result = xr.Dataset()
    for name, value in values.items():
        unit = "probability" if name == "total_variation" else "nats"
        result[name] = ((), value, {"units": unit})
        error = _error(residual, slopes[name], total) if np.isfinite(value) else np.nan
        result[f"{name}_se"] = ((), error, {"units": unit, "note": "over cases, delta method"})
        if name in perfect:
            note = f"of a perfect sampler with {total:g} independent samples"
            result[f"{name}_perfect"] = ((), perfect[name], {"units": unit, "note": note})
    return result


def entropy(truth: np.ndarray) -> float:
    """Return the entropy of a law, nats."""
    return float(-xlogy(truth, truth).sum())


def ratio_error(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return the standard error over cases of sum(part) / sum(whole), leading axis case."""
    total = whole.sum(0)
    used = (whole > 0).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = part - whole * (part.sum(0) / total)
        square = (residual**2).sum(0) * used / np.where(used > 1, used - 1, np.nan)
        return np.sqrt(square) / total


def _error(residual: np.ndarray, slope: np.ndarray, total: float) -> float:
    number = len(residual)
    if number < 2:
        return np.nan
    influence = residual @ slope
    return float(np.sqrt((influence**2).sum() * number / (number - 1)) / total)
