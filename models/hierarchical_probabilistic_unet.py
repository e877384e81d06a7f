"""Hierarchical Probabilistic U-Net: maps of latent codes, from coarse to fine.

Program, for a case with image x and levels l = 0 (the coarsest), 1, ...:

    z_l | x, z_<l  ~  Normal(m_l, diag s_l^2)                    one code per position of the level
    mask | x, z    ~  Categorical(softmax(decoder(x, z)))        one class per pixel, pixels summed

Sites and their dimensions: z0, z1, ... (case, z<l>_latent, z<l>_row, z<l>_col); mask (case, row,
col) or (case, depth, row, col), integer in 0..K-1, or -1 where not annotated.

Input: ``image`` (case, channel, row, col) or (case, channel, depth, row, col), float, standardised.

Reference: Kohl et al., "A hierarchical probabilistic U-Net for modeling multi-scale ambiguities",
arXiv:1905.13077. Guide: ``ConditionalHierarchy`` with ``posterior_net()``; the authors train with
``objective=Geco(0.05 * num_pixels)``. Departs from it: all pixels count, not a random 2 % of the
worst; log-scales are clamped; residual blocks start close to their skip.
"""

from collections.abc import Sequence

import pyro
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ppl_med.axes import SPACE, dims
from ppl_med.likelihoods import Categorical
from ppl_med.networks.hierarchical_unet import CHANNELS, HierarchicalUNet


class HierarchicalProbabilisticUNet(nn.Module):
    """The joint p(mask, z0, z1, ... | image).

    Args:
        in_channels: Image channels.
        classes: Class names, the background first.
        latent_dims: Channels of each map of codes, the coarsest first.
        channels: Channels by scale, the finest first.
        num_blocks: Residual blocks per scale.
        spatial_dims: 2 for images, 3 for volumes.
    """

    def __init__(
        self,
        in_channels: int,
        classes: Sequence[str],
        latent_dims: Sequence[int] = (1, 1, 1, 1),
        channels: Sequence[int] = CHANNELS,
        num_blocks: int = 3,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self._sizes = (in_channels, tuple(latent_dims), tuple(channels), num_blocks, spatial_dims)
        self.network = HierarchicalUNet(*self._sizes, num_outputs=len(classes))
        self.likelihood = Categorical(classes, SPACE[spatial_dims], site="mask", partial=True)
        self.coords = {"class": list(classes)}

    def posterior_net(self) -> HierarchicalUNet:
        """A new posterior net q(z0, z1, ... | image, mask), for the guide."""
        return HierarchicalUNet(*self._sizes, num_classes=len(self.likelihood.classes))

    def forward(
        self, image: Tensor, mask: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        """Run once, conditioned on ``mask`` if given: logits of the drawn z (case, class, *space).

        Args:
            image: A batch of images, dims (case, channel, *space).
            mask: One grader's classes, dims (case, *space), integers; None draws them.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.
        """
        space = self.likelihood.event

        def draw(level: int, codes: TorchDistributionMixin) -> Tensor:
            names = [f"z{level}_{axis}" for axis in ("latent", *space)]
            return pyro.sample(f"z{level}", codes, infer=dims(*names))

        with pyro.plate("case", num_cases or len(image), subsample=image):
            logits = self.network(image, draw)
            self.likelihood(logits, mask)
        return logits
