"""Random numbers that belong to a case, not to a batch.

The number for (seed, chain, draw, site, case, element) is a hash of these, so a draw does not
depend on how cases were put into batches. The hash is the finaliser of SplitMix64 (Steele, Lea and
Flood, OOPSLA 2014) applied to a chain of the keys.
"""

import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution, Independent

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))


def _absorb(state: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return _mix(state + _GOLDEN * (key + np.uint64(1)))


def derive_seed(seed: int, chain: int, draw: int) -> int:
    """A seed for torch's generator that belongs to one draw of one chain."""
    state = np.zeros(1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for key in (seed, chain, draw):
            state = _absorb(state, np.array([key], dtype=np.uint64))
    return int(state[0] >> np.uint64(1))


def uniform(
    keys: tuple[int, int, int], site: str, cases: NDArray[np.integer], num_elements: int
) -> NDArray[np.float64]:
    """Uniform numbers in (0, 1), dims (case, element).

    Args:
        keys: Seed, chain and draw.
        site: Name of the sample site.
        cases: Position of each case in the data set.
        num_elements: Numbers per case.
    """
    with np.errstate(over="ignore"):
        state = np.zeros(1, dtype=np.uint64)
        for key in (*keys, zlib.crc32(site.encode())):
            state = _absorb(state, np.array([key], dtype=np.uint64))
        by_case = _absorb(state, np.asarray(cases).astype(np.uint64))
        elements = np.arange(num_elements, dtype=np.uint64)
        numbers = _absorb(by_case[:, None], elements[None, :])
    return ((numbers >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def sample_by_case(
    fn: Distribution, keys: tuple[int, int, int], site: str, cases: NDArray[np.integer]
) -> Tensor | None:
    """A draw of a distribution with batch dims (case, ...), by inverse transform.

    Args:
        fn: The distribution; its first batch dim is the case.
        keys: Seed, chain and draw.
        site: Name of the sample site.
        cases: Position of each case in the data set.

    Returns:
        The draw, or None for a distribution whose inverse transform is not known.
    """
    while isinstance(fn, Independent):
        fn = fn.base_dist
    if isinstance(fn, torch.distributions.Categorical):
        shape = fn.logits.shape[:-1]
    elif isinstance(fn, torch.distributions.Normal | torch.distributions.Bernoulli) or hasattr(
        fn, "icdf"
    ):
        shape = fn.batch_shape
    else:
        return None
    if len(shape) == 0 or shape[0] != len(cases) or fn.event_shape:
        return None
    numbers = uniform(keys, site, cases, int(np.prod(shape[1:], dtype=int)))
    u = torch.from_numpy(numbers).view(shape)
    if isinstance(fn, torch.distributions.Categorical):
        edges = fn.probs.double().cumsum(-1)[..., :-1]
        return (u.to(edges.device).unsqueeze(-1) > edges).sum(-1)
    if isinstance(fn, torch.distributions.Bernoulli):
        probs = fn.probs
        return (u.to(probs.device) < probs.double()).to(probs.dtype)
    if isinstance(fn, torch.distributions.Normal):
        standard = torch.special.ndtri(u).to(fn.loc)
        return fn.loc + fn.scale * standard
    try:
        value = fn.icdf(u.to(_reference(fn)))
    except NotImplementedError:
        return None
    return value


def _reference(fn: Distribution) -> Tensor:
    for name in fn.arg_constraints:
        value = getattr(fn, name, None)
        if isinstance(value, Tensor):
            return value
    return torch.zeros((), dtype=torch.get_default_dtype())
