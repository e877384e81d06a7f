"""What ``predict`` reads off an observed site: log-densities in float64, parameters to store."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution, Independent

from ppl_med.likelihoods.laws import QuantileLaw


def in_double(fn: Distribution) -> Distribution:
    """The same distribution with float64 parameters, where it is one we know.

    Renormalising in float64 what was normalised in float32 keeps the differences of logits and
    takes the ties out of the log-likelihood.
    """
    if isinstance(fn, Independent):
        return dist.Independent(in_double(fn.base_dist), fn.reinterpreted_batch_ndims)
    if isinstance(fn, torch.distributions.Categorical):
        double = fn.logits.dtype == torch.float64
        return fn if double else type(fn)(logits=fn.logits.double())
    if isinstance(fn, torch.distributions.Bernoulli):
        return dist.Bernoulli(logits=fn.logits.double())
    if isinstance(fn, torch.distributions.Normal | torch.distributions.Laplace):
        return _as_pyro(fn)(fn.loc.double(), fn.scale.double())
    if isinstance(fn, torch.distributions.StudentT):
        return _as_pyro(fn)(fn.df.double(), fn.loc.double(), fn.scale.double())
    if isinstance(fn, QuantileLaw):
        return QuantileLaw(fn.quantiles.double(), fn.scale.double(), fn.levels.double())
    return fn


def _as_pyro(fn: Distribution) -> Any:
    """The distribution's own class if it is one of Pyro's, which know more; else Pyro's."""
    return type(fn) if isinstance(fn, TorchDistributionMixin) else getattr(dist, type(fn).__name__)


def log_prob_in_double(fn: Distribution, value: Tensor) -> Tensor:
    """Log-density of an observation under float64 parameters, in nats.

    Args:
        fn: The distribution, in any precision.
        value: The observation; a Bernoulli's may be integers, as labels are.
    """
    inner = fn
    while isinstance(inner, Independent):
        inner = inner.base_dist
    if isinstance(inner, torch.distributions.Bernoulli):
        value = value.double()
    return in_double(fn).log_prob(value)


def class_probs(fn: torch.distributions.Categorical) -> Tensor:
    """Class probabilities, dims (..., class), computed once and kept on the distribution.

    They are the exponential of the normalised logits. ``fn.probs`` would be a softmax, which takes
    several times as long where the class axis is not the last in memory, as in one class a pixel.

    Args:
        fn: The distribution.
    """
    if "probs" not in vars(fn):
        fn.probs = fn.logits.exp()
    return fn.probs


def stored_parameters(
    fn: Distribution, names: Sequence[str]
) -> dict[str, tuple[list[str], Tensor]]:
    """What ``predict`` keeps of an observed site's distribution.

    Args:
        fn: The site's distribution.
        names: Axis names of the site's values, plates first.

    Returns:
        ``probs`` with a ``class`` axis after the first for Categorical and Bernoulli; ``loc`` and
        ``scale`` for Normal, Laplace and Student's t, with ``variance`` for the latter two;
        ``quantile`` with a last axis ``level``; ``mean`` and ``variance`` for others that have
        them.
    """
    while isinstance(fn, Independent):
        fn = fn.base_dist
    names = list(names)
    with_class = [*names[:1], "class", *names[1:]]
    if isinstance(fn, torch.distributions.Categorical):
        return {"probs": (with_class, class_probs(fn).movedim(-1, 1 if names else 0))}
    if isinstance(fn, torch.distributions.Bernoulli):
        both = torch.stack([torch.sigmoid(-fn.logits), torch.sigmoid(fn.logits)], 1 if names else 0)
        return {"probs": (with_class, both)}
    if isinstance(fn, torch.distributions.Normal):
        return {"loc": (names, fn.loc), "scale": (names, fn.scale)}
    if isinstance(fn, torch.distributions.Laplace | torch.distributions.StudentT):
        parameters = {"loc": (names, fn.loc), "scale": (names, fn.scale)}
        return {**parameters, "variance": (names, fn.variance)}  # not the squared scale
    if isinstance(fn, QuantileLaw):
        return {"quantile": ([*names, "level"], fn.quantiles)}
    try:
        return {"mean": (names, fn.mean), "variance": (names, fn.variance)}
    except NotImplementedError:
        return {}
