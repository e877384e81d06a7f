"""Means over cases and their standard errors; NaN, where a case has no figure, is left out.

Entries of a case (pixels) are averaged first: cases are the independent units.
"""

import numpy as np
import xarray as xr

from ppl_med.axes import SAMPLES


def case_means(array: xr.DataArray) -> xr.DataArray:
    """Return the mean over all entries of a case ([chain, draw, level,] case), NaN left out."""
    return array.mean([dim for dim in array.dims if dim not in ("case", "level", *SAMPLES)])


def over_cases(per_case: xr.DataArray, groups: np.ndarray | None = None) -> xr.DataArray:
    """Return the standard error of the mean over cases; NaN for a single one.

    Args:
        per_case: A figure of every case (case, ...), NaN left out.
        groups: What cases have in common (case), such as the patient: the error is then that of
            a mean over groups drawn at random, whose cases may be alike (cluster-robust, Liang and
            Zeger 1986, with G / (G - 1) for G groups). None takes cases as independent.
    """
    count = per_case.count("case")
    if groups is not None:
        names, index = np.unique(np.asarray(groups).astype(str), return_inverse=True)
        known = per_case.notnull()
        residual = (per_case - per_case.mean("case")).where(known, 0).transpose("case", ...)
        total = np.zeros((len(names), *residual.shape[1:]))
        np.add.at(total, index, residual.values)
        seen = np.zeros(total.shape)
        np.add.at(seen, index, known.transpose("case", ...).values)
        number = (seen > 0).sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            square = (total**2).sum(0) * np.where(number > 1, number / (number - 1), np.nan)
        template = residual.isel(case=0, drop=True)
        return template.copy(data=np.sqrt(square)) / count
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
        square = (
            np.einsum("n...,n...->...", residual, residual)
            * used
            / np.where(used > 1, used - 1, np.nan)
        )
        return np.asarray(np.sqrt(square) / total)
