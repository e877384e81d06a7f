"""What runs of several seeds say: labels for an error, areas, calibration at equal labels."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from scipy import stats
from scipy.optimize import isotonic_regression

AREA = 220
"""Labels up to which errors are averaged."""

AT = (120, 220)
"""Labels at which calibration is compared; purchases of 10 and of 100 both stop there."""


def history(tree: xr.DataTree, budget: int) -> xr.Dataset:
    """Figures over the labels in hand (num_labelled), up to a budget."""
    found = tree["test"].to_dataset().swap_dims(step="num_labelled").drop_vars("step")
    found = found.sel(num_labelled=found["num_labelled"] <= budget)
    return found.assign(error=1 - found["accuracy"])


def labels_for(number: np.ndarray, error: np.ndarray, wanted: float) -> float:
    """Labels at which a curve of errors, made to fall, reaches an error; NaN if it does not.

    A first step below it would favour curves that were looked at more often.
    """
    smooth = isotonic_regression(error, increasing=False).x
    if smooth[-1] > wanted:
        return float("nan")
    after = int(np.argmax(smooth <= wanted))
    if after == 0:
        return float(number[0])
    share = (smooth[after - 1] - wanted) / (smooth[after - 1] - smooth[after])
    return float(number[after - 1] + share * (number[after] - number[after - 1]))


def area(number: np.ndarray, error: np.ndarray, most: int) -> float:
    """Mean error from the first label up to ``most``: the area under the curve of the budget."""
    grid = np.arange(number[0], most + 1)
    return float(np.interp(grid, number, error).mean())


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean over seeds and half its 95 % interval (Student's t)."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(half)


def summary(runs: Mapping[int, xr.Dataset], most: int) -> xr.Dataset:
    """Figures of every seed of one method (seed).

    Args:
        runs: `history` by seed.
        most: Labels up to which the area goes.
    """
    rows = []
    for seed, one in runs.items():
        number, error = one["num_labelled"].values, one["error"].values
        figures = {f"labels_for_{p}": labels_for(number, error, p / 100) for p in (10, 5)}
        figures["area"] = area(number, error, most)
        figures["last"] = float(number[-1])
        at = [place for place in AT if place <= number[-1]]
        row = xr.Dataset(figures, {"seed": seed})
        if set(at) <= set(number.tolist()):
            chosen = one[["error", "nll", "ece", "coverage", "set_size"]].sel(num_labelled=at)
            row = row.merge(chosen.rename(num_labelled="at"))
        rows.append(row)
    return xr.concat(rows, "seed")
