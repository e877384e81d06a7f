"""Random numbers that belong to a case, not to a batch.

The number for (seed, chain, draw, site, case, element) is a hash of these, so a draw does not
depend on how cases were put into batches. Of several samples of a draw, all but the first have
their number after that of the draw. The hash is the finaliser of SplitMix64 (Steele, Lea and
Flood, OOPSLA 2014) applied to a chain of the keys.
"""

import math
import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution

from ppl_med.likelihoods.inverse_transform import transformed

Keys = tuple[int, ...]
_CACHED = 2**14  # numbers that are hashed at once: their passes stay in a core's own cache
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ROUNDS = ((np.uint64(30), _MIX_1), (np.uint64(27), _MIX_2), (np.uint64(31), None))


def _absorb(state: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + _GOLDEN * (key + np.uint64(1))
    shifted = np.empty_like(state)  # in place: for maps, new memory would take half of the time
    for shift, factor in _ROUNDS:
        state ^= np.right_shift(state, shift, out=shifted)
        if factor is not None:
            state *= factor
    return state


def _hash(*keys: int) -> int:
    """``_absorb`` of the keys in Python's integers; NumPy is slow on single numbers."""
    state = 0
    for key in keys:
        state = (state + int(_GOLDEN) * (key + 1)) % 2**64
        state = (state ^ (state >> 30)) * int(_MIX_1) % 2**64
        state = (state ^ (state >> 27)) * int(_MIX_2) % 2**64
        state ^= state >> 31
    return state


def derive_seed(*keys: int) -> int:
    """A seed for torch's generator that belongs to some keys, such as seed, chain and draw."""
    return _hash(*keys) >> 1


def uniform(
    keys: Keys, site: str, cases: NDArray[np.integer], num_elements: int
) -> NDArray[np.float64]:
    """Uniform numbers in (0, 1), both ends excluded, dims (case, element).

    ``keys`` are seed, chain, draw and, past the first, sample; ``cases`` the position of each case
    in the data set.
    """
    found = np.empty((len(cases), num_elements))
    elements = np.arange(num_elements, dtype=np.uint64)[None, :]
    step = max(1, _CACHED // max(num_elements, 1))
    with np.errstate(over="ignore"):
        state = np.array([_hash(*keys, zlib.crc32(site.encode()))], dtype=np.uint64)
        by_case = _absorb(state, np.asarray(cases).astype(np.uint64))
        for start in range(0, len(cases), step):
            numbers = _absorb(by_case[start : start + step, None], elements)
            # 52 bits and a half: float64 holds the sum exactly, so the result never rounds to 1.
            numbers >>= np.uint64(12)
            np.add(numbers, 0.5, out=found[start : start + step])
    found *= 2.0**-52
    return found


def sample_by_case(
    fn: Distribution, keys: Keys, site: str, cases: NDArray[np.integer], case_dim: int = -1
) -> Tensor | None:
    """A draw by inverse transform; None for a distribution whose transform is not known.

    ``keys`` are seed, chain, draw and, past the first, sample; ``cases`` the position of each case
    in the data set, and ``case_dim`` its dim in the batch shape, counted from the right.
    """
    axis = len(fn.batch_shape) + case_dim

    def of_cases(shape: torch.Size, suffix: str = "") -> Tensor:
        if axis < 0 or shape[axis] != len(cases):
            raise NotImplementedError
        rest = [size for dim, size in enumerate(shape) if dim != axis]
        numbers = uniform(keys, site + suffix, cases, math.prod(rest))
        return torch.from_numpy(numbers).view(len(cases), *rest).movedim(0, axis)

    try:
        return transformed(fn, of_cases)
    except NotImplementedError:
        return None
