"""Stochastic segmentation network: one low-rank normal over the whole map of logits.

Program, for a case with image x:

    z           ~  Normal(0, I)                                   rank numbers per case
    noise       ~  Normal(0, I)                                   one number per class and pixel
    mask | x, z, noise  ~  Categorical(softmax(m(x) + F(x) z + d(x)^(1/2) noise))

so that the logits are Normal(m, F F' + diag d): pixels vary together.

Sites and their dimensions: z (case, latent); noise (case, class, row, col), not stored; mask (case,
row, col) or (case, depth, row, col), integer in 0..K-1, or -1 where not annotated.

Input: ``image`` (case, channel, row, col) or (case, channel, depth, row, col), float, standardised.

Reference: Monteiro et al., "Stochastic segmentation networks", NeurIPS 2020. Their loss, the
log-mean-exp of the likelihood over 20 draws from the prior, is ``objective=ImportanceWeighted(20)``
with the guide ``FromPrior("z", "noise")``. Departs from it: the factor form needs no covariance to
be inverted, so none ever is singular.
"""

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from ppl_med.axes import SPACE
from ppl_med.checks import whole
from ppl_med.likelihoods import Categorical, check_tensor
from ppl_med.networks.unet import CHANNELS, UNet, convolution
from ppl_med.programs.low_rank_field import LowRankField
from ppl_med.weights.call_cache import cached_call


class StochasticSegmentationNetwork(nn.Module):
    """The joint p(mask, z, noise | image).

    Args:
        in_channels: Image channels.
        classes: Class names, the background first.
        rank: Columns of the factor F; 0 leaves the logits independent (the paper's diagonal
            baseline).
        channels: Channels of the U-Net by scale, the finest first.
        num_convolutions: Convolutions per block.
        spatial_dims: 2 for images, 3 for volumes.
        net: In place of the U-Net, whose settings are then not used: a network from images to
            ``(2 + rank) * len(classes)`` maps, first the means of all classes, then their
            log-variances, then the columns of the factor, one after the other. A run raises a
            ValueError where its output does not fit classes, rank and image.
    """

    def __init__(
        self,
        in_channels: int,
        classes: Sequence[str],
        rank: int = 10,
        channels: Sequence[int] = CHANNELS,
        num_convolutions: int = 3,
        spatial_dims: int = 2,
        net: nn.Module | None = None,
    ) -> None:
        super().__init__()
        whole("rank", rank, 0)
        self.in_channels, self.rank = in_channels, rank
        if net is None:
            unet = UNet(in_channels, channels, num_convolutions, spatial_dims)
            output = convolution(spatial_dims, channels[0], (2 + rank) * len(classes), 1)
            net = nn.Sequential(unet, output)
        self.network = net
        self.likelihood = Categorical(classes, SPACE[spatial_dims], site="mask", partial=True)
        self.coords = {"class": list(classes)}

    def forward(
        self, image: Tensor, mask: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        """Run once, conditioned on ``mask`` if given: drawn logits (case, class, *space).

        Args:
            image: A batch of images, dims (case, channel, *space).
            mask: One grader's classes, dims (case, *space), integers; None draws them.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.
        """
        found = cached_call(self.network, image)
        check_tensor(found)
        output: Tensor = found.float()
        space, num_classes = image.shape[2:], len(self.likelihood.classes)
        expected = (len(image), (2 + self.rank) * num_classes, *space)
        if tuple(output.shape) != expected:
            raise ValueError(
                f"net gave an output of shape {tuple(output.shape)} but {expected} is needed: "
                f"(2 + rank) * classes maps of the size of the image, with rank {self.rank}"
            )
        law = LowRankField(output, self.rank, num_classes)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            logits = law.draw(("class", *self.likelihood.event))
            self.likelihood(logits, mask)
        return logits
