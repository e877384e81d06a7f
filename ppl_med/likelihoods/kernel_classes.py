"""Classes by kernels, each the probability that a case is like its class, and not of a sum of one.

    indicator_c  ~  Bernoulli(k_c)        for every class c, in training
    label        ~  Categorical(p),       p_c  proportional to  k_c / (1 - k_c),     at prediction

The indicator of the label is 1 for its class and 0 for the others. Kernels k are near 0 for every
class where a case is like none. They do not sum to one, and no rescaling of them is a probability
of the label by itself. p is the one that follows: that of each class *given that exactly one
indicator is 1*. Its argmax is that of the kernels; it says nothing of whether the case is like any
class, and is sure of the nearest one far from all. So ``predict`` stores both: ``probs``, and
``kernel`` (chain, draw, case, class), which ``analysis.ood`` scores by "duq".
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import softplus

from ppl_med.likelihoods.class_loss import LossLikelihood
from ppl_med.likelihoods.interface import note, precision
from ppl_med.likelihoods.loss_distribution import log_prob_of


class KernelClasses(LossLikelihood):
    """Trained by the binary cross-entropy of every class, summed over them; a loss of the label.

    Of the indicators it is the log-density, of the label it is none (it does not sum to one over
    the K labels): see ``class_loss`` for what that makes of the posterior.

    Outputs are the log-odds of the kernels, log k - log(1 - k), one per class.

    Args:
        classes, event, site: As in ``Categorical``.
    """

    training_loss = "binary cross-entropy of every class"

    def __init__(
        self, classes: Sequence[str], event: Sequence[str] = (), site: str = "label"
    ) -> None:
        super().__init__(classes, event, site)

    def loss(self, logits: Tensor, label: Tensor, seen: Tensor) -> Tensor:
        """-log k_label - sum over the others of log(1 - k_c), in nats."""
        return softplus(logits).sum(-1) - log_prob_of(logits, label)

    def forward(self, output: Tensor, value: Tensor | None) -> None:
        """Observe the site; at prediction note the kernels."""
        if not self.training:
            kernel = output.to(precision(output, training=False)).sigmoid()
            note("kernel", kernel, "class", *self.event)
        super().forward(output, value)
