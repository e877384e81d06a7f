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
