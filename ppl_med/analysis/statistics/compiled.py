"""Loops over draws that numba compiles, where it is installed: ``pip install ppl-med[fast]``.

Each reads the probabilities once, as they are stored, for what numpy needs a dozen passes and
copies for. Without numba the analyses give the same numbers to rounding.
"""

import functools
import importlib
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

LEAST = 2**23  # numbers, below which importing numba takes longer than it saves
_RUN = 64  # cases whose draws are read together, so that their sums stay in the cache
_LOGARITHMS = 2**16  # taken at once: they stay in a core's own cache


class ScoreSums(NamedTuple):
    """What a run of cases adds to the scores, see `score_sums`."""

    accuracy: np.ndarray
    nll: np.ndarray
    brier: np.ndarray
    gap: np.ndarray
    hits: np.ndarray


def pays(size: int, dtype: np.dtype) -> bool:
    """Return whether numba is there, and worth it for so many numbers of a type."""
    return size >= LEAST and dtype in (np.float32, np.float64) and _numba() is not None


def means(values: np.ndarray, tolerance: float) -> tuple[np.ndarray, bool]:
    """Return the means over draws, and whether all values are probabilities.

    Args:
        values: Probabilities (draw, case, class), float32 or float64.
        tolerance: Largest error of a sum over classes.

    Returns:
        Means (case, class), float64, exact where all draws are equal; the flag.
    """
    result = np.empty(values.shape[1:])
    return result, bool(_compiled(_means)(values, tolerance, _RUN, result))


def score_sums(
    values: np.ndarray, label: np.ndarray, bins: int, tolerance: float
) -> tuple[ScoreSums, np.ndarray, bool]:
    """Return sums over cases of the scores of every draw, and what `means` does.

    Args:
        values: Probabilities (draw, case, class), float32 or float64.
        label: Observed classes (case,), negative where there is none: left out of the sums.
        bins: Number of bins of equal width, see `binning.equal_width`.
        tolerance: As for `means`.

    Returns:
        Sums over cases: of accuracy, negative logarithm and Brier score (draw,), of correct less
        confidence (draw, bin), of correct by observed class (draw, class); means; the flag.
    """
    draws, _, classes = values.shape
    accuracy, nll, brier = np.zeros((3, draws))
    sums = ScoreSums(accuracy, nll, brier, np.zeros((draws, bins)), np.zeros((draws, classes)))
    edges, result = np.linspace(0, 1, bins + 1), np.empty(values.shape[1:])
    valid = _compiled(_score_sums)(values, label, edges, tolerance, _RUN, result, *sums)
    return sums, result, bool(valid)


