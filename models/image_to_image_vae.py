"""Image-to-image VAE: the latent code enters the U-Net at its input.

Program, for a case with image x:

    z            ~  Normal(0, I)                                  one code per case, not of x
    mask | x, z  ~  Categorical(softmax(unet([x, z])))            one class per pixel

Sites and their dimensions: z (case, latent), no unit; mask (case, row, col) or (case, depth, row,
col), integer in 0..K-1, or -1 where not annotated.

Input: ``image`` (case, channel, row, col) or (case, channel, depth, row, col), float, standardised.

Reference: the baseline of Kohl et al., NeurIPS 2018, after Zhu et al., "Toward multimodal
image-to-image translation", NeurIPS 2017 (BicycleGAN), without its adversary. Every draw costs a
whole U-Net. Guide: ``ConditionalNormal`` with ``posterior_net()``, which sees the mask only.
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_med.axes import SPACE, dims
from ppl_med.likelihoods import Categorical
from ppl_med.networks.encoder import ConvGaussian
from ppl_med.networks.unet import CHANNELS, UNet, convolution


class ImageToImageVAE(nn.Module):
    """The joint p(mask, z | image).

    Args:
        in_channels: Image channels.
        classes: Class names, the background first.
        channels: Channels of U-Net and posterior net by scale, the finest first.
        num_convolutions: Convolutions per block.
        latent_dim: Size of z.
        spatial_dims: 2 for images, 3 for volumes.
    """

    def __init__(
        self,
        in_channels: int,
        classes: Sequence[str],
        channels: Sequence[int] = CHANNELS,
        num_convolutions: int = 3,
        latent_dim: int = 6,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        self.in_channels, self.latent_dim = in_channels, latent_dim
        self._encoder_sizes = (tuple(channels), num_convolutions, spatial_dims)
        unet = UNet(in_channels + latent_dim, channels, num_convolutions, spatial_dims)
        self.network = nn.Sequential(unet, convolution(spatial_dims, channels[0], len(classes), 1))
        self.likelihood = Categorical(classes, SPACE[spatial_dims], site="mask", partial=True)
        self.coords = {"class": list(classes)}

    def posterior_net(self) -> ConvGaussian:
        """A new posterior net q(z | mask), for the guide."""
        num_classes = len(self.likelihood.classes)
        return ConvGaussian(
            self.in_channels, self.latent_dim, num_classes, *self._encoder_sizes, sees_image=False
        )

    def forward(
        self, image: Tensor, mask: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        """Run once, conditioned on ``mask`` if given: logits of the drawn z (case, class, *space).

        Args:
            image: A batch of images, dims (case, channel, *space).
            mask: One grader's classes, dims (case, *space), integers; None draws them.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.
        """
        loc = torch.zeros(len(image), self.latent_dim, device=image.device)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            standard = dist.Normal(loc, loc.new_ones(())).to_event(1)
            z = pyro.sample("z", standard, infer=dims("latent"))
            space = image.shape[2:]
            tiled = z.view(*z.shape, *[1] * len(space)).expand(*z.shape, *space)
            images = image.expand(*z.shape[:-1], *image.shape[1:])
            joined = torch.cat([images, tiled], dim=-1 - len(space)).flatten(0, z.dim() - 2)
            logits = self.network(joined)
            logits = logits.view(*z.shape[:-1], *logits.shape[1:])
            self.likelihood(logits, mask)
        return logits
