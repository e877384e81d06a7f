"""Entries put in order by a score: the counts and errors that every curve is computed from.

Entries of equal score form a level. Nothing says which of them comes first, so every curve is the
expectation over a random order inside the levels. With M entries of total error E below a level of
n entries with mean error e, the first M + k entries have the expected total error

    E + k e,        k = 0..n,

a straight line, so that the curves bend only between levels. The risk (mean error) of the first
M + k is (E + k e) / (M + k), and its sum over k has a closed form by the digamma function.

Rounding scores to a level each bounds memory: a rounded score is a tie. `round_off` keeps a given
number of bits of the mantissa, a relative error of 2^-(bits + 1), over the whole range of floats.
"""

from typing import NamedTuple, TypeAlias

import numpy as np
from scipy.special import digamma

Figure: TypeAlias = np.ndarray | np.float64  # a scalar where there are no leading axes
_MANTISSA = 23  # bits of the mantissa of a float32


class Levels(NamedTuple):
    """Levels in rising order of the score; leading axes, such as replicates, are kept.

    Args:
        number: Entries of each level (..., level).
        total: Sum of their errors (..., level).
    """

    number: np.ndarray
    total: np.ndarray


class Table(NamedTuple):
    """Levels by the value they stand for, which can be joined.

    Args:
        value: Score of each level, rising (level).
        levels: Their counts and errors.
    """

    value: np.ndarray
    levels: Levels


def tabulate(score: np.ndarray, error: np.ndarray) -> Table:
    """Count the entries (entry) of every different score and sum their errors."""
    value, index = np.unique(score, return_inverse=True)
    count = np.bincount(index, minlength=value.size).astype(np.float64)
    return Table(value, Levels(count, np.bincount(index, error, value.size)))


def join(first: Table, second: Table) -> Table:
    """Put two tables into one."""
    value, index = np.unique(np.concatenate([first.value, second.value]), return_inverse=True)
    sums = []
    for one, other in zip(first.levels, second.levels, strict=True):
        total = np.zeros((*one.shape[:-1], value.size))
        total[..., index[: first.value.size]] += one
        total[..., index[first.value.size :]] += other
        sums.append(total)
    return Table(value, Levels(*sums))


def round_off(score: np.ndarray, bits: int) -> np.ndarray:
    """Round scores to so many bits of the mantissa of a float32, ties away from zero."""
    shift = np.uint32(_MANTISSA - bits)
    pattern = np.ascontiguousarray(score, np.float32).view(np.uint32)
    if shift == 0:
        return pattern.view(np.float32)
    # A carry from the mantissa raises the exponent, which is the right neighbour.
    half = np.uint32(1) << (shift - np.uint32(1))
    return (((pattern + half) >> shift) << shift).view(np.float32)


def size(levels: Levels) -> Figure:
    """Number of entries (...)."""
    return levels.number.sum(-1)


def kept_error(levels: Levels, coverage: np.ndarray) -> np.ndarray:
    """Expected error of the shares ``coverage`` with the lowest scores, per entry of all (..., c).

    Args:
        levels: In rising order of the score.
        coverage: Shares in (0, 1].

    Returns:
        Their total error over the number of all entries: the generalised risk.
    """
    count, total = _from_zero(levels.number), _from_zero(levels.total)
    rows = zip(count.reshape(-1, count.shape[-1]), total.reshape(-1, count.shape[-1]), strict=True)
    curves = [np.interp(coverage, n / n[-1], e / n[-1]) for n, e in rows]
    return np.array(curves).reshape(*count.shape[:-1], len(coverage))


def mean_risk(levels: Levels) -> Figure:
    """Mean over k = 1..N of the expected risk of the k entries with the lowest scores (...)."""
    return _risk_sums(levels, levels.total).sum(-1) / size(levels)


def mean_generalised_risk(levels: Levels) -> Figure:
    """Area under the generalised risk, by the trapezoid rule between entries (...)."""
    below = _from_zero(levels.total)[..., :-1]
    number = size(levels)
    return (levels.number * (below + levels.total / 2)).sum(-1) / number**2


def average_precision(levels: Levels) -> Figure:
    """Mean, over the entries without error, of the precision at their rank (...).

    In a level of n entries, r of them without error, after M of which R are, an entry without error
    that stands at place j has R + 1 of them up to its rank, and (j - 1) (r - 1) / (n - 1) more on
    average over the orders of the others.

    Args:
        levels: In rising order of the score, errors 0 or 1.
    """
    right, count = levels.number - levels.total, levels.number
    before, reached = _from_zero(count)[..., :-1], _from_zero(right)[..., :-1]
    harmonic = digamma(before + count + 1) - digamma(before + 1)
    others = np.divide(right - 1, count - 1, out=np.zeros_like(right), where=count > 1)
    sums = (reached + 1) * harmonic + others * (count - (before + 1) * harmonic)
    share = np.divide(right, count, out=np.zeros_like(right), where=count > 0)
    return (sums * share).sum(-1) / right.sum(-1)


def kept_at_recall(levels: Levels, recall: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision, and share of entries kept, once a share of those without error is kept.

    Args:
        levels: In rising order of the score, errors 0 or 1.
        recall: Shares in (0, 1].

    Returns:
        Precision and coverage (..., recall), NaN where no entry is without error.
    """
    right = levels.number - levels.total
    shape = right.shape[:-1]
    flat = zip(right.reshape(-1, right.shape[-1]), levels.number.reshape(-1, right.shape[-1]),
               strict=True)  # fmt: skip
    found = np.array([_at_recall(*row, recall) for row in flat])
    precision, coverage = found.transpose(1, 0, 2)
    return precision.reshape(*shape, -1), coverage.reshape(*shape, -1)


def _at_recall(
    right: np.ndarray, count: np.ndarray, recall: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    reached, kept = np.cumsum(right), np.cumsum(count)
    if not reached[-1] > 0:
        return np.full(recall.shape, np.nan), np.full(recall.shape, np.nan)
    wanted = recall * reached[-1]
    # The level in which the share is reached has entries without error, whatever comes before.
    level = np.minimum(np.searchsorted(reached, wanted - 1e-9), len(reached) - 1)
    missing = (reached[level] - wanted) / right[level]
    number = kept[level] - missing * count[level]
    return wanted / number, number / kept[-1]


def _risk_sums(levels: Levels, total: np.ndarray) -> np.ndarray:
    """Sum over the ranks of every level of the expected mean of ``total`` up to that rank."""
    count = levels.number
    share = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    before, below = _from_zero(count)[..., :-1], _from_zero(total)[..., :-1]
    harmonic = digamma(before + count + 1) - digamma(before + 1)
    result: np.ndarray = count * share + (below - share * before) * harmonic
    return result


def _from_zero(values: np.ndarray) -> np.ndarray:
    start = np.zeros((*values.shape[:-1], 1))
    return np.concatenate([start, np.cumsum(values, -1)], -1)
