"""Means over cases and their standard errors; NaN, where a case has no figure, is left out.

Entries of a case (pixels) are averaged first: cases are the independent units.
"""

import numpy as np
import xarray as xr

from ppl_med.axes import SAMPLES


def case_means(array: xr.DataArray) -> xr.DataArray:
    """Return the mean over all entries of a case ([chain, draw, level,] case), NaN left out."""
    return array.mean([dim for dim in array.dims if dim not in ("case", "level", *SAMPLES)])


def over_cases(per_case: xr.DataArray) -> xr.DataArray:
    """Return the standard error of the mean over cases; NaN for a single one."""
    count = per_case.count("case")
    return per_case.std("case", ddof=1) / count**0.5 if int(count.min()) > 1 else count * np.nan


def add_mean(result: xr.Dataset, name: str) -> None:
    """Add ``<name>_mean`` over cases and its standard error ``<name>_mean_se``."""
    per_case = case_means(result[name])
    result[f"{name}_mean"] = per_case.mean("case")
    result[f"{name}_mean_se"] = over_cases(per_case).assign_attrs(note="over cases")


def ratio_error(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return the standard error over cases of sum(part) / sum(whole), leading axis case."""
    total = whole.sum(0)
    used = (whole > 0).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = part - whole * (part.sum(0) / total)
        square = (residual**2).sum(0) * used / np.where(used > 1, used - 1, np.nan)
        return np.asarray(np.sqrt(square) / total)
