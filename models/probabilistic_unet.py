"""Probabilistic U-Net: one latent code per case explains why graders of the same image disagree.

Program, for a case with image x:

    z | x        ~  Normal(m(x), diag s(x)^2)                   one code per case, the prior net
    mask | x, z  ~  Categorical(softmax(f_comb(unet(x), z)))    one class per pixel, pixels summed

Sites and their dimensions: z (case, latent), no unit; mask (case, row, col) or (case, depth, row,
col), integer in 0..K-1, or -1 where not annotated.

Input: ``image`` (case, channel, row, col) or (case, channel, depth, row, col), float, standardised.

Reference: Kohl et al., "A probabilistic U-Net for segmentation of ambiguous images", NeurIPS 2018;
sizes of the authors' released code. Departs from it: log-scales are clamped, the weights have no
penalty of their own (put weight decay into the optimizer). Guide: ``ConditionalNormal`` with
``posterior_net()``.
"""

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from ppl_med.axes import SPACE, dims
from ppl_med.likelihoods import Categorical
from ppl_med.networks.combine import Combine
from ppl_med.networks.encoder import ConvGaussian
from ppl_med.networks.unet import CHANNELS, UNet
from ppl_med.weights.call_cache import cached_call


class ProbabilisticUNet(nn.Module):
    """The joint p(mask, z | image).

    Args:
        in_channels: Image channels.
        classes: Class names, the background first.
        channels: Channels of U-Net and encoders by scale, the finest first.
        num_convolutions: Convolutions per block.
        latent_dim: Size of z.
        spatial_dims: 2 for images, 3 for volumes.
        backbone: A network from images to features (case, feature, *space) in the U-Net's place;
            it must have ``num_features``.
        prior: A network from images to the distribution of z in the prior net's place.
        prior_components: Normals that the prior net mixes.

    Raises:
        ValueError: If ``backbone`` does not say how many features it gives.
    """

    def __init__(
        self,
        in_channels: int,
        classes: Sequence[str],
        channels: Sequence[int] = CHANNELS,
        num_convolutions: int = 3,
        latent_dim: int = 6,
        spatial_dims: int = 2,
        backbone: nn.Module | None = None,
        prior: nn.Module | None = None,
        prior_components: int = 1,
    ) -> None:
        super().__init__()
        if backbone is not None and not isinstance(getattr(backbone, "num_features", None), int):
            raise ValueError(
                f"backbone ({type(backbone).__name__}) must have the attribute num_features, the "
                "channels of its output"
            )
        self.in_channels, self.latent_dim = in_channels, latent_dim
        self._encoder_sizes = (tuple(channels), num_convolutions, spatial_dims)
        self.backbone = backbone or UNet(in_channels, channels, num_convolutions, spatial_dims)
        self.prior = prior or ConvGaussian(
            in_channels, latent_dim, 0, *self._encoder_sizes, components=prior_components
        )
        num_features: int = self.backbone.num_features  # type: ignore[assignment]
        self.combine = Combine(num_features, latent_dim, len(classes), channels[0])
        self.likelihood = Categorical(classes, SPACE[spatial_dims], site="mask", partial=True)
        self.coords = {"class": list(classes)}

    def posterior_net(self) -> ConvGaussian:
        """A new posterior net q(z | image, mask) of the prior net's sizes, for the guide."""
        num_classes = len(self.likelihood.classes)
        return ConvGaussian(self.in_channels, self.latent_dim, num_classes, *self._encoder_sizes)

    def forward(
        self, image: Tensor, mask: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        """Run once, conditioned on ``mask`` if given: logits of the drawn z (case, class, *space).

        Args:
            image: A batch of images, dims (case, channel, *space).
            mask: One grader's classes, dims (case, *space), integers; None draws them.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.
        """
        features = cached_call(self.combine.of_features, cached_call(self.backbone, image))
        prior = cached_call(self.prior, image)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            z = pyro.sample("z", prior, infer=dims("latent"))
            logits = self.combine(features, z)
            self.likelihood(logits, mask)
        return logits
