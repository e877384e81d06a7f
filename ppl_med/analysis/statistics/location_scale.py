"""Distributions of a location and a scale: distribution functions and scores in closed form.

    normal, laplace    the variance is 1, 2 times the squared scale
    student_t          the variance is nu / (nu - 2) times the squared scale

Sources of the CRPS: Grimit et al., QJRMS 132, 2006 (normal); Jordan et al., Journal of Statistical
Software 90, 2019 (Laplace).
"""

import numpy as np
from scipy.special import ndtr, stdtr
from scipy.stats import norm

_RATIOS = {"normal": 1.0, "laplace": 2.0}
_TOLERANCE = 1e-3  # of the ratio of variance to squared scale, stored in float32


def check_law(law: str, ratio: np.ndarray | None) -> None:
    """Raise where a distribution contradicts the variance that the tree holds.

    Args:
        law: "normal", "laplace" or "student_t".
        ratio: Variance over squared scale, or None where the tree holds no variance.

    Raises:
        ValueError: The ratio is not that of the distribution.
    """
    if law == "student_t":
        if ratio is None or not (ratio > 1).all():
            raise ValueError("law='student_t' contradicts a variance not above the squared scale.")
        return
    expected = _RATIOS[law]
    if ratio is not None and not (np.abs(ratio - expected) < _TOLERANCE * expected).all():
        raise ValueError(
            f"law={law!r} contradicts the variance of the tree: it is {ratio.flat[0]:.4g} times "
            f"the squared scale, not {expected:g}."
        )


def cdf(z: np.ndarray, law: str, ratio: np.ndarray | None) -> np.ndarray:
    """Return the distribution function at (value - location) / scale; for ``ratio`` see above.

    Raises:
        ValueError: As for `check_law`.
    """
    check_law(law, ratio)
    if law == "student_t":
        assert ratio is not None
        return np.asarray(stdtr(2 * ratio / (ratio - 1), z))
    if law == "normal":
        return np.asarray(ndtr(z))
    half = 0.5 * np.exp(-np.abs(z))
    return np.where(z < 0, half, 1 - half)


def crps(z: np.ndarray, law: str) -> np.ndarray:
    """Return the CRPS over the scale, of "normal" or "laplace", at (value - location) / scale."""
    if law == "normal":
        return z * (2 * ndtr(z) - 1) + 2 * norm.pdf(z) - np.pi**-0.5
    return np.asarray(np.abs(z) + np.exp(-np.abs(z)) - 0.75)
