"""Bayesian regressor: any network to numbers of each case, with its weights drawn from a prior.

Program:

    weights          ~  prior                                     one vector for all cases
    value | image    ~  likelihood(net(image; weights))           one number per case, or several

Sites and their dimensions: weights (weight), no unit; value (case) or (case, finding), in the units
of the data.

Input: ``image`` (case, channel, row, col) or (case, channel, depth, row, col), float, standardised.
``value`` is best left in its own unit, such as years: priors over weights are about outputs near 1,
so the likelihood takes mean and standard deviation of the training values into account.

Reference: Kendall and Gal, "What uncertainties do we need in Bayesian deep learning for computer
vision?", NeurIPS 2017: ``Gaussian()`` learns the noise of every input (aleatoric), and the
guide's draws disagree where data are few (epistemic).
"""

from typing import Literal

import pyro
from torch import Tensor, nn

from ppl_med.likelihoods import Gaussian, Likelihood
from ppl_med.weights import Prior, RandomWeights, Where


class BayesianRegressor(nn.Module):
    """The joint p(value, weights | image) of a network.

    Args:
        net: Any network from images to (case, output), with as many outputs as the likelihood
            needs (``likelihood.num_outputs``: 2 for ``Gaussian()``).
        likelihood: ``Gaussian()`` by default, with noise that depends on the image; or
            any other of the site "value", such as ``LaplaceNoise()`` or ``Quantiles()``. Several
            numbers per case are named there: ``Gaussian(findings=("age", "weight"))``.
        prior: Prior over the random weights; He-scaled normals by default.
        where: Which parameters are random; see ``RandomWeights``.
        batch_norm: Whether running statistics follow training; see ``RandomWeights``.

    Raises:
        ValueError: If the likelihood is of another site, or of maps (see ``DenseRegressor``); on a
            run, if the network's output does not fit it.
    """

    def __init__(
        self,
        net: nn.Module,
        likelihood: Likelihood | None = None,
        prior: Prior | None = None,
        where: Where = None,
        batch_norm: Literal["update", "frozen"] = "update",
    ) -> None:
        super().__init__()
        self.likelihood = Gaussian() if likelihood is None else likelihood
        several = tuple(self.likelihood.event) == ("finding",)
        self.likelihood.check_fits("value", ("finding",) if several else ())
        self.network = RandomWeights(net, prior, where, batch_norm=batch_norm)
        self.coords = self.likelihood.coords

    def forward(
        self, image: Tensor, value: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        """Run once, conditioned on ``value`` if given: the output, dims (case, output).

        Args:
            image: A batch of images, dims (case, channel, row, col) or (…, depth, row, col).
            value: Observed numbers, dims (case,) or (case, finding), floating; None draws them.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.
        """
        output = self.network(image)
        self.likelihood.check_output(output, image)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            self.likelihood(output, value)
        return output
