"""Likelihoods of classes: one a case, or one a pixel."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_med.likelihoods.statement import check_class_names, precision, state


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
        check_class_names(classes)
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
        logits = output.movedim(class_axis, -1).to(precision(output, training=self.training))
        kind = PartialCategorical if self.partial else dist.Categorical
        state(self.site, kind(logits=logits), self.event, label)


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
        logits = output.squeeze(1).to(precision(output, training=self.training))
        observed = None if label is None else label.to(logits.dtype)
        state(self.site, dist.Bernoulli(logits=logits), self.event, observed)
