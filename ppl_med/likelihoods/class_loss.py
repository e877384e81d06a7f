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

from torch import Tensor

from ppl_med.likelihoods.classes import Categorical


class LossLikelihood(Categorical):
    """A ``Categorical`` whose training is a loss; subclasses give ``loss`` and ``training_loss``.

    ``training_loss`` names what is trained; ``predict`` writes it into the tree's attributes.
    """

    def forward(self, output: Tensor, value: Tensor | None) -> None:
        """Observe the site; with an observation in training, by the loss."""
        if not self.training or value is None:
            super().forward(output, value)
            return
        self.observe_by_loss(output, value, self.loss)

    @abstractmethod
    def loss(self, logits: Tensor, label: Tensor, seen: Tensor) -> Tensor:
        """The loss of every entry in nats, dims (..., *event).

        Args:
            logits: Dims (..., *event, class).
            label: Classes, dims (..., *event); 0 where not observed.
            seen: Whether they were observed, dims (..., *event).
        """
