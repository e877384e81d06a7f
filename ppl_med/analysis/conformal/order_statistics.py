"""Which order statistic of the calibration scores is the threshold, and what coverage follows.

With n scores exchangeable with the score of a test case and

    k = ceil((n + 1)(1 - alpha)),   threshold = k-th smallest score   (infinite if k > n)

a test score is at most the threshold with probability k / (n + 1) >= 1 - alpha when scores have
no ties, and more when they have. Given the calibration scores the coverage follows
Beta(k, n + 1 - k), and the covered among m test cases BetaBinomial(m, k, n + 1 - k), exactly.
Interpolated quantiles are not this: they lose the guarantee, or a rank.

Weighted scores (Tibshirani et al., NeurIPS 2019, arXiv:1904.06019, lemma 3) put the probability
w_i / (sum w + w_test) on score i and the rest on infinity; the threshold is the 1 - alpha quantile.

Sources: Vovk, ACML 2012; Angelopoulos and Bates, arXiv:2107.07511, section 3.2.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from scipy.stats import betabinom

LEVEL = 0.99  # probability of every band
_ROUNDING = 1e-12  # relative; sums of weights that should meet the target exactly


def coverage_rank(num_cases: int, alpha: float) -> int:
    """Return k = ceil((n + 1)(1 - alpha)) with alpha read as the decimal that was typed.

    In floating point (n + 1)(1 - alpha) can land just above an integer and lose a rank.
    """
    exact = Fraction(repr(float(alpha)))
    return math.ceil((num_cases + 1) * (1 - exact))


def kth_smallest(scores: np.ndarray, rank: int) -> np.ndarray:
    """Return the ``rank``-th smallest score along the last axis, infinite above their number.

    Args:
        scores: (..., case).
        rank: k, counted from 1.

    Returns:
        (...).
    """
    if rank > scores.shape[-1]:
        return np.full(scores.shape[:-1], np.inf)
    return np.partition(scores, rank - 1, axis=-1)[..., rank - 1]


def weighted_threshold(
    scores: np.ndarray, weights: np.ndarray, test_weights: np.ndarray, alpha: float
) -> np.ndarray:
    """Return the weighted 1 - alpha quantile for every test case.

    Args:
        scores: Scores of the calibration cases (case).
        weights: Their likelihood ratios test / calibration, up to a common factor (case).
        test_weights: Likelihood ratios of the test cases, with the same factor (test,).
        alpha: Miss rate.

    Returns:
        Thresholds (test,), infinite where the calibration cases carry too little weight.
    """
    order = np.argsort(scores, kind="stable")
    below = np.cumsum(weights[order])
    target = (1 - alpha) * (below[-1] + test_weights) * (1 - _ROUNDING)
    place = np.searchsorted(below, target, side="left")
    return np.append(scores[order], np.inf)[place]


def coverage_band(
    num_test: int, num_cases: int, rank: int, level: float = LEVEL
) -> tuple[float, float]:
    """Return the equal-tailed band of the share of covered cases, exact for untied scores.

    Args:
        num_test: Number of test cases.
        num_cases: Number of calibration cases, n.
        rank: k of the calibration; above n every set is full and coverage is 1.
        level: Probability of the band, at least.

    Returns:
        Lower and upper share; a share on either bound is inside.
    """
    return joint_band([(num_test, num_cases, rank)], level)


def joint_band(groups: Sequence[tuple[int, int, int]], level: float = LEVEL) -> tuple[float, float]:
    """Return the band of the share covered over several groups with a threshold each.

    Given the sizes of the groups their counts are independent, so the distribution of the
    total is the convolution of their Beta-binomial distributions.

    Args:
        groups: Test cases, calibration cases n and rank k of every group.
        level: Probability of the band, at least.

    Returns:
        Lower and upper share of all test cases.
    """
    mass = _joint_mass(groups)
    total = len(mass) - 1
    tail = (1 - level) / 2
    lower = int(np.searchsorted(np.cumsum(mass), tail, side="right"))
    upper = total - int(np.searchsorted(np.cumsum(mass[::-1]), tail, side="right"))
    return lower / total, upper / total


def coverage_pvalue(groups: Sequence[tuple[int, int, int]], covered: int) -> float:
    """Return the probability that at most so many cases are covered, by the same distribution.

    Args:
        groups: As for `joint_band`.
        covered: Number of test cases whose set held the observation.
    """
    return float(min(1.0, _joint_mass(groups)[: covered + 1].sum()))


def expected_coverage(groups: Sequence[tuple[int, int, int]]) -> float:
    """Return the mean share that `joint_band` is about: k / (n + 1), averaged over test cases."""
    total = sum(num_test for num_test, _, _ in groups)
    return sum(m / total * min(k / (n + 1), 1.0) for m, n, k in groups)


def _joint_mass(groups: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Probabilities of 0, 1, ... covered test cases over all groups."""
    mass = np.ones(1)
    for num_test, num_cases, rank in groups:
        mass = np.convolve(mass, _mass(num_test, num_cases, rank))
    return mass


def _mass(num_test: int, num_cases: int, rank: int) -> np.ndarray:
    if rank > num_cases:
        return np.eye(num_test + 1)[-1]
    return betabinom.pmf(np.arange(num_test + 1), num_test, rank, num_cases + 1 - rank)
