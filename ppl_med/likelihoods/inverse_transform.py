"""Draws of a distribution as a function of uniform numbers, by which ``predict`` draws per case.

A new distribution that has ``icdf`` needs nothing; another one tells its quantiles by
``quantile.register`` in the file that defines it.
"""

from collections.abc import Callable
from functools import partial, singledispatch

import numpy as np
import torch
from scipy import special
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Distribution,
    Gamma,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
)

from ppl_med.likelihoods.stored import class_probs

Uniform = Callable[..., Tensor | None]
"""From a shape, and a suffix to the site's name, to numbers in (0, 1), float64 on the CPU, or None
where the shape has no axis of cases."""


@singledispatch
def transformed(fn: Distribution, uniform: Uniform) -> Tensor | None:
    """A draw by inverse transform.

    Args:
        fn: The distribution, whose batch dims hold the case.
        uniform: Gives the uniform numbers: ``uniform(shape, suffix="")``.

    Returns:
        The draw, or None for a distribution whose inverse transform is not known.
    """
    return None if fn.event_shape else _at(fn, uniform(fn.batch_shape))


def _at(fn: Distribution, u: Tensor | None) -> Tensor | None:
    return None if u is None else quantile(fn, u)


@transformed.register(Independent)
def _(fn: Independent, uniform: Uniform) -> Tensor | None:
    return transformed(fn.base_dist, uniform)


@transformed.register(MultivariateNormal)
def _(fn: MultivariateNormal, uniform: Uniform) -> Tensor | None:
    return _at(fn, uniform(fn.batch_shape + fn.event_shape))


@transformed.register(MixtureSameFamily)
def _(fn: MixtureSameFamily, uniform: Uniform) -> Tensor | None:
    """A draw of the component, then one of each component, of which the chosen one is taken."""
    chosen = transformed(fn.mixture_distribution, partial(_of_component, uniform))
    values = transformed(fn.component_distribution, uniform)
    if chosen is None or values is None:
        return None
    axis = len(fn.batch_shape)
    index = chosen.view(*chosen.shape, *[1] * (values.dim() - axis))
    index = index.expand(*values.shape[:axis], 1, *values.shape[axis + 1 :])
    return values.gather(axis, index).squeeze(axis)


def _of_component(uniform: Uniform, shape: torch.Size, suffix: str = "") -> Tensor | None:
    return uniform(shape, f"/component{suffix}")


@singledispatch
def quantile(fn: Distribution, u: Tensor) -> Tensor | None:
    """Quantiles of a distribution; of a multivariate normal, its draw from standard normals.

    Args:
        fn: The distribution of one entry, batch dims (...).
        u: Probabilities, float64 on the CPU, dims (...).

    Returns:
        Dims (...), in the precision and on the device of the distribution; None where no inverse
        is known.
    """
    reference = _reference(fn)
    limits = torch.finfo(reference.dtype)
    try:
        return fn.icdf(u.to(reference).clamp(limits.tiny, 1 - limits.eps / 2))
    except NotImplementedError:
        return None


@quantile.register(Categorical)
def _(fn: Categorical, u: Tensor) -> Tensor:
    edges = class_probs(fn)[..., :-1].double().cumsum(-1)
    return (u.to(edges.device).unsqueeze(-1) > edges).sum(-1)


@quantile.register(Bernoulli)
def _(fn: Bernoulli, u: Tensor) -> Tensor:
    return (u.to(fn.probs.device) < fn.probs.double()).to(fn.probs.dtype)


@quantile.register(Normal)
def _(fn: Normal, u: Tensor) -> Tensor:
    return fn.loc + fn.scale * torch.special.ndtri(u).to(fn.loc)


@quantile.register(MultivariateNormal)
def _(fn: MultivariateNormal, u: Tensor) -> Tensor:
    noise = torch.special.ndtri(u).to(fn.loc).unsqueeze(-1)
    return fn.loc + (fn._unbroadcasted_scale_tril @ noise).squeeze(-1)


@quantile.register(Gamma)
def _(fn: Gamma, u: Tensor) -> Tensor | None:
    standard = _by_scipy(special.gammaincinv, fn, u, fn.concentration)
    tiny = torch.finfo(fn.rate.dtype).tiny
    return None if standard is None else standard.clamp_min(tiny) / fn.rate


@quantile.register(Beta)
def _(fn: Beta, u: Tensor) -> Tensor | None:
    value = _by_scipy(special.betaincinv, fn, u, fn.concentration1, fn.concentration0)
    limits = torch.finfo(fn.concentration1.dtype)
    return None if value is None else value.clamp(limits.tiny, 1 - limits.eps / 2)


@quantile.register(StudentT)
def _(fn: StudentT, u: Tensor) -> Tensor | None:
    standard = _by_scipy(special.stdtrit, fn, u, fn.df)
    return None if standard is None else fn.loc + fn.scale * standard


def _by_scipy(inverse: np.ufunc, fn: Distribution, u: Tensor, *parameters: Tensor) -> Tensor | None:
    """An inverse that torch lacks, u its last argument; None where a gradient is wanted."""
    all_parameters = [getattr(fn, name) for name in fn.arg_constraints]
    if torch.is_grad_enabled() and any(p.requires_grad for p in all_parameters):
        return None
    arrays = [parameter.detach().double().cpu().numpy() for parameter in parameters]
    return torch.from_numpy(np.asarray(inverse(*arrays, u.numpy()))).to(parameters[0])


def _reference(fn: Distribution) -> Tensor:
    """A tensor with the distribution's dtype and device."""
    for name in fn.arg_constraints:
        value = getattr(fn, name, None)
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    return torch.zeros((), dtype=torch.get_default_dtype())
