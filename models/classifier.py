"""Bayesian classifier: any network, with its weights drawn from a prior.

Program:

    weights            ~  prior                                  one vector for all cases
    label | image      ~  Categorical(softmax(net(image; weights)))   one per case

Sites and their dimensions: weights (weight), no unit; label (case), integer in 0..K-1.

Input: ``image`` (case, channel, row, col) or (case, channel, depth, row, col), float, standardised
the way the network was or will be trained.

Reference: Blundell et al., "Weight uncertainty in neural networks", ICML 2015. Departs from it in
the prior's default: He-scaled normals in place of the scale mixture (``priors.ScaleMixture``).
"""

from collections.abc import Sequence
from typing import Literal

import pyro
from torch import Tensor, nn

from ppl_med.likelihoods import ClassLikelihood, class_likelihood
from ppl_med.weights import Prior, RandomWeights, Where


class BayesianClassifier(nn.Module):
    """The joint p(label, weights | image) of a network.

    Args:
        net: Any network from images to logits (case, class). With two classes it may have one
            output unit instead, the logit of the second class (with ``"bernoulli"``).
        classes: Class names, in the order of the labels.
        prior: Prior over the random weights; He-scaled normals by default.
        where: Which parameters are random; see ``RandomWeights``.
        likelihood: ``"categorical"`` (one logit per class), ``"bernoulli"`` (one logit in all),
            ``"ordinal"`` (one location for classes in an order), ``"logit_normal"`` (a mean and a
            log-variance of every logit: noise that the network learns), ``"label_noise"`` (labels
            that may be wrong); or training by a loss, which gives a generalised posterior:
            ``"label_smoothing"``, ``"margin_smoothing"``, ``"focal"``. Or a likelihood with
            settings, such as ``FocalLoss(classes, gamma=3.0)``.
        batch_norm: Whether running statistics follow training; see ``RandomWeights``.

    Raises:
        ValueError: If there are fewer than two classes or two share a name, or if the likelihood is
            unknown or of another site; on a run, if the network's output does not fit the classes.
    """

    def __init__(
        self,
        net: nn.Module,
        classes: Sequence[str],
        prior: Prior | None = None,
        where: Where = None,
        likelihood: str | ClassLikelihood = "categorical",
        batch_norm: Literal["update", "frozen"] = "update",
    ) -> None:
        super().__init__()
        self.network = RandomWeights(net, prior, where, batch_norm=batch_norm)
        self.likelihood = class_likelihood(likelihood, classes, (), "label")
        self.coords = self.likelihood.coords

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        """Run once, conditioned on ``label`` if given: logits, dims (case, class).

        Args:
            image: A batch of images, dims (case, channel, row, col) or (…, depth, row, col).
            label: Observed classes, dims (case,), integers; None draws them.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.
        """
        output = self.network(image)
        self.likelihood.check_output(output, image)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            self.likelihood(output, label)
        return output
