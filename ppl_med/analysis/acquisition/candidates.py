"""The cases that can be bought, in an order of their own, so that the order of the tree is nothing.

Random numbers are drawn for the cases sorted by their ids: the same pool and seed buy the same
cases, however they are batched.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.tree import case_ids

_DIGITS = 12  # of a score: what is equal but for rounding is a tie


@dataclass(frozen=True)
class Candidates:
    """Cases of a tree, told apart by whether they have a label.

    Args:
        array: Where their ids and coordinates stand (case, ...).
        free: Positions in the tree of the cases that can be bought, sorted by their ids.
        labelled: Positions of the others, likewise.
    """

    array: xr.DataArray
    free: np.ndarray
    labelled: np.ndarray

    def noise(self, seed: int, kind: int = 0) -> np.ndarray:
        """Standard Gumbel numbers, one a free case; of several kinds, independent."""
        return np.random.default_rng([seed, kind]).gumbel(size=len(self.free))


def open_candidates(array: xr.DataArray, labelled: Iterable[Any], size: int) -> Candidates:
    """Tell cases with a label from those that can be bought.

    Args:
        array: What holds the cases (case, ...).
        labelled: Ids of cases that have a label.
        size: How many are to be bought.

    Raises:
        ValueError: An id is not among the cases, or appears twice; fewer cases than ``size``.
    """
    known = [str(name) for name in labelled]
    if "case" in array.coords:
        names = case_ids(array).astype(str)
    else:
        names = np.array([f"{place:012d}" for place in range(array.sizes["case"])])
        if known:
            raise ValueError(
                "labelled names cases and the tree has no ids; give the batches an 'id' per case, "
                "or assign_coords(case=...)."
            )
    unknown = sorted(set(known) - set(names))
    if unknown:
        raise ValueError(
            f"labelled holds {len(unknown)} id(s) that are no case of the tree, e.g. "
            f"{unknown[0]!r}; predict the labelled cases together with the pool, or leave them out."
        )
    order = np.argsort(names, kind="stable")
    has_label = np.isin(names[order], known)
    free = order[~has_label]
    checks.whole("size", size, most=len(free), fix="no more cases are unlabelled")
    return Candidates(array, free, order[has_label])


def largest(score: np.ndarray, noise: np.ndarray, size: int) -> np.ndarray:
    """Positions of the largest scores, falling; between equal ones by the noise."""
    return np.lexsort((-noise, -np.round(score, _DIGITS)))[:size]


def largest_one(score: np.ndarray, noise: np.ndarray, taken: Sequence[int]) -> int:
    """Position of the largest score of those not taken; between equal ones by the noise."""
    rounded = np.round(score, _DIGITS)
    rounded[list(taken)] = -np.inf
    ties = np.flatnonzero(rounded == rounded.max())
    return int(ties[np.argmax(noise[ties])])
