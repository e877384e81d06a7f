"""Likelihoods of classes: one per case, or one per pixel."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_med.checks import different_names
from ppl_med.likelihoods.interface import Likelihood
from ppl_med.likelihoods.stored import IntegerBernoulli, site_logits


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


class ClassLikelihood(Likelihood):
    """A likelihood of K classes.

    Attributes:
        classes: Class names.
    """

    classes: tuple[str, ...]

    @property
    def num_outputs(self) -> int:
        """Channels that the network must have: one per class."""
        return len(self.classes)

    @property
    def coords(self) -> dict[str, list[Any]]:
        """The class names."""
        return {"class": list(self.classes)}

    def prediction(self, output: Tensor) -> Tensor:
        """As in ``Likelihood``: the network's own logits where they are those of the site."""
        if type(self).distribution in (Categorical.distribution, Bernoulli.distribution):
            return output
        logits = site_logits(self.distribution(output))
        assert logits is not None
        return logits

    def class_last(self, output: Tensor) -> Tensor:
        """The output with its classes on the last axis, dims (..., *event, class)."""
        return output.movedim(-1 - len(self.event), -1)

    def categorical(self, logits: Tensor) -> Any:
        """The categorical of some logits (..., *event, class), with missing labels if partial."""
        kind = PartialCategorical if self.partial else dist.Categorical
        return kind(logits=logits)


class Categorical(ClassLikelihood):
    """One of K classes: ``label ~ Categorical(softmax(logits))``.

    Log-densities are summed over the event axes: that is what one observation of a whole map is,
    and a mean over pixels in its place makes posterior collapse optimal in models with a latent.

    Args:
        classes: Class names, K >= 2 of them.
        event: Names of the axes after the class axis, such as ("row", "col") for one class per
            pixel.
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
        self.classes = different_names("classes", classes, least=2)
        self.event, self.site, self.partial = tuple(event), site, partial

    def distribution(self, output: Tensor) -> Any:
        """Categorical of the logits."""
        return self.categorical(self.class_last(output))


class Bernoulli(ClassLikelihood):
    """Two classes from one logit: ``label ~ Bernoulli(sigmoid(logit))``.

    Args:
        classes: The two names, the negative one first.
        event: Names of the axes after the channel axis.
        site: Name of the observed site.
    """

    num_outputs = 1

    def __init__(
        self, classes: Sequence[str], event: Sequence[str] = (), site: str = "label"
    ) -> None:
        super().__init__()
        self.classes = different_names("classes", classes, least=2)
        if len(classes) != 2:
            raise ValueError(f"Bernoulli takes two classes, got {len(classes)}: {list(classes)}")
        self.event, self.site = tuple(event), site

    def distribution(self, output: Tensor) -> Any:
        """Bernoulli of the logit of the second class."""
        return IntegerBernoulli(logits=output.squeeze(-1 - len(self.event)))
