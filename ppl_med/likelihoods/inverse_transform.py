"""Draws of a distribution as a function of uniform numbers, by which ``predict`` draws per case.

A new distribution with ``icdf`` needs nothing; any other gives its quantiles by
``quantile.register`` in the file that defines it.
"""

from collections.abc import Callable
from functools import partial, singledispatch

import numpy as np
import torch
from pyro.distributions import MaskedDistribution
from scipy import special
from torch import Tensor
from torch import distributions as known
from torch.distributions import Distribution

from ppl_med.likelihoods.stored import class_probs

Uniform = Callable[..., Tensor]
"""``uniform(shape, suffix="")``: numbers in (0, 1), float64 on the CPU. The suffix to the site's
name gives other numbers."""


@singledispatch
def transformed(fn: Distribution, uniform: Uniform) -> Tensor:
    """A draw by inverse transform of uniform numbers; NotImplementedError where it is not known."""
    if fn.event_shape:
        raise NotImplementedError
    return quantile(fn, uniform(fn.batch_shape))


@transformed.register(known.Independent)
def _(fn: known.Independent, uniform: Uniform) -> Tensor:
    return transformed(fn.base_dist, uniform)


@transformed.register(MaskedDistribution)
def _(fn: MaskedDistribution, uniform: Uniform) -> Tensor:
    """What a mask leaves out of the density is drawn all the same."""
    return transformed(fn.base_dist, uniform)


@transformed.register(known.MultivariateNormal)
def _(fn: known.MultivariateNormal, uniform: Uniform) -> Tensor:
    u = uniform(fn.batch_shape + fn.event_shape)
    noise = torch.special.ndtri(u).to(fn.loc).unsqueeze(-1)
    return fn.loc + (fn._unbroadcasted_scale_tril @ noise).squeeze(-1)


@transformed.register(known.MixtureSameFamily)
def _(fn: known.MixtureSameFamily, uniform: Uniform) -> Tensor:
    """A draw of the component, then one of each component, of which the chosen one is taken."""
    chosen = transformed(fn.mixture_distribution, partial(_of_component, uniform))
    values = transformed(fn.component_distribution, uniform)
    axis = len(fn.batch_shape)
    index = chosen.view(*chosen.shape, *[1] * (values.dim() - axis))
    index = index.expand(*values.shape[:axis], 1, *values.shape[axis + 1 :])
    return values.gather(axis, index).squeeze(axis)


def _of_component(uniform: Uniform, shape: torch.Size, suffix: str = "") -> Tensor:
    return uniform(shape, f"/component{suffix}")


@singledispatch
def quantile(fn: Distribution, u: Tensor) -> Tensor:
    """Quantiles of a distribution of one number, in its precision and on its device.

    NotImplementedError says that they are not known, or known without a gradient that is wanted.
    The probabilities ``u`` are float64 on the CPU, dims as the distribution's batch.
    """
    reference = _reference(fn)
    limits = torch.finfo(reference.dtype)
    return fn.icdf(u.to(reference).clamp(limits.tiny, 1 - limits.eps / 2))


@quantile.register(known.Categorical)
def _(fn: known.Categorical, u: Tensor) -> Tensor:
    probs = class_probs(fn).movedim(-1, 0).double()  # classes first: fast for maps
    u = u.to(probs.device)
    if len(probs) == 2:
        return (u > probs[0]).long()
    edges = probs.cumsum(0)  # to what they sum up to, which is 1 but for rounding
    return (u * edges[-1] > edges[:-1]).sum(0)


@quantile.register(known.Bernoulli)
def _(fn: known.Bernoulli, u: Tensor) -> Tensor:
    return (u.to(fn.probs.device) < fn.probs.double()).to(fn.probs.dtype)


@quantile.register(known.Normal)
def _(fn: known.Normal, u: Tensor) -> Tensor:
    return fn.loc + fn.scale * torch.special.ndtri(u).to(fn.loc)


@quantile.register(known.Gamma)
def _(fn: known.Gamma, u: Tensor) -> Tensor:
    standard = _by_scipy(special.gammaincinv, fn, u, fn.concentration)
    return standard.clamp_min(torch.finfo(standard.dtype).tiny) / fn.rate


@quantile.register(known.Beta)
def _(fn: known.Beta, u: Tensor) -> Tensor:
    value = _by_scipy(special.betaincinv, fn, u, fn.concentration1, fn.concentration0)
    limits = torch.finfo(value.dtype)
    return value.clamp(limits.tiny, 1 - limits.eps / 2)


@quantile.register(known.StudentT)
def _(fn: known.StudentT, u: Tensor) -> Tensor:
    return fn.loc + fn.scale * _by_scipy(special.stdtrit, fn, u, fn.df)


def _by_scipy(inverse: np.ufunc, fn: Distribution, u: Tensor, *parameters: Tensor) -> Tensor:
    """An inverse distribution function that torch lacks; u is its last argument."""
    every = [getattr(fn, name) for name in fn.arg_constraints]
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in every):
        raise NotImplementedError
    arrays = [parameter.detach().double().cpu().numpy() for parameter in parameters]
    return torch.from_numpy(np.asarray(inverse(*arrays, u.numpy()))).to(every[0])


def _reference(fn: Distribution) -> Tensor:
    """A tensor with the distribution's dtype and device."""
    for name in fn.arg_constraints:
        value = getattr(fn, name, None)
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    return torch.zeros((), dtype=torch.get_default_dtype())
