"""Draws that are copies of each other, dropped: here it is decided how many functions there are.

Analyses that count draws (standard errors, ranks, unbiased divisors) count functions. So what they
read holds every function of a chain once; see `ppl_med.analysis.statistics.copies`. Draws that
share their weights and differ are kept, with the coordinate ``weights`` that says so: how they
count is decided in `ppl_med.analysis.statistics.weight_draws`. What was rounded when it was stored
says itself whether draws differed before.
"""

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
import xarray as xr

from ppl_med.analysis.statistics.copies import num_copies
from ppl_med.analysis.tree.blocks import Block, Part, split_blocks
from ppl_med.axes import SAMPLES, WEIGHTS
from ppl_med.storage import log_float16


def drop_copies(given: Part) -> Part:
    """Keep the first of the draws of each chain that are equal in every entry.

    Figures of the mixture stay what they are. Draws are kept unless every function stands in its
    chain equally often; masks and labels that are equal in all draws of all chains are kept too,
    for a distribution may be that sure. Of draws that differ, only the first case is read.

    Args:
        given: What was predicted (chain, draw, ...). The variables of a Dataset belong together:
            draws are copies where all of them are equal.

    Returns:
        The same with fewer draws, numbered 0, 1, ... where they have coordinates; ``weights`` still
        says which of them share their weights.
    """
    return drop_shared_copies(given)[0]


def drop_shared_copies(*given: Part) -> tuple[Part, ...]:
    """Keep the first of the draws that are equal in all of several predictions, as `drop_copies`.

    A single case of which a network is sure has equal draws and says nothing of the others. Draws
    stay aligned, as they must where draw s of one is read beside draw s of the other.

    Args:
        given: What was predicted (chain, draw, ...) by the same draws, of different cases. Where
            chains or draws are not as many, each is read by itself.
    """
    shapes = {tuple(one.sizes.get(dim, 0) for dim in SAMPLES) for one in given}
    if len(shapes) > 1:
        return tuple(drop_copies(one) for one in given)
    chains, draws = shapes.pop()
    told = any(log_float16.DIFFER.items() <= one.attrs.items() for one in given)
    if told or draws < 2 or not chains:
        return given
    arrays = [array for one in given for array in _arrays(one)]
    kind = np.zeros((chains, draws), np.int64)
    for array in arrays:
        if not {*SAMPLES} <= set(array.dims):
            continue
        array = array.transpose(*SAMPLES, *(d for d in ("case",) if d in array.dims), ...)
        for block in _blocks(array):
            kind = _refined(kind, array.isel(block).values)
            if _is_alone(kind):
                return given
    copies = num_copies(kind)
    if copies == 1 or (not kind.any() and all(array.dtype.kind in "biu" for array in arrays)):
        return given
    first = [np.sort(np.unique(chain, return_index=True)[1]) for chain in kind]
    return tuple(_kept(one, np.array(first)) for one in given)


def _arrays(given: xr.DataArray | xr.Dataset) -> list[xr.DataArray]:
    return list(given.data_vars.values()) if isinstance(given, xr.Dataset) else [given]


def _kept(given: Part, first: np.ndarray) -> Part:
    """Some draws (chain, draw), numbered anew."""
    named = [name for name in (*SAMPLES, WEIGHTS) if name in given.coords]
    kept = _chosen(given.drop_vars(named), first)
    if "chain" in given.coords:
        kept = kept.assign_coords(chain=given["chain"].variable)
    if "draw" in given.coords:
        kept = kept.assign_coords(draw=np.arange(len(first[0])))
    if WEIGHTS in named and given[WEIGHTS].dims == ("draw",):
        kept = kept.assign_coords({WEIGHTS: ("draw", _alike(given[WEIGHTS].values[first]))})
    return kept.transpose(*given.dims)


def _chosen(given: Part, place: np.ndarray) -> Part:
    """Some draws (chain, draw): a view, where they are evenly spaced, so that none is copied."""
    start, steps = int(place[0, 0]), set(np.diff(place, axis=1).ravel().tolist()) or {1}
    if len(steps) == 1 and (place[:, 0] == start).all():
        step = int(steps.pop())
        return given.isel(draw=slice(start, start + step * place.shape[1], step))
    rows = xr.DataArray(np.arange(len(place)), dims="chain")
    return given.isel(chain=rows, draw=xr.DataArray(place, dims=SAMPLES))


def _alike(weights: np.ndarray) -> np.ndarray:
    """Equal numbers for draws that share their weights in some chain; weights (chain, draw)."""
    found = weights[0].copy()
    for chain in weights[1:] if (weights != weights[0]).any() else ():
        for name in np.unique(chain):
            same = np.isin(found, found[chain == name])
            found[same] = found[same].min()
    return found


def _blocks(array: xr.DataArray) -> Iterator[Block]:
    """Yield the first case, then all of them."""
    if "case" not in array.dims:
        yield {}
        return
    yield {"case": slice(0, 1)}
    sizes = {str(dim): array.sizes[dim] for dim in array.dims[2:]}
    yield from split_blocks(sizes, array.shape[0] * array.shape[1])


def _refined(kind: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Tell draws apart that differ in these values (chain, draw, ...)."""
    result = np.empty_like(kind)
    names: dict[tuple[int, bytes], int] = {}  # one for all chains, so that these can be compared
    for place in np.ndindex(*kind.shape):
        digest = blake2b(np.ascontiguousarray(values[place]).data, digest_size=16).digest()
        result[place] = names.setdefault((int(kind[place]), digest), len(names))
    return result


def _is_alone(kind: np.ndarray) -> bool:
    """Whether some draw equals no other, so that not all are copies."""
    return any((np.unique(chain, return_counts=True)[1] == 1).any() for chain in kind)
