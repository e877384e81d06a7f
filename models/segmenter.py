"""Bayesian segmenter: any segmentation network, with its weights drawn from a prior.

Program:

    weights         ~  prior                                         one vector for all cases
    mask | image    ~  Categorical(softmax(net(image; weights)))     one class per pixel

Sites and their dimensions: weights (weight), no unit; mask (case, row, col) or (case, depth, row,
col), integer in 0..K-1, or -1 where not annotated.

Input: ``image`` (case, channel, row, col) or (case, channel, depth, row, col), float, standardised.

Reference: Kendall, Badrinarayanan and Cipolla, "Bayesian SegNet", BMVC 2017 (with
``BernoulliDropout``: the Dropout U-Net). Departs from it: the prior is explicit.
"""

from collections.abc import Sequence
from typing import Literal

import pyro
from torch import Tensor, nn

from ppl_med.axes import SPACE
from ppl_med.likelihoods import ClassLikelihood, class_likelihood
from ppl_med.weights import Prior, RandomWeights, Where


class BayesianSegmenter(nn.Module):
    """The joint p(mask, weights | image) of a network.

    Args:
        net: Any network from images to logits (case, class, *space).
        classes: Class names, the background first.
        prior: Prior over the random weights; He-scaled normals by default.
        where: Which parameters are random; see ``RandomWeights``.
        spatial_dims: 2 for images, 3 for volumes.
        batch_norm: Whether running statistics follow training; see ``RandomWeights``.
        likelihood: ``"categorical"`` (one logit per class), ``"ordinal"`` (one location for classes
            in an order), ``"logit_normal"`` (a mean and a log-variance of every logit: noise that
            the network learns), ``"label_noise"`` (pixels that may be wrong); or training by a
            loss, which gives a generalised posterior: ``"label_smoothing"``,
            ``"margin_smoothing"``, ``"focal"``, ``"spatial_smoothing"`` (SVLS),
            ``"neighbour_aware"`` (NACL). Or a likelihood with settings, of the site "mask"
            with the spatial axes.

    Raises:
        ValueError: If there are fewer than two classes or two share a name, or if the likelihood is
            unknown or of another site; on a run, if the output does not fit classes and image.
    """

    def __init__(
        self,
        net: nn.Module,
        classes: Sequence[str],
        prior: Prior | None = None,
        where: Where = None,
        spatial_dims: int = 2,
        batch_norm: Literal["update", "frozen"] = "update",
        likelihood: str | ClassLikelihood = "categorical",
    ) -> None:
        super().__init__()
        self.network = RandomWeights(net, prior, where, batch_norm=batch_norm)
        self.likelihood = class_likelihood(likelihood, classes, SPACE[spatial_dims], "mask")
        self.coords = self.likelihood.coords

    def forward(
        self, image: Tensor, mask: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        """Run once, conditioned on ``mask`` if given: logits (case, class, *space).

        Args:
            image: A batch of images, dims (case, channel, *space).
            mask: Observed classes, dims (case, *space), integers; None draws them.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.
        """
        output = self.network(image)
        self.likelihood.check_output(output, image)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            self.likelihood(output, mask)
        return output
