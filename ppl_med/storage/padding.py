"""Maps of cases of different sizes in one array: filled up behind the last row, column and slice.

The fill is -1 in integers (masks, drawn masks) and NaN in other numbers, which is what the analyses
leave out as not observed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ppl_med.axes import SPACE

SPATIAL = frozenset(SPACE[3]) | {"box"}


def fill_of(dtype: np.dtype) -> float:
    """What stands outside of a case; a ValueError for numbers that have no such value."""
    if dtype.kind not in "if":
        raise ValueError(
            f"cases differ in size, and entries of type {dtype} cannot be filled up: give integers "
            "with a sign, or floats"
        )
    return -1 if dtype.kind == "i" else np.nan


def common_shape(shapes: Sequence[tuple[int, ...]], dims: Sequence[str]) -> tuple[int, ...]:
    """The smallest shape that holds all; a ValueError where other axes than those of space differ.

    Args:
        shapes: Shapes of the arrays.
        dims: Names of their axes.
    """
    largest = []
    for dim, *sizes in zip(dims, *shapes, strict=True):
        if len(set(sizes)) > 1 and dim not in SPATIAL:
            raise ValueError(
                f"cases differ in their size along {dim}: {sorted(set(sizes))}; give every case "
                "the same, or predict them apart"
            )
        largest.append(max(sizes))
    return tuple(largest)


def padded(array: NDArray, shape: Sequence[int]) -> NDArray:
    """The array, filled up to a shape."""
    if array.shape == tuple(shape):
        return array
    result = np.full(tuple(shape), fill_of(array.dtype), array.dtype)
    result[tuple(slice(size) for size in array.shape)] = array
    return result


def join_padded(arrays: Sequence[NDArray], dims: Sequence[str]) -> NDArray:
    """Arrays with the case on the first axis, one after the other, filled up to one size."""
    if any(one.ndim != len(dims) for one in arrays):
        return np.concatenate(arrays)  # the check of densities says what is wrong
    shape = common_shape([one.shape[1:] for one in arrays], dims[1:])
    return np.concatenate([padded(one, (len(one), *shape)) for one in arrays])


def in_room(chunk: Any, key: Any, values: NDArray, dims: Sequence[str]) -> NDArray:
    """Values of some cases filled up to the size of an array that is being filled, or it to theirs.

    Args:
        chunk: Has ``arrays`` (chain, draw, case, ...) by key, and makes them.
        key: Which array.
        values: Dims (case, ...).
        dims: Names of their axes.
    """
    before = chunk.arrays[key]
    shape = common_shape([before.shape[3:], values.shape[1:]], dims[1:])
    if shape != before.shape[3:]:
        chunk.make(key, (*before.shape[:3], *shape), before.dtype)
        chunk.arrays[key][:] = fill_of(before.dtype)
        inside: Any = (..., *(slice(size) for size in before.shape[3:]))
        chunk.arrays[key][inside] = before
    return padded(values, (len(values), *shape))


def pad_dataset(dataset: xr.Dataset, sizes: Mapping[str, int]) -> xr.Dataset:
    """Variables over cases and space, filled up to some sizes; others as they are."""
    wanted = {dim: size for dim, size in sizes.items() if dim in SPATIAL}
    if all(dataset.sizes.get(dim, size) == size for dim, size in wanted.items()):
        return dataset
    variables = {}
    for name, array in dataset.data_vars.items():
        shape = [wanted.get(str(dim), size) for dim, size in array.sizes.items()]
        variables[name] = (array.dims, padded(array.values, shape), array.attrs)
    kept = {n: c for n, c in dataset.coords.items() if not set(map(str, c.dims)) & wanted.keys()}
    return xr.Dataset(variables, kept, dataset.attrs)


def largest_sizes(datasets: Sequence[xr.Dataset]) -> dict[str, int]:
    """The largest size of every axis of space."""
    dims = {str(dim) for one in datasets for dim in one.sizes} & SPATIAL
    return {dim: max(one.sizes.get(dim, 0) for one in datasets) for dim in dims}
