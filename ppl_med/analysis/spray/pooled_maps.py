"""Maps as vectors of unit length, pooled to a coarse grid."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ppl_med.analysis.spray.arguments import Part
from ppl_med.axes import SAMPLES


def features(
    maps: xr.DataArray, size: int, part: Part
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[list[NDArray[np.float64]]] | None]:
    """Pooled mean maps (case, place), whole mean maps (case, ...), pooled maps of every draw.

    The last is None where there are fewer than two draws.
    """
    num_chains, num_draws = (maps.sizes[dim] for dim in SAMPLES)
    total = np.zeros([maps.sizes[dim] for dim in maps.dims if dim not in (*SAMPLES, "channel")])
    pooled: list[list[NDArray[np.float64]]] = []
    for chain in range(num_chains):
        pooled.append([])
        for draw in range(num_draws):
            one = maps.isel(chain=chain, draw=draw).to_numpy().astype(np.float64)
            if not np.isfinite(one).all():
                raise ValueError("maps hold NaN or infinite values; leave those cases out")
            one = one.sum(1) if "channel" in maps.dims else one
            total += one
            pooled[-1].append(_pooled(one, size, part))
    mean = _chosen(total / (num_chains * num_draws), part)
    several = num_chains * num_draws > 1
    return _pooled(mean, size, part), mean, pooled if several else None


def _pooled(maps: NDArray[np.float64], size: int, part: Part) -> NDArray[np.float64]:
    maps = _chosen(maps, part)
    for axis in range(1, maps.ndim):
        length = maps.shape[axis]
        if length > size:
            edges = np.linspace(0, length, size + 1).round().astype(int)
            sums = np.add.reduceat(maps, edges[:-1], axis=axis)
            shape = [-1 if each == axis else 1 for each in range(maps.ndim)]
            maps = sums / np.diff(edges).reshape(shape)
    return of_unit_length(maps).reshape(len(maps), -1)


def _chosen(maps: NDArray[np.float64], part: Part) -> NDArray[np.float64]:
    if part == "signed":
        return maps
    return maps.clip(min=0) if part == "positive" else np.abs(maps)


def of_unit_length(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide every map by its length; a map that is 0 stays 0."""
    length = np.sqrt(np.square(maps).sum(tuple(range(1, maps.ndim)), keepdims=True))
    return maps / np.where(length > 0, length, 1.0)