def variance_sums(values: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return sums of p (1 - p) and of (p - mean)^2.

    Args:
        values: Probabilities (draw, case, class), float32 or float64.
        mean: Their mean over draws (case, class).

    Returns:
        Sums over draws (2, case, class) and over cases (2, draw, class); whether all draws are
        equal.
    """
    over_draws, over_cases = np.zeros((2, *mean.shape)), np.zeros((2, len(values), mean.shape[1]))
    equal = _compiled(_variance_sums)(values, mean, _RUN, over_draws, over_cases)
    return over_draws, over_cases, bool(equal)


def entropies(
    values: np.ndarray, log_mean: np.ndarray, logarithm: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, bool]:
    """Return entropy, cross entropy with the mean, and dissent of every draw.

    Args:
        values: Probabilities (draw, case, class), float32 or float64.
        log_mean: Logarithms of their mean over draws (case, class).
        logarithm: What takes them; numpy's are faster than compiled ones.

    Returns:
        The three (3, draw, case), see `entropies.Entropies`; whether all draws are equal.
    """
    draws, cases, classes = values.shape
    found, equal = np.empty((3, draws, cases)), True
    run = max(1, _LOGARITHMS // (draws * classes))
    for start in range(0, cases, run):
        part = slice(start, start + run)
        logs = logarithm(values[:, part])
        same = _compiled(_entropies)(values[:, part], logs, log_mean[part], found[:, :, part])
        equal = equal and bool(same)
    return found, equal


@functools.cache
def _numba() -> Any:
    """The package, or None."""
    try:
        return importlib.import_module("numba")
    except ImportError:
        return None


@functools.cache
def _compiled(loop: Callable[..., bool]) -> Callable[..., bool]:
    # What tests wrap around a function, to check its annotations, cannot be compiled.
    bare = inspect.unwrap(loop)
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return _numba().njit(bare, cache=True, **options)
    except RuntimeError:  # no folder to keep compiled code in
        return _numba().njit(bare, **options)


def _means(values: Any, tolerance: float, run: int, result: Any) -> bool:
    draws, cases, classes = values.shape
    valid = True
    for start in range(0, cases, run):
        end = min(start + run, cases)
        result[start:end] = 0.0
        for s in range(draws):
            for n in range(start, end):
                total, lowest = 0.0, 0.0
                for k in range(classes):
                    p = np.float64(values[s, n, k])
                    total += p
                    lowest = min(lowest, p)
                    result[n, k] += p - values[0, n, k]
                if not (abs(total - 1.0) <= tolerance and lowest >= 0.0):  # or NaN
                    valid = False
        for n in range(start, end):
            for k in range(classes):
                result[n, k] = result[n, k] / draws + values[0, n, k]
    return valid


def _score_sums(
    values: Any, label: Any, edges: Any, tolerance: float, run: int, result: Any,
    accuracy: Any, nll: Any, brier: Any, gap: Any, hits: Any,
) -> bool:  # fmt: skip
    draws, cases, classes = values.shape
    bins = len(edges) - 1
    valid = True
    for start in range(0, cases, run):
        end = min(start + run, cases)
        result[start:end] = 0.0
        for s in range(draws):
            for n in range(start, end):
                total, squares, lowest, highest, best = 0.0, 0.0, 0.0, -1.0, 0
                for k in range(classes):
                    p = np.float64(values[s, n, k])
                    total += p
                    squares += p * p
                    lowest = min(lowest, p)
                    if p > highest:
                        highest, best = p, k
                    result[n, k] += p - values[0, n, k]
                if not (abs(total - 1.0) <= tolerance and lowest >= 0.0):  # or NaN
                    valid = False
                y = label[n]
                if y < 0:
                    continue
                hit = np.float64(values[s, n, y])
                correct = 1.0 if best == y else 0.0
                accuracy[s] += correct
                nll[s] -= math.log(hit) if hit > 0.0 else -math.inf
                brier[s] += max(squares - hit * hit, 0.0) + (1.0 - hit) ** 2
                place = min(max(math.ceil(min(highest, 2.0) * bins) - 1, 0), bins - 1)
                if place > 0 and highest <= edges[place]:
                    place -= 1
                elif place < bins - 1 and highest > edges[place + 1]:
                    place += 1
                gap[s, place] += correct - highest
                hits[s, y] += correct
        for n in range(start, end):
            for k in range(classes):
                result[n, k] = result[n, k] / draws + values[0, n, k]
    return valid


def _variance_sums(values: Any, mean: Any, run: int, over_draws: Any, over_cases: Any) -> bool:
    draws, cases, classes = values.shape
    equal = True
    for start in range(0, cases, run):
        end = min(start + run, cases)
        for s in range(draws):
            for n in range(start, end):
                for k in range(classes):
                    p = np.float64(values[s, n, k])
                    inside, between = (1.0 - p) * p, (p - mean[n, k]) ** 2
                    over_draws[0, n, k] += inside
                    over_draws[1, n, k] += between
                    over_cases[0, s, k] += inside
                    over_cases[1, s, k] += between
                    equal = equal and values[s, n, k] == values[0, n, k]
    return equal


def _entropies(values: Any, logs: Any, log_mean: Any, found: Any) -> bool:
    draws, cases, classes = values.shape
    equal = True
    votes = np.zeros((cases, classes))
    share = np.empty((draws, cases))  # of its vote that each of the classes in the lead gets
    highest = np.empty((draws, cases))
    for s in range(draws):
        for n in range(cases):
            own, cross, most, leads = 0.0, 0.0, -1.0, 0  # no branch that depends on a number
            for k in range(classes):
                p = np.float64(values[s, n, k])
                own += p * logs[s, n, k]
                cross += p * log_mean[n, k]
                most = max(most, p)
            for k in range(classes):
                leads += values[s, n, k] == most
            found[0, s, n], found[1, s, n] = -own, -cross
            highest[s, n], share[s, n] = most, 1.0 / leads
            for k in range(classes):
                votes[n, k] += share[s, n] * (values[s, n, k] == most)
                equal = equal and values[s, n, k] == values[0, n, k]
    for n in range(cases):
        mode = 0
        for k in range(1, classes):
            if votes[n, k] > votes[n, mode]:
                mode = k
        for s in range(draws):
            agrees = values[s, n, mode] == highest[s, n]
            found[2, s, n] = 1.0 - share[s, n] if agrees else 1.0
    return equal
