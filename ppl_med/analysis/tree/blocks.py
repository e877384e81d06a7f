"""Parts of a tree that fit in memory.

A part is a run of cases; where one case is too large by itself (a volume), a run along its first
further axis. Only what is entry by entry may be computed so: nothing here sees a neighbour.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import xarray as xr

BLOCK_BYTES = 2**27
_WORK = 6  # float64 arrays of the size of the draws that an analysis holds at once

Block = dict[str, slice]
Part = TypeVar("Part", xr.DataArray, xr.Dataset)


def split_blocks(sizes: Mapping[str, int], per_entry: int) -> Iterator[Block]:
    """Yield selections that fit the memory limit, in the order of the cases.

    Args:
        sizes: Sizes of case and the further axes, case first.
        per_entry: Numbers that one entry has: draws, times classes.

    Yields:
        Slices for ``isel``: of case, and of the next axis where one case is too large.
    """
    dims = list(sizes)
    inner = int(np.prod([sizes[dim] for dim in dims[1:]]))
    one = max(1, 8 * _WORK * per_entry * inner)
    if one <= BLOCK_BYTES or len(dims) == 1:
        yield from _runs("case", sizes["case"], max(1, BLOCK_BYTES // one))
        return
    rows = max(1, BLOCK_BYTES * sizes[dims[1]] // one)
    for case in range(sizes["case"]):
        for run in _runs(dims[1], sizes[dims[1]], rows):
            yield {"case": slice(case, case + 1), **run}


def held_runs(array: xr.DataArray) -> Iterator[tuple[int, xr.DataArray]]:
    """Yield an array by runs of cases, in memory, with where each starts.

    Runs end where chunks of the store do, so that no chunk is read twice, unless a chunk is too
    large itself. A run of one case that is too large is not yet read.

    Args:
        array: With the dimension case, of any type of number, in memory or not.
    """
    cases, most = array.sizes["case"], BLOCK_BYTES // 4
    one = array.nbytes // max(cases, 1)
    step = max(1, most // max(one, 1))
    ends, start = _chunk_ends(array), 0
    while start < cases:
        end = min(start + step, cases)
        whole = ends[np.searchsorted(ends, end, "right") - 1]
        end = int(whole) if whole > start else end
        run = array.isel(case=slice(start, end))
        yield start, run.load() if run.nbytes <= most else run
        start = end


def _chunk_ends(array: xr.DataArray) -> np.ndarray:
    """Where chunks along the cases end, as far as is known, after 0."""
    cases = array.sizes["case"]
    if array.chunks is not None:
        return np.cumsum([0, *array.chunksizes["case"]])
    step = array.encoding.get("preferred_chunks", {}).get("case", cases)
    return np.array([*range(0, cases, step), cases])


def join_blocks(parts: Iterable[tuple[Block, Part]]) -> Part:
    """Put the results of all blocks together, in the order in which `split_blocks` yields them."""
    cases: dict[int, list[Part]] = {}
    inner = ""
    for block, part in parts:
        cases.setdefault(block["case"].start, []).append(part)
        inner = next((dim for dim in block if dim != "case"), "")
    rows = [xr.concat(row, inner) if len(row) > 1 else row[0] for row in cases.values()]
    return xr.concat(rows, "case") if len(rows) > 1 else rows[0]


def _runs(dim: str, size: int, step: int) -> Iterator[Block]:
    for start in range(0, size, step):
        yield {dim: slice(start, min(start + step, size))}
