"""What maps of smaller cases are filled up with, beside numbers that are NaN by a fault.

A case begins with its first entry, and is filled up behind its end. So where a part of a large case
is NaN everywhere, its first entry says whether the case goes on there no more, or is none.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import xarray as xr

First: TypeAlias = Callable[[], np.ndarray] | None
"""Reads the first entry of every case, where values are of a part that begins further on."""


def first_entries(array: xr.DataArray, block: Mapping[str, slice]) -> First:
    """Return what reads the first entries of the cases of a block; None where they are in it.

    Args:
        array: Dims (chain, draw, case, [class,] *space).
        block: A run of cases, or a part of one along its first axis of space.
    """
    if all(dim == "case" or not part.start for dim, part in block.items()):
        return None
    space = [dim for dim in array.dims if dim not in ("chain", "draw", "case", "class")]
    first = array.isel(case=block["case"]).isel(dict.fromkeys(space, 0))
    return lambda: first.values


def finite_or_fill(values: np.ndarray, first: First = None) -> bool:
    """Whether numbers are finite, but for the fill behind smaller cases.

    The fill is NaN in all draws and leaves something of every case.

    Args:
        values: Dims (chain, draw, case, *space).
        first: Reads the first entries (chain, draw, case), where these are others.
    """
    finite = np.isfinite(values)
    if finite.all():
        return True
    if values.ndim < 4 or np.isinf(values).any():
        return False
    inside = finite.any((0, 1))
    if (finite != inside).any():
        return False
    begun = inside.reshape(len(inside), -1).any(1)
    return bool(begun.all() or (first is not None and np.isfinite(first()).all()))
