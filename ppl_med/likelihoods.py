"""From a network's output to the observed site.

A likelihood owns three things together: the sample statement, the log-likelihood (in float64 at
prediction, because float32 log-probabilities tie and break PSIS), and what ``predict`` stores
(``stored_parameters``).
"""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, constraints

from ppl_med.dims import dims


class PartialCategorical(dist.Categorical):
    """Categorical whose value -1 means "not observed" and has log-density 0."""

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """Integers from -1 to K-1."""
        return constraints.integer_interval(-1, self._num_events - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability in nats; 0 where the value is -1."""
        shape = torch.broadcast_shapes(value.shape, self.logits.shape[:-1])
        chosen = value.long().clamp(min=0).expand(shape).unsqueeze(-1)
        log_prob = self.logits.expand(*shape, -1).gather(-1, chosen).squeeze(-1)
        return torch.where(value < 0, torch.zeros_like(log_prob), log_prob)


class Categorical(nn.Module):
    """One of K classes: ``label ~ Categorical(softmax(logits))``.

    Log-densities are summed over the event axes: that is what one observation of a whole map is,
    and a mean over pixels in its place makes posterior collapse optimal in models with a latent.

    Args:
        classes: Class names, K >= 2 of them.
        event: Names of the axes after the class axis, such as ("row", "col") for one class a pixel.
        site: Name of the observed site.
        partial: Whether a value of -1 says that an entry was not observed; it then has no
            influence.
    """

    def __init__(
        self,
        classes: Sequence[str],
        event: Sequence[str] = (),
        site: str = "label",
        *,
        partial: bool = False,
    ) -> None:
        super().__init__()
        self.classes, self.event, self.site = tuple(classes), tuple(event), site
        self.partial = partial

    @property
    def num_outputs(self) -> int:
        """Channels the network must have on axis 1."""
        return len(self.classes)

    def forward(self, output: Tensor, label: Tensor | None) -> None:
        """State the site.

        Args:
            output: Logits, dims (case, class, *event), perhaps with dims before the case, such
                as of particles.
            label: Observed classes, dims (case, *event), integers in 0..K-1, or None.
        """
        class_axis = -1 - len(self.event)
        logits = output.movedim(class_axis, -1).to(_precision(output, self.training))
        kind = PartialCategorical if self.partial else dist.Categorical
        _sample(self.site, kind(logits=logits), self.event, label)


class Bernoulli(nn.Module):
    """Two classes from one logit: ``label ~ Bernoulli(sigmoid(logit))``.

    Args:
        classes: The two names, the negative one first.
        event: Names of the axes after the channel axis.
        site: Name of the observed site.
    """

    def __init__(
        self, classes: Sequence[str], event: Sequence[str] = (), site: str = "label"
    ) -> None:
        super().__init__()
        if len(classes) != 2:
            raise ValueError(f"Bernoulli takes two classes, got {len(classes)}: {list(classes)}")
        self.classes, self.event, self.site = tuple(classes), tuple(event), site

    @property
    def num_outputs(self) -> int:
        """Channels the network must have on axis 1."""
        return 1

    def forward(self, output: Tensor, label: Tensor | None) -> None:
        """State the site.

        Args:
            output: Logits of the second class, dims (case, 1, *event).
            label: Observed classes, dims (case, *event), integers 0 or 1, or None.
        """
        logits = output.squeeze(1).to(_precision(output, self.training))
        observed = None if label is None else label.to(logits.dtype)
        _sample(self.site, dist.Bernoulli(logits=logits), self.event, observed)


def _precision(output: Tensor, training: bool) -> torch.dtype:
    return torch.float32 if training and output.dtype != torch.float64 else torch.float64


def _sample(site: str, fn: Any, event: tuple[str, ...], value: Tensor | None) -> None:
    fn = fn.to_event(len(event)) if event else fn
    pyro.sample(site, fn, obs=value, infer=dims(*event) if event else None)


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
        kind = dist.Normal if isinstance(fn, torch.distributions.Normal) else dist.Laplace
        return kind(fn.loc.double(), fn.scale.double())
    return fn


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
        ``scale`` for Normal and Laplace; ``mean`` and ``variance`` for others that have them.
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
    if isinstance(fn, torch.distributions.Normal | torch.distributions.Laplace):
        return {"loc": (names, fn.loc), "scale": (names, fn.scale)}
    try:
        return {"mean": (names, fn.mean), "variance": (names, fn.variance)}
    except NotImplementedError:
        return {}
