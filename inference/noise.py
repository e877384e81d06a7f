"""Random numbers that belong to a case, not to a batch.

The number for (seed, chain, draw, site, case, element) is a hash of these, so a draw does not
depend on how cases were put into batches. The hash is the finaliser of SplitMix64 (Steele, Lea and
Flood, OOPSLA 2014) applied to a chain of the keys.
"""

import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor
from torch import distributions as laws
from torch.distributions import Distribution, Independent

from ppl_med.likelihoods import class_probs

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))


def _absorb(state: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return _mix(state + _GOLDEN * (key + np.uint64(1)))


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
    keys: tuple[int, int, int], site: str, cases: NDArray[np.integer], num_elements: int
) -> NDArray[np.float64]:
    """Uniform numbers in (0, 1), both ends excluded, dims (case, element).

    Args:
        keys: Seed, chain and draw.
        site: Name of the sample site.
        cases: Position of each case in the data set.
        num_elements: Numbers per case.
    """
    with np.errstate(over="ignore"):
        state = np.array([_hash(*keys, zlib.crc32(site.encode()))], dtype=np.uint64)
        by_case = _absorb(state, np.asarray(cases).astype(np.uint64))
        elements = np.arange(num_elements, dtype=np.uint64)
        numbers = _absorb(by_case[:, None], elements[None, :])
    # 52 bits and a half: float64 holds the sum exactly, so the result never rounds to 1.
    return ((numbers >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def sample_by_case(
    fn: Distribution,
    keys: tuple[int, int, int],
    site: str,
    cases: NDArray[np.integer],
    case_dim: int = -1,
) -> Tensor | None:
    """A draw of a distribution whose batch dims hold the case, by inverse transform.

    Args:
        fn: The distribution.
        keys: Seed, chain and draw.
        site: Name of the sample site.
        cases: Position of each case in the data set.
        case_dim: The case's dim in the batch shape, counted from the right.

    Returns:
        The draw, or None for a distribution whose inverse transform is not known.
    """
    if isinstance(fn, laws.MixtureSameFamily):
        return _sample_mixture(fn, keys, site, cases, case_dim)
    axis = len(fn.batch_shape) + case_dim
    while isinstance(fn, Independent):
        fn = fn.base_dist
    event = fn.event_shape if isinstance(fn, laws.MultivariateNormal) else torch.Size()
    shape = fn.batch_shape + event
    if axis < 0 or shape[axis] != len(cases) or fn.event_shape != event:
        return None
    rest = [size for dim, size in enumerate(shape) if dim != axis]
    numbers = uniform(keys, site, cases, int(np.prod(rest, dtype=int)))
    return _inverse(fn, torch.from_numpy(numbers).view(len(cases), *rest).movedim(0, axis))


def _sample_mixture(
    fn: laws.MixtureSameFamily,
    keys: tuple[int, int, int],
    site: str,
    cases: NDArray[np.integer],
    case_dim: int,
) -> Tensor | None:
    """A draw of the component, then one of each component, of which the chosen one is taken."""
    mixing, parts = fn.mixture_distribution, fn.component_distribution
    chosen = sample_by_case(mixing, keys, f"{site}/component", cases, case_dim)
    values = sample_by_case(parts, keys, site, cases, case_dim - 1)
    if chosen is None or values is None:
        return None
    axis = len(fn.batch_shape)
    index = chosen.view(*chosen.shape, *[1] * (values.dim() - axis))
    index = index.expand(*values.shape[:axis], 1, *values.shape[axis + 1 :])
    return values.gather(axis, index).squeeze(axis)


def _inverse(fn: Distribution, u: Tensor) -> Tensor | None:
    """Quantiles of a distribution at u, float64 on the CPU; None where they are not known."""
    if isinstance(fn, laws.Categorical):
        edges = class_probs(fn)[..., :-1].double().cumsum(-1)
        return (u.to(edges.device).unsqueeze(-1) > edges).sum(-1)
    if isinstance(fn, laws.Bernoulli):
        return (u.to(fn.probs.device) < fn.probs.double()).to(fn.probs.dtype)
    if isinstance(fn, laws.Normal):
        return fn.loc + fn.scale * torch.special.ndtri(u).to(fn.loc)
    if isinstance(fn, laws.MultivariateNormal):
        noise = torch.special.ndtri(u).to(fn.loc).unsqueeze(-1)
        return fn.loc + (fn._unbroadcasted_scale_tril @ noise).squeeze(-1)
    if isinstance(fn, laws.Gamma | laws.Beta | laws.StudentT):
        return _by_scipy(fn, u)
    reference = _reference(fn)
    limits = torch.finfo(reference.dtype)
    try:
        return fn.icdf(u.to(reference).clamp(limits.tiny, 1 - limits.eps / 2))
    except NotImplementedError:
        return None


def _by_scipy(fn: laws.Gamma | laws.Beta | laws.StudentT, u: Tensor) -> Tensor | None:
    """Quantiles that torch lacks; None where a gradient through them is wanted."""
    parameters = [getattr(fn, name) for name in fn.arg_constraints]
    if torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
        return None
    limits = torch.finfo(parameters[0].dtype)
    if isinstance(fn, laws.Gamma):
        standard = _quantile(special.gammaincinv, u, fn.concentration).clamp_min(limits.tiny)
        return standard / fn.rate
    if isinstance(fn, laws.Beta):
        value = _quantile(special.betaincinv, u, fn.concentration1, fn.concentration0)
        return value.clamp(limits.tiny, 1 - limits.eps / 2)
    return fn.loc + fn.scale * _quantile(special.stdtrit, u, fn.df)


def _quantile(inverse: np.ufunc, u: Tensor, *parameters: Tensor) -> Tensor:
    """An inverse distribution function of SciPy; u is its last argument."""
    arrays = [parameter.detach().double().cpu().numpy() for parameter in parameters]
    return torch.from_numpy(np.asarray(inverse(*arrays, u.numpy()))).to(parameters[0])


def _reference(fn: Distribution) -> Tensor:
    """A tensor with the distribution's dtype and device."""
    for name in fn.arg_constraints:
        value = getattr(fn, name, None)
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    return torch.zeros((), dtype=torch.get_default_dtype())
