"""How arrays lie in a Zarr store: chunks to read by, shards to write by.

Dims (chain, draw, case, ...). One group of cases, which is what is written at once, fills one chunk
along the cases. Above 16 MiB it is a shard, one file, of chunks between 1 and 16 MiB as far as the
sizes divide: halved along draws and cases in turn, so that neither who reads one draw of all cases
nor who reads all draws of one case reads much else. Of arrays above half a GiB a group, every draw
is a chunk or a shard of its own.

A shard is the smallest unit that two writers may not share: to change one chunk, the others of its
shard are read and written again.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ppl_med.inference.prediction import tree_builder
from ppl_med.storage.seals import chunk_codecs

MOST_BYTES = 2**24  # of a chunk


def is_large(variable: xr.Variable) -> bool:
    """Whether an array is filled on the disk, and written draw by draw."""
    return variable.dims[:2] == ("chain", "draw") and variable.nbytes >= tree_builder.LARGE_ARRAY


def layout(dataset: xr.Dataset) -> dict[Any, dict[str, Any]]:
    """Encoding of every variable of one group of cases, for ``to_zarr``."""
    found = chunk_codecs(dataset.variables)
    for name, variable in dataset.variables.items():
        shape = variable.shape
        unit = (1, 1, *shape[2:]) if is_large(variable) else shape
        chunks = _split(unit, variable)
        found[name]["chunks"] = chunks
        if chunks != unit:
            found[name]["shards"] = unit
    return found


def dask_chunks(path: Path) -> dict[str, int]:
    """How many cases Dask is to read at once: as many chunks of a store as hold 16 MiB.

    Every task costs it a millisecond, as much as reading a chunk of small cases.

    Returns:
        ``chunks`` of xarray; empty for those of the store.
    """
    import zarr

    grids, most = {1}, 0  # cases of a chunk, bytes of a case
    stored: Any = zarr.open_group(path, mode="r")
    for _, one in stored.members(max_depth=None):
        names = list(getattr(one.metadata, "dimension_names", None) or [])
        if "case" in names:
            cases = one.chunks[names.index("case")]
            grids.add(cases)
            if one.dtype.kind in "biuf":
                most = max(most, math.prod(one.chunks) * one.dtype.itemsize // cases)
    grid = math.lcm(*grids)
    number = MOST_BYTES // max(1, most * grid)
    return {"case": number * grid} if number > 1 else {}


def _split(unit: tuple[int, ...], variable: xr.Variable) -> tuple[int, ...]:
    """A part of a unit of writing, which it divides, of so many bytes at most if it can be."""
    sizes, item = list(unit), variable.dtype.itemsize
    if variable.dtype == np.float16:  # what is read of it is larger
        item = np.dtype(np.float32).itemsize
    if variable.dtype.kind not in "biufM":  # text has no size of its own
        return unit
    while np.prod(sizes, dtype=float) * item > MOST_BYTES:
        first = [axis for axis, dim in enumerate(variable.dims) if dim in ("draw", "case")]
        axis = max(first, key=lambda one: sizes[one], default=0)
        if sizes[axis] == 1:  # then space and classes, from the front
            axis = next(one for one, size in enumerate(sizes) if size > 1)
        sizes[axis] //= _least_factor(sizes[axis])
    return tuple(sizes)


def _least_factor(number: int) -> int:
    return next((one for one in range(2, int(number**0.5) + 1) if number % one == 0), number)
