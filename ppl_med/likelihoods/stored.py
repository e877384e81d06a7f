"""What ``predict`` asks of an observed site's distribution: its log-density, its parameters.

Both are answered per type, for the distributions of Pyro and of torch here, and for a new one by
``in_double.register`` and ``stored_parameters.register`` in the file that defines it.
"""

import copy
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch import distributions as known
from torch.distributions import Distribution

Parameters = dict[str, tuple[list[str], Tensor]]
"""Values of a distribution's parameters with the names of their axes."""


class IntegerBernoulli(dist.Bernoulli):
    """Bernoulli whose values may be integers, as labels are."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability in nats."""
        found: Tensor = super().log_prob(value.to(self.logits))
        return found


@singledispatch
def in_double(fn: Distribution) -> Distribution:
    """The same distribution with float64 parameters; itself where its type is not known.

    Renormalising in float64 what was normalised in float32 keeps the differences of logits and
    takes the ties out of the log-likelihood.
    """
    return fn


@in_double.register(known.Independent)
def _(fn: known.Independent) -> Distribution:
    return dist.Independent(in_double(fn.base_dist), fn.reinterpreted_batch_ndims)


@in_double.register(known.Categorical)
def _(fn: known.Categorical) -> Distribution:
    if fn.logits.dtype == torch.float64:
        return fn
    double = copy.copy(fn)  # a subclass may be built from other things than logits
    double.logits = double._param = fn.logits.double()
    vars(double).pop("probs", None)
    return double


@in_double.register(known.Bernoulli)
def _(fn: known.Bernoulli) -> Distribution:
    kind = type(fn) if isinstance(fn, IntegerBernoulli) else IntegerBernoulli
    return kind(logits=fn.logits.double())


@in_double.register(known.Normal)
@in_double.register(known.Laplace)
@in_double.register(known.StudentT)
def _(fn: Distribution) -> Distribution:
    return _as_pyro(fn)(**{name: getattr(fn, name).double() for name in fn.arg_constraints})


def _as_pyro(fn: Distribution) -> Any:
    """The distribution's own class if it is one of Pyro's, which know more; else Pyro's."""
    return type(fn) if isinstance(fn, TorchDistributionMixin) else getattr(dist, type(fn).__name__)


def log_prob_in_double(fn: Distribution, value: Tensor) -> Tensor:
    """Log-density of an observation under float64 parameters, in nats."""
    return in_double(fn).log_prob(value)


def class_probs(fn: known.Categorical) -> Tensor:
    """Class probabilities, dims (..., class), computed once and kept on the distribution.

    They are the exponential of the normalised logits. ``fn.probs`` would be a softmax, which takes
    several times as long where the class axis is not the last in memory, as in one class per pixel.
    """
    if "probs" not in vars(fn):
        fn.probs = fn.logits.exp()
    return fn.probs


def site_logits(fn: Distribution) -> Tensor | None:
    """Logits of a site of classes, dims (case, class, *event); None of another site.

    Their softmax over the classes is what ``predict`` stores; of a Bernoulli they are one column,
    the log-odds of the second class.
    """
    while isinstance(fn, known.Independent):
        fn = fn.base_dist
    if isinstance(fn, known.Categorical):
        return fn.logits.movedim(-1, 1)
    return fn.logits.unsqueeze(1) if isinstance(fn, known.Bernoulli) else None


def class_logits(output: Tensor) -> Tensor:
    """Return logits (case, class, ...); one logit is the log-odds of class 1."""
    return torch.cat([-output, output], 1) / 2 if output.shape[1] == 1 else output


@singledispatch
def stored_parameters(fn: Distribution, names: Sequence[str]) -> Parameters:
    """What ``predict`` keeps of an observed site's distribution.

    ``probs`` with a ``class`` axis after the first for Categorical and Bernoulli; ``loc`` and
    ``scale`` for Normal, Laplace and Student's t, with ``variance`` for the latter two;
    ``quantile`` with a last axis ``level``; ``mean`` and ``variance`` for others that have them.
    ``names`` are those of the axes of the site's values, plates first.
    """
    try:
        return {"mean": (list(names), fn.mean), "variance": (list(names), fn.variance)}
    except NotImplementedError:
        return {}


@stored_parameters.register(known.Independent)
def _(fn: known.Independent, names: Sequence[str]) -> Parameters:
    return stored_parameters(fn.base_dist, names)


@stored_parameters.register(known.Categorical)
def _(fn: known.Categorical, names: Sequence[str]) -> Parameters:
    return _by_class(class_probs(fn).movedim(-1, 1 if names else 0), names)


@stored_parameters.register(known.Bernoulli)
def _(fn: known.Bernoulli, names: Sequence[str]) -> Parameters:
    both = torch.sigmoid(-fn.logits), torch.sigmoid(fn.logits)
    return _by_class(torch.stack(both, 1 if names else 0), names)


@singledispatch
def stored_values(fn: Distribution, name: str, value: Tensor, names: Sequence[str]) -> Parameters:
    """Under which names ``predict`` keeps values of an observed site, drawn or observed.

    Values of one array that stands for several, as boxes with their labels, are taken apart here.
    ``names`` are those of the axes of the site's values, plates first.
    """
    return {name: (list(names), value)}


def _by_class(probs: Tensor, names: Sequence[str]) -> Parameters:
    return {"probs": ([*names[:1], "class", *names[1:]], probs)}


@stored_parameters.register(known.Normal)
def _(fn: known.Normal, names: Sequence[str]) -> Parameters:
    return {"loc": (list(names), fn.loc), "scale": (list(names), fn.scale)}


@stored_parameters.register(known.Laplace)
@stored_parameters.register(known.StudentT)
def _(fn: Any, names: Sequence[str]) -> Parameters:  # the variance is not the squared scale
    return {name: (list(names), getattr(fn, name)) for name in ("loc", "scale", "variance")}
