"""Are values uniform on 0 to 1? A simultaneous band around their distribution function, exactly.

The number of n uniform values up to z is Binomial(n, z). A band holds the whole empirical
distribution function (ECDF) with a stated probability if its pointwise level is adjusted for all
points together. That probability is computed here, not simulated: the counts at successive points
are a Markov chain, whose probability to stay inside is a product of matrices.

Source: Säilynoja, Bürkner and Vehtari, "Graphical test for discrete uniformity and its applications
in goodness-of-fit evaluation and multiple sample comparison", Statistics and Computing 32, 2022,
section 2.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.special import gammaln

from ppl_med.checks import inside, reject, whole

MOST_POINTS = 200  # at which the ECDF is read
FAR = 9.0  # standard deviations of a count beyond which nothing is summed
BISECTIONS = 40


class Band(NamedTuple):
    """Where the ECDF of n uniform values runs, with the stated probability at all points together.

    ``points`` are in (0, 1); ``lower`` and ``upper`` are shares of the values, both inside the
    band. ``pointwise`` is the probability of each point to lie outside, at most.
    """

    points: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    pointwise: float


def ecdf_points(num: int) -> np.ndarray:
    """Points at which the ECDF of so many values is read: multiples of 1/n, 199 at most."""
    count = min(whole("num", num, least=2), MOST_POINTS)
    return np.arange(1, count) / count


@lru_cache(maxsize=64)
def uniform_band(num: int, level: float = 0.95) -> Band:
    """The simultaneous band of the ECDF of n independent uniform values.

    Args:
        num: How many values, two or more.
        level: Probability that the ECDF stays inside at every point. Counts are whole, so the
            band's own probability is this or the next larger one.

    Raises:
        ValueError: Too few values, or a level outside (0, 1).
    """
    inside("level", level)
    points = ecdf_points(num)
    low, high = 0.0, 1.0  # pointwise levels: the first keeps all ECDFs inside, the second none
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _probability_inside(num, middle) >= level:
            low = middle
        else:
            high = middle
    lower, upper = _counts_inside(num, low)
    return Band(points, lower / num, upper / num, low)


def ecdf(values: np.ndarray) -> np.ndarray:
    """Share of values up to each of ``ecdf_points``."""
    ordered = np.sort(values)
    return np.searchsorted(ordered, ecdf_points(len(ordered)), side="right") / len(ordered)


def uniformity_p_value(values: np.ndarray) -> float:
    """Probability that the ECDF of as many uniform values leaves the centre as far as this one.

    How far is said by the least pointwise tail probability over all points, so a value below 1 -
    level says that the ECDF leaves ``uniform_band(n, level)``.

    Args:
        values: Independent values in [0, 1], dims (value,), two or more.

    Raises:
        ValueError: They are not, or not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        reject("values", "a list of numbers from 0 to 1", values)
    num = whole("the number of values", len(values), least=2)
    counts = np.rint(ecdf(values) * num).astype(int)
    cdf, sf = _tails(num)
    rows = np.arange(len(counts))
    least = 2 * float(np.minimum(cdf[rows, counts], sf[rows, counts]).min())
    outside = 1 - _probability_inside(num, least * (1 + 1e-9))
    return float(np.clip(outside, least / 2, 1.0))


@lru_cache(maxsize=16)
def _tails(num: int) -> tuple[np.ndarray, np.ndarray]:
    """P(count <= c) and P(count >= c), dims (point, count)."""
    counts, points = np.arange(num + 1), ecdf_points(num)[:, None]
    return stats.binom.cdf(counts, num, points), stats.binom.sf(counts - 1, num, points)


def _counts_inside(num: int, pointwise: float) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest counts at each point whose two-sided tail is above a level."""
    cdf, sf = _tails(num)
    allowed = 2 * np.minimum(cdf, sf) > pointwise
    some = allowed.any(1)
    first = np.where(some, allowed.argmax(1), 1)
    last = np.where(some, num - allowed[:, ::-1].argmax(1), 0)
    return first, last


def _probability_inside(num: int, pointwise: float) -> float:
    """Probability that every count's two-sided tail is above a level."""
    points = ecdf_points(num)
    lower, upper = _counts_inside(num, pointwise)
    far = FAR * np.sqrt(num * points * (1 - points)) + 10
    lower = np.maximum(lower, np.floor(num * points - far).astype(int))
    upper = np.minimum(upper, np.ceil(num * points + far).astype(int))
    if (lower > upper).any():
        return 0.0
    log_factorial = gammaln(np.arange(num + 1) + 1.0)
    chances, counts, before = np.ones(1), np.zeros(1, dtype=int), 0.0
    for point, low, high in zip(points, lower, upper, strict=True):
        step = (point - before) / (1 - before)
        target = np.arange(low, high + 1)
        gain = target[None, :] - counts[:, None]
        possible = gain >= 0
        gain, left = np.where(possible, gain, 0), (num - counts)[:, None]
        log_chance = log_factorial[left] - log_factorial[gain] - log_factorial[left - gain]
        log_chance = log_chance + gain * np.log(step) + (left - gain) * np.log1p(-step)
        chances = chances @ np.where(possible, np.exp(log_chance), 0.0)
        counts, before = target, point
    return float(min(chances.sum(), 1.0))
