"""Isotonic regression of outcomes on probabilities: the recalibrated probability of CORP.

The fit is the non-decreasing function with the least squared error; cases of equal probability
share one value. It minimises every proper score at once.

Sources: Ayer et al., Annals of Mathematical Statistics 26, 1955 (pool adjacent violators);
Dimitriadis, Gneiting and Jordan, PNAS 118, 2021, arXiv:2008.03033 (CORP).
"""

import numpy as np
from scipy.optimize import isotonic_regression


def fit(probability: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """Return the isotonic fit at every case.

    Args:
        probability: Predicted probability (case,).
        outcome: 1 where it happened, else 0, or a share (case,).

    Returns:
        Recalibrated probability (case,), in the order given.
    """
    _, inverse, value = _levels(probability, outcome)
    return value[inverse]


def knots(probability: np.ndarray, outcome: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both ends of every flat piece of the fit, rising; between them it is linear.

    Args:
        probability: Predicted probability (case,).
        outcome: 1 where it happened, else 0 (case,).

    Returns:
        Probability and fitted value at the ends (knot,).
    """
    unique, _, value = _levels(probability, outcome)
    change = np.diff(value) > 0
    ends = np.append(change, True) | np.append(True, change)
    return unique[ends], value[ends]


def _levels(
    probability: np.ndarray, outcome: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    unique, inverse, count = np.unique(probability, return_inverse=True, return_counts=True)
    mean = np.bincount(inverse, outcome) / count
    return unique, inverse, isotonic_regression(mean, weights=count).x
