"""Frequencies of modes against their true probabilities: divergences and their errors.

    kl_empirical_true  sum f log(f / p)      nats
    kl_true_empirical  sum p log(p / f)      nats; infinite where a mode was never drawn
    total_variation    sum |f - p| / 2       probability

f pools the samples of all cases, and p is the mean of the true probabilities over the same samples:
where these depend on the image, the figures test the marginal distribution only. A model that
ignores the image can pass them, but not

    kl_per_case        sum f_i log(f_i / p_i) inside each case, nats

A perfect sampler has positive figures too, from its finite number of samples; ``<name>_perfect``
gives them. Errors come from the spread over cases, by the delta method; at f = p the first
derivative vanishes, and there the perfect value is the yardstick, not the error.
"""

import numpy as np
import xarray as xr
from scipy.special import rel_entr, xlogy
from scipy.stats import binom

_SUM_TOLERANCE = 1e-6


def check_probabilities(values: np.ndarray, name: str) -> np.ndarray:
    """Return probabilities (..., mode) as float64, or raise unless each row sums to one."""
    values = np.asarray(values, dtype=np.float64)
    error = float(np.abs(values.sum(-1) - 1).max())
    if not (values >= 0).all() or error > _SUM_TOLERANCE:
        raise ValueError(
            f"{name} must be non-negative and sum to one; the smallest is {values.min():.3g}, the "
            f"sum is off by {error:.3g}."
        )
    return values


def compare(counts: np.ndarray, truth: np.ndarray) -> xr.Dataset:
    """Compare pooled frequencies with mean probabilities.

    Args:
        counts: Samples of every mode (case, mode).
        truth: True probability of every mode (case, mode).

    Returns:
        Dataset of scalars ``kl_empirical_true``, ``kl_true_empirical`` (nats),
        ``total_variation`` (probability), each with ``_se`` over cases and ``_perfect``, the value
        expected from as many independent samples of the truth (large N; none for the second, which
        is infinite with positive probability).
    """
    number = counts.sum(1, keepdims=True)
    total = float(number.sum())
    f, p = counts.sum(0) / total, (number * truth).sum(0) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        log, ratio = np.log(f / p), f / p
    seen, possible = f > 0, p > 0
    slopes = {  # derivative by f, derivative by p
        "kl_empirical_true": (np.where(seen, log, 0.0), np.where(seen, -ratio, 0.0)),
        "kl_true_empirical": (
            np.where(possible, -1 / np.where(seen, ratio, 1.0), 0.0),
            np.where(possible & seen, -log, 0.0),
        ),
        "total_variation": (np.sign(f - p) / 2, -np.sign(f - p) / 2),
    }
    values = {
        "kl_empirical_true": float(rel_entr(f, p).sum()),
        "kl_true_empirical": float(rel_entr(p, f).sum()),
        "total_variation": float(np.abs(f - p).sum() / 2),
    }
    spread = (number * truth * (1 - truth)).sum(0) / total**2  # variance of a perfect sampler's f
    binomial = p * (1 - p) / total
    # Truths that differ from case to case spread less than the binomial of their mean.
    narrower = np.sqrt(np.divide(spread, binomial, out=np.zeros_like(p), where=binomial > 0))
    perfect = {
        "kl_empirical_true": float((spread[possible] / p[possible]).sum() / 2),
        "total_variation": float((_deviation(p, total) * narrower).sum() / 2),
    }
    result = xr.Dataset()
    for name, value in values.items():
        unit = "probability" if name == "total_variation" else "nats"
        result[name] = ((), value, {"units": unit})
        by_f, by_p = slopes[name]
        influence = (counts - number * f) @ by_f + (number * (truth - p)) @ by_p
        error = _error(influence, total) if np.isfinite(value) else np.nan
        result[f"{name}_se"] = ((), error, {"units": unit, "note": "over cases, delta method"})
        if name in perfect:
            note = f"of a perfect sampler with {total:g} independent samples"
            result[f"{name}_perfect"] = ((), perfect[name], {"units": unit, "note": note})
    return result


def kl_per_case(counts: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the divergence of the frequencies from the truth in every case, and its expectation.

    Args:
        counts: Samples of every mode (case, mode).
        truth: True probability of every mode (case, mode).

    Returns:
        KL(f_i || p_i) (case), nats, NaN for a case without samples; and its exact mean over sets
        of as many independent samples of p_i, NaN also where counts are no integers (shared ties).
    """
    number = counts.sum(1)
    filled = np.where(number > 0, number, np.nan)
    found = rel_entr(counts / filled[:, None], truth).sum(1)
    expected = np.full(len(counts), np.nan)
    whole = (number > 0) & (counts == np.round(counts)).all(1)
    for size in np.unique(number[whole]).astype(int):
        rows = whole & (number == size)
        # E f log f with f = k / size, k binomial; and E f log p = p log p
        share = np.arange(size + 1) / size
        chance = binom.pmf(np.arange(size + 1), size, truth[rows][..., None])
        expected[rows] = (chance @ xlogy(share, share) - xlogy(truth[rows], truth[rows])).sum(1)
    return found, expected


def entropy(truth: np.ndarray) -> float:
    """Return the entropy of probabilities (..., mode), nats, averaged over the leading axes."""
    return float(-xlogy(truth, truth).sum(-1).mean())


def _deviation(p: np.ndarray, number: float) -> np.ndarray:
    """Return E |f - p| of the share f of as many samples (de Moivre)."""
    size = max(round(number), 1)
    above = np.floor(size * p) + 1
    return 2 * above * (1 - p) * binom.pmf(above, size, p) / size


def _error(influence: np.ndarray, total: float) -> float:
    number = len(influence)
    if number < 2:
        return np.nan
    return float(np.sqrt((influence**2).sum() * number / (number - 1)) / total)
