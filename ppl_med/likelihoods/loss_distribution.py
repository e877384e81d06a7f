"""A loss in the place of a categorical's log-probability, as a distribution to observe."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class ClassLoss(TorchDistribution):
    """A loss in a categorical's place: ``log_prob`` is minus the loss; draws are the categorical's.

    Args:
        logits: Not normalised, dims (..., class).
        loss: From logits (..., class), labels (...) and whether they were observed (...) to a loss
            in nats (...); labels that were not observed are 0.
        partial: Whether a value of -1 says that an entry was not observed; its loss is then 0.
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012

    def __init__(self, logits: Tensor, loss: Loss, *, partial: bool = False) -> None:
        self.logits, self.loss, self.partial = logits, loss, partial
        super().__init__(logits.shape[:-1], validate_args=False)

    @property
    def support(self) -> Any:
        """Integers up to K-1, from 0, or from -1 if partial."""
        return constraints.integer_interval(-1 if self.partial else 0, self.logits.shape[-1] - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ClassLoss":
        """The same with more batch dims."""
        logits = self.logits.expand(*batch_shape, self.logits.shape[-1])
        return ClassLoss(logits, self.loss, partial=self.partial)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws of the categorical."""
        return dist.Categorical(logits=self.logits).sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Minus the loss, in nats; 0 where an entry was not observed."""
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        value = value.long().expand(shape)
        seen = value >= 0
        label = value.clamp(min=0) if self.partial else value
        loss = self.loss(self.logits.expand(*shape, -1), label, seen)
        return torch.where(seen, -loss, torch.zeros_like(loss)) if self.partial else -loss


def log_prob_of(log_probs: Tensor, label: Tensor) -> Tensor:
    """Log-probability (...) of the label out of those of all classes (..., class).

    They are read along the axis where classes lie in memory. Networks give (case, class, row, col):
    along the last axis, that takes five times as long.
    """
    axis = sum(stride > log_probs.stride(-1) for stride in log_probs.stride())
    return log_probs.movedim(-1, axis).gather(axis, label.unsqueeze(axis)).squeeze(axis)
