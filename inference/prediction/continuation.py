"""Whether results of more cases can follow those of the first ones in one result."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ppl_med.storage.padding import SPATIAL


def check_continues(
    first: Mapping[str, xr.Dataset], more: Mapping[str, xr.Dataset], *, any_size: bool = False
) -> None:
    """Raise a ValueError where groups of more cases do not fit those of the first ones.

    There must be the same groups, and in each the same variables over cases, of the same dims,
    sizes and kind of numbers; coordinates of the other dims must be equal. An append to a Zarr
    store compares none of these (github.com/pydata/xarray/issues/11101). With ``any_size``, images
    may be of any size.
    """
    for group in sorted(first.keys() ^ more.keys()):
        raise ValueError(f"{group} is there for some cases only; {_FIX}")
    for group, dataset in more.items():
        _check_group(group, first[group], dataset, any_size)


def outline(dataset: xr.Dataset) -> xr.Dataset:
    """One case of a Dataset, as far as it is compared: coordinates, and variables without values.

    The values would stay in memory for the whole prediction.
    """
    one = dataset.isel(case=slice(1))
    empty = {
        name: (variable.dims, np.broadcast_to(np.zeros((), variable.dtype), variable.shape))
        for name, variable in one.data_vars.items()
    }
    return xr.Dataset(empty, {name: array.copy(deep=True) for name, array in one.coords.items()})


_FIX = "pass the same batches as before, or predict these cases into another store"


def _check_group(group: str, first: xr.Dataset, more: xr.Dataset, any_size: bool) -> None:
    for name in sorted(map(str, _by_case(first) ^ _by_case(more))):
        raise ValueError(f"{name} of {group} is there for some cases only; {_FIX}")
    for name in _by_case(more):
        found, expected = (_form(d.variables[name], any_size) for d in (more, first))
        if found != expected:
            raise ValueError(
                f"{name} of {group} is {found}, of the cases before {expected}; {_FIX}"
            )
    for key in sorted({*map(str, more.coords), *map(str, first.coords)}):
        held, given = first.coords.get(key), more.coords.get(key)
        known: Any = held if held is not None else given
        if "case" in known.dims or not set(known.dims) <= set(more.dims):
            continue
        if held is None or given is None or not _plain(held).equals(_plain(given)):
            raise ValueError(
                f"coordinate {key} of {group} differs from that of the cases before; {_FIX}"
            )


def _by_case(dataset: xr.Dataset) -> set[Any]:
    return {name for name, variable in dataset.variables.items() if "case" in variable.dims}


def _form(variable: xr.Variable, any_size: bool) -> str:
    """Kind of numbers and dims with sizes, but for the case."""
    kind = "text" if variable.dtype.kind in "UTO" else str(variable.dtype)
    open_dims = {"case", *(SPATIAL if any_size else ())}
    sizes = [d if d in open_dims else f"{d}={n}" for d, n in variable.sizes.items()]
    return f"{kind} ({', '.join(map(str, sizes))})"


def _plain(array: xr.DataArray) -> xr.Variable:
    """The values without the type in which text is stored."""
    return xr.Variable(array.dims, np.array(array.values.tolist()))
