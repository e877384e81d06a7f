"""Figures per case with their mean over cases and its standard error."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from ppl_med.analysis.tree import Draws, case_coords
from ppl_med.axes import SAMPLES, WEIGHTS


def case_dataset(
    template: xr.DataArray,
    figures: Mapping[str, np.ndarray],
    units: str | Mapping[str, str],
    *,
    dims: tuple[str, ...] = (),
    coords: Mapping[str, object] | None = None,
) -> xr.Dataset:
    """Name figures per case and add ``<name>_mean`` and ``<name>_se``.

    Args:
        template: Any array with the dimension case, whose coordinates are taken over.
        figures: Values (case, ...) by name; NaN where a case does not define the figure.
        units: One unit for all figures, or one per name.
        dims: Names of the axes after case.
        coords: Coordinates of those axes.

    Returns:
        Dataset with each figure (case, ...), its mean (...) over the cases that define it, the
        standard error (...) of that mean (NaN for fewer than two such cases), and in the
        attributes of the mean how many cases were counted and how many were undefined.
    """
    result = xr.Dataset(coords={**case_coords(template), **(coords or {})})
    for name, values in figures.items():
        array = xr.DataArray(np.asarray(values), dims=("case", *dims))
        unit = units if isinstance(units, str) else units[name]
        result[name] = array.assign_attrs(units=unit)
        mean, error = mean_and_error(array)
        known = array.notnull()
        whole = known.all([dim for dim in array.dims if dim != "case"])
        counts = {"num_cases": int(whole.sum()), "num_undefined": int((~whole).sum())}
        result[f"{name}_mean"] = mean.assign_attrs(units=unit, **counts)
        result[f"{name}_se"] = error.assign_attrs(units=unit, note="standard error over cases")
    return result


def mean_and_error(array: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Return mean and standard error over case, without NaN; NaN error below two cases."""
    number = array.notnull().sum("case")
    mean = array.sum("case") / number.where(number > 0)
    square = ((array - mean) ** 2).sum("case") / (number - 1).where(number > 1)
    return mean, (square / number.where(number > 0)) ** 0.5


def add_draws(
    result: xr.Dataset, name: str, values: np.ndarray, draws: Draws, axis: str, units: str
) -> xr.Dataset:
    """Add values (case, sample, axis) as ``name`` (chain, draw, case, axis), with coordinates."""
    split = values.reshape(len(values), *(draws.array.sizes[dim] for dim in SAMPLES), -1)
    result[name] = ((*SAMPLES, "case", axis), split.transpose(1, 2, 0, 3), {"units": units})
    known = [name for name in (*SAMPLES, WEIGHTS) if name in draws.array.coords]
    return result.assign_coords({name: draws.array[name].variable for name in known})


def describe(result: xr.Dataset, **attrs: object) -> xr.Dataset:
    """Write the conventions of an analysis into the attributes of its result."""
    for name, value in attrs.items():
        if value is not None:
            result.attrs[name] = value
    return result
