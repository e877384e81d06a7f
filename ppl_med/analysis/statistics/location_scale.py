"""Distributions of a location and a scale: distribution functions and scores in closed form.

    normal, laplace    the variance is 1, 2 times the squared scale
    student_t          the variance is nu / (nu - 2) times the squared scale

Sources of the CRPS: Grimit et al., QJRMS 132, 2006 (normal); Jordan et al., Journal of Statistical
Software 90, 2019 (Laplace).
"""

import numpy as np
from scipy.special import ndtr, stdtr

_RATIOS = {"normal": 1.0, "laplace": 2.0}
_TOLERANCE = 1e-3  # of the ratio of variance to squared scale, stored in float32


def check_distribution(distribution: str, ratio: np.ndarray | None) -> None:
    """Raise where a distribution contradicts the variance that the tree holds.

    Args:
        distribution: "normal", "laplace" or "student_t".
        ratio: Variance over squared scale, or None where the tree holds no variance.

    Raises:
        ValueError: The ratio is not that of the distribution.
    """
    if ratio is not None:
        ratio = ratio[~np.isnan(ratio)]  # where a map is filled up behind a smaller case
    if distribution == "student_t":
        if ratio is None or not (ratio > 1).all():
            raise ValueError(
                "distribution='student_t' contradicts a variance not above the squared scale."
            )
        return
    expected = _RATIOS[distribution]
    if ratio is not None and not (np.abs(ratio - expected) < _TOLERANCE * expected).all():
        raise ValueError(
            f"distribution={distribution!r} contradicts the variance of the tree: it is "
            f"{ratio.flat[0]:.4g} times the squared scale, not {expected:g}."
        )


def cdf(z: np.ndarray, distribution: str, ratio: np.ndarray | None) -> np.ndarray:
    """Return the distribution function at (value - location) / scale; for ``ratio`` see above.

    Raises:
        ValueError: As for `check_distribution`.
    """
    check_distribution(distribution, ratio)
    if distribution == "student_t":
        assert ratio is not None
        return np.asarray(stdtr(2 * ratio / (ratio - 1), z))
    if distribution == "normal":
        return np.asarray(ndtr(z))
    half = 0.5 * np.exp(-np.abs(z))
    return np.where(z < 0, half, 1 - half)


def crps(z: np.ndarray, distribution: str) -> np.ndarray:
    """Return the CRPS over the scale, of "normal" or "laplace", at (value - location) / scale."""
    if distribution == "normal":  # in place, for z is as large as the draws
        result = np.asarray(z * (2 * ndtr(z) - 1))
        density = np.exp(-(z**2) / 2)
        density *= np.sqrt(2 / np.pi)
        result += density
        result -= np.pi**-0.5
        return result
    return np.asarray(np.abs(z) + np.exp(-np.abs(z)) - 0.75)
