"""Dense regressor: any network to a number per pixel, with its weights drawn from a prior.

Program:

    weights          ~  prior                                     one vector for all cases
    depth | image    ~  likelihood(net(image; weights))           one number per pixel

Sites and their dimensions: weights (weight), no unit; depth (case, row, col) or (case, depth, row,
col), in the units of the data; NaN where it was not measured, if the likelihood is ``partial``.

Input: ``image`` (case, channel, row, col) or (case, channel, depth, row, col), float, standardised.

Reference: Kendall and Gal, NeurIPS 2017, sections 3 and 5.1 (depth from one image, Laplace noise).
"""

from typing import Literal

import pyro
from torch import Tensor, nn

from ppl_med.axes import SPACE
from ppl_med.likelihoods import LaplaceNoise, Likelihood
from ppl_med.weights import Prior, RandomWeights, Where


class DenseRegressor(nn.Module):
    """The joint p(depth, weights | image) of a network.

    Args:
        net: Any network from images to (case, output, *space), with as many outputs as the
            likelihood needs (``likelihood.num_outputs``).
        likelihood: Of site "depth" with the spatial axes, such as
            ``Gaussian(("row", "col"), site="depth")``; by default Laplace noise that depends on the
            pixel, with NaN for what was not measured.
        prior: Prior over the random weights; He-scaled normals by default.
        where: Which parameters are random; see ``RandomWeights``.
        spatial_dims: 2 for images, 3 for volumes.
        batch_norm: Whether running statistics follow training; see ``RandomWeights``.

    Raises:
        ValueError: If the likelihood is not of maps of the site "depth"; on a run, if the network's
            output does not fit likelihood and image.
    """

    def __init__(
        self,
        net: nn.Module,
        likelihood: Likelihood | None = None,
        prior: Prior | None = None,
        where: Where = None,
        spatial_dims: int = 2,
        batch_norm: Literal["update", "frozen"] = "update",
    ) -> None:
        super().__init__()
        space = SPACE[spatial_dims]
        self.likelihood = likelihood or LaplaceNoise(space, site="depth", partial=True)
        self.likelihood.check_fits("depth", space)
        self.network = RandomWeights(net, prior, where, batch_norm=batch_norm)
        self.coords = self.likelihood.coords

    def forward(
        self, image: Tensor, depth: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        """Run once, conditioned on ``depth`` if given: output (case, output, *space).

        Args:
            image: A batch of images, dims (case, channel, *space).
            depth: Observed numbers, dims (case, *space), floating; None draws them.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.
        """
        output = self.network(image)
        self.likelihood.check_output(output, image)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            self.likelihood(output, depth)
        return output
