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
