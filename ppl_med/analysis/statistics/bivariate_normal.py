"""Distribution function of two correlated normal variables, by Owen's T.

Source: Owen, Annals of Mathematical Statistics 27, 1956.
"""

import numpy as np
from scipy.special import ndtr, owens_t

_FAR = 6.0  # standard deviations beyond which the other variable is alone
_SINGULAR = 1e-12


def joint_below(x: np.ndarray, y: np.ndarray, correlation: float) -> np.ndarray:
    """Return P(X <= x, Y <= y) on a grid, for standard normal X and Y.

    Args:
        x: Values of the one, rising or falling (x,); infinite ones are welcome.
        y: Values of the other (y,).
        correlation: Between them, -1 to 1.

    Returns:
        Probabilities (x, y), exact to 1e-8.
    """
    below = ndtr(x)[:, None], ndtr(y)[None]
    if correlation == 0:
        return np.asarray(below[0] * below[1])
    if 1 - abs(correlation) < _SINGULAR:
        joint = np.minimum(*below) if correlation > 0 else below[0] + below[1] - 1
        return np.asarray(joint).clip(0)
    result = np.asarray(below[0] * below[1])
    near = np.flatnonzero(np.abs(x) < _FAR), np.flatnonzero(np.abs(y) < _FAR)
    if near[0].size and near[1].size:
        result[np.ix_(*near)] = _by_owen(x[near[0]][:, None], y[near[1]][None], correlation)
    return result


def _by_owen(x: np.ndarray, y: np.ndarray, correlation: float) -> np.ndarray:
    root = np.sqrt((1 - correlation) * (1 + correlation))
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = (y / x - correlation) / root, (x / y - correlation) / root
    both_zero = (x == 0) & (y == 0)
    # Where x is 0, T(0, +-inf) = +-1/4; at the origin the closed form is used instead.
    wedges = [np.where(np.isnan(slope), 0.0, slope) for slope in slopes]
    opposite = (x * y < 0) | ((x * y == 0) & (x + y < 0))
    joint = (ndtr(x) + ndtr(y) - opposite) / 2 - owens_t(x, wedges[0]) - owens_t(y, wedges[1])
    origin = 0.25 + np.arcsin(correlation) / (2 * np.pi)
    return np.where(both_zero, origin, joint).clip(0, 1)
