"""Class probabilities as they are read: checked, float64, and laid out to sum over classes fast."""

import numpy as np
import xarray as xr

from ppl_med.analysis.statistics.case_fill import First

SUM_TOLERANCE = 1e-5  # float32 softmax over a few hundred classes is off by about 1e-6


def fill(values: np.ndarray, axis: int, first: First = None) -> np.ndarray | None:
    """Where a map is filled up behind a case smaller than others: NaN in all classes.

    Args:
        values: Probabilities (..., case, class, *space).
        axis: That of class.
        first: Reads the first entries (..., case, class), where these are others.

    Returns:
        Flags, without the axis of class; None where nothing is, or where a case is NaN everywhere,
        which says that a draw has diverged.
    """
    if np.isfinite(values.min()):
        return None
    flags = np.isnan(values).all(axis)
    space = tuple(range(axis, flags.ndim))
    nothing = flags.all(space)
    if nothing.any() and first is not None:
        nothing &= np.isnan(first()).all(axis)
    return None if nothing.any() else flags


def with_background(values: np.ndarray, filled: np.ndarray, axis: int) -> np.ndarray:
    """Class 0 with probability 1 where a map is filled up; arguments as of `fill`."""
    shape = (values.shape[axis], *[1] * (values.ndim - axis - 1))
    background = np.zeros(shape, values.dtype)
    background[0] = 1
    return np.where(np.expand_dims(filled, axis), background, values)


def check_simplex(values: np.ndarray, axis: int) -> None:
    """Raise unless probabilities are finite, not negative, and sum to one along an axis."""
    lowest, error = _off_simplex(values, axis)
    if lowest >= 0 and error <= SUM_TOLERANCE:
        return
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise ValueError(
            f"probs holds {bad} NaN or infinite values; drop those cases or find the draw that "
            "diverged."
        )
    if lowest < 0:
        raise ValueError(f"probs has negative values ({lowest:.3g}); were logits passed?")
    subset = float(values.sum(axis).max()) < 1 + SUM_TOLERANCE
    raise ValueError(
        f"probs must sum to one over class; the largest error is {error:.3g}. Pass probabilities, "
        "not logits, and one column per class also for two classes."
        + (
            " For some of the classes take analysis.class_subsets.select, which divides by their "
            "sum, keeps their cases and numbers the labels anew."
            if subset
            else ""
        )
    )


def _off_simplex(values: np.ndarray, axis: int) -> tuple[float, float]:
    """The lowest value, and how far a sum is off one at most; NaN where some are."""
    total = values.sum(axis)
    return float(values.min()), max(float(total.max()) - 1, 1 - float(total.min()))


def _class_by_class(values: np.ndarray) -> np.ndarray:
    """Probabilities (chain, draw, case, class) as float64, of which no class is interleaved.

    Classes are few, and numpy sums over a long axis several times faster than over the last, short
    one.

    Raises:
        ValueError: As `check_simplex`.
    """
    chains, draws, cases, classes = values.shape
    result = np.empty((chains, draws, classes, cases)).swapaxes(2, 3)
    valid = True
    for place in np.ndindex(chains, draws):  # draw by draw, which fits the cache
        draw = result[place]
        draw[:] = values[place]
        lowest, error = _off_simplex(draw, 1)
        valid = valid and lowest >= 0 and error <= SUM_TOLERANCE
    if not valid:
        check_simplex(result, 3)
    return result


def read_probs(array: xr.DataArray, first: First = None) -> xr.DataArray:
    """Return probabilities (chain, draw, case, class, ...), float64, checked, in memory.

    Args:
        array: Probabilities.
        first: As for `fill`.

    Raises:
        ValueError: As `check_simplex`.
    """
    if array.chunks is not None:
        # A slice of a chunk is a view, which would keep the whole chunk in memory.
        array = array.copy(data=array.data.map_blocks(np.copy))
    if array.ndim == 4:
        return array.copy(data=_class_by_class(array.values))
    values = array.astype(np.float64, copy=False).load()
    filled = fill(values.values, 3, first)
    if filled is not None:  # background, for sure: labels are -1 there
        values = values.copy(data=with_background(values.values, filled, 3))
    check_simplex(values.values, 3)
    return values
