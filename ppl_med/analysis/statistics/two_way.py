"""Variance components of a crossed table: rows such as draws, columns such as augmentations.

With y_sa the value of row s under column a, S rows and A columns, both random,

    y_sa = mean + row_s + column_a + interaction_sa

and the mean squares MS between rows, between columns and of what is left (the residual),

    rows         (MS_rows - MS_residual) / A
    columns      (MS_columns - MS_residual) / S
    interaction  MS_residual
    total        their sum: the expected variance of one cell, and half the mean squared difference
                 of two cells that share neither row nor column

are unbiased, whatever the distributions; an estimate of a small component may be negative, and is
left so, lest means over cases be too large. Standard errors of `components` are those of normal
effects: mean squares are independent then, each a multiple of chi-squared, and their variances are
estimated without bias, by 2 MS^2 / (df + 2). Of effects with heavier tails they are too small.
`jackknife` asks for no distribution: it leaves out every row and every column in turn, and adds
both variances, which counts the noise of single cells twice.

Source: Searle, Casella and McCulloch, Variance Components, Wiley 1992, chapter 4; Owen, Annals of
Applied Statistics 1, 2007 (rows and columns resampled apart).
"""

from typing import Any

import numpy as np

NAMES = ("rows", "columns", "interaction", "total")
_ROUNDING = 1e-12  # of the mean square: below it, an estimate is zero


def components(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the components of every entry.

    Args:
        values: Float64 (row, column, ...), two or more of each; NaN in whole columns of an entry
            where it is not known there.

    Returns:
        Estimates and standard errors (component, ...) in the order of ``NAMES``, in the squared
        unit of the values; NaN where an entry is known under fewer than two columns.
    """
    known = ~np.isnan(values[0])
    rows, columns = len(values), known.sum(0)
    enough = columns > 1
    number = np.where(enough, columns, 2)
    centre = np.where(known, values[0], 0.0).sum(0) / np.maximum(columns, 1)
    centred = np.where(known, values - centre, 0.0)
    row = centred.sum(1) / number
    column = centred.mean(0)
    mean = row.mean(0)
    rest = np.where(known, centred - row[:, None] - column + mean, 0.0)
    freedom: list[Any] = [rows - 1, number - 1, (rows - 1) * (number - 1)]
    square = (
        number * ((row - mean) ** 2).sum(0) / freedom[0],
        rows * np.where(known, (column - mean) ** 2, 0.0).sum(0) / freedom[1],
        (rest**2).sum((0, 1)) / freedom[2],
    )
    variance = [2 * one**2 / (df + 2) for one, df in zip(square, freedom, strict=True)]
    found = [(square[0] - square[2]) / number, (square[1] - square[2]) / rows, square[2]]
    floor = _ROUNDING * ((centred + np.where(known, centre, 0.0)) ** 2).mean((0, 1))
    found = [np.where(np.abs(one) <= floor, 0.0, one) for one in found]
    found.append(found[0] + found[1] + found[2])
    left = 1 - 1 / number - 1 / rows
    spread = [
        (variance[0] + variance[2]) / number**2,
        (variance[1] + variance[2]) / rows**2,
        variance[2],
        variance[0] / number**2 + variance[1] / rows**2 + left**2 * variance[2],
    ]
    estimates, errors = np.stack(found), np.sqrt(np.stack(spread))
    return np.where(enough, estimates, np.nan), np.where(enough, errors, np.nan)


def left_out(values: np.ndarray) -> np.ndarray:
    """Estimates without each row, then without each column (row + column, component, ...)."""
    parts = [components(np.delete(values, row, 0))[0] for row in range(values.shape[0])]
    parts += [components(np.delete(values, column, 1))[0] for column in range(values.shape[1])]
    return np.stack(parts)


def jackknife(estimates: np.ndarray, rows: int) -> np.ndarray:
    """Standard errors of figures that are computed from all cells.

    Args:
        estimates: The figures without each of the rows, then without each of the columns (row +
            column, ...).
        rows: Number of the rows.
    """
    variance = np.zeros(estimates.shape[1:])
    for part in (estimates[:rows], estimates[rows:]):
        variance = variance + (len(part) - 1) * part.var(0)
    return np.asarray(np.sqrt(variance))
