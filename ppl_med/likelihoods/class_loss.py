"""Class likelihoods that are trained by a loss in the place of their log-probability.

A density of the label sums to one over the classes. A loss l(label, logits) in general does not:
with it, what is learned is the generalised (Gibbs) posterior

    p(weights) * exp(-sum over cases of l(label, logits(weights)))  /  its integral

of Bissiri, Holmes and Walker, "A general framework for updating belief distributions", Journal of
the Royal Statistical Society B 78, 2016, eq. 2. It is a coherent belief about which weights have a
small loss, but no posterior of the label's model: the scale of the loss is that of the belief, and
what the history calls ELBO bounds no evidence of the labels.

In evaluation mode the observed site is the ``Categorical``, so ``predict`` stores its probabilities
and its log-likelihood of the labels. Log-likelihoods of held-out cases are scores, as for any other
classifier. Those of training cases are not what was trained, so leaving a case out by their weights
(PSIS-LOO, jackknife+, conformal Bayes) would divide by a factor that was never there: ``predict``
says so in the attribute ``log_likelihood_of``, and those analyses then refuse.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from ppl_med.likelihoods.classes import Categorical
from ppl_med.likelihoods.interface import observe, precision

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


class LossLikelihood(Categorical):
    """A ``Categorical`` whose training is a loss; subclasses give ``loss`` and ``training_loss``.

    ``training_loss`` names what is trained; ``predict`` writes it into the tree's attributes.
    """

    def forward(self, output: Tensor, value: Tensor | None) -> None:
        """Observe the site; with an observation in training, by the loss."""
        if not self.training or value is None:
            super().forward(output, value)
            return
        logits = self.class_last(output).to(precision(output, training=True))
        fn = ClassLoss(logits, self.loss, partial=self.partial)
        observe(self.site, fn, self.event, value)

    @abstractmethod
    def loss(self, logits: Tensor, label: Tensor, seen: Tensor) -> Tensor:
        """The loss of every entry in nats, dims (..., *event).

        Args:
            logits: Dims (..., *event, class).
            label: Classes, dims (..., *event); 0 where not observed.
            seen: Whether they were observed, dims (..., *event).
        """


def log_prob_of(log_probs: Tensor, label: Tensor) -> Tensor:
    """Log-probability (...) of the label out of those of all classes (..., class)."""
    return log_probs.gather(-1, label.unsqueeze(-1)).squeeze(-1)
