"""Intervals between draws: the probability that a further draw of their distribution lies inside.

A further draw lies below the k-th smallest of n with probability k / (n + 1), so quantiles of rank
level (n + 1) are taken (Hyndman and Fan, The American Statistician 50, 1996, definition 6).
"""

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from ppl_med.checks import reject

RANKS: Final[Literal["weibull"]] = "weibull"  # the name of these quantiles in NumPy and xarray


def attained(level: float, num_draws: int) -> float:
    """Probability of the central interval: the level, or that between the outermost draws.

    Args:
        level: Level asked for; fewer than 2 / (1 - level) - 1 draws do not reach it.
        num_draws: Draws of all chains.
    """
    return min(level, (num_draws - 1) / (num_draws + 1))


def check_levels(levels: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return probabilities of quantiles or intervals, float64.

    Raises:
        ValueError: They are no list of numbers in (0, 1).
    """
    array = np.asarray(levels, dtype=np.float64)
    if array.ndim != 1 or not array.size or not ((array > 0) & (array < 1)).all():
        reject("levels", "a list of probabilities in (0, 1)", levels)
    return array
