"""Networks from an image to a normal distribution over a latent code."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ppl_med.checks import whole
from ppl_med.networks.unet import CHANNELS, Encoder, HeLinear

LOG_SCALE_RANGE = (-7.0, 5.0)


class GaussianEncoder(nn.Module):
    """A small convolutional net whose output is a diagonal normal over z.

    Log-scales are clamped to (-7, 5), which keeps the KL finite in float32.

    Args:
        in_channels: Channels of the image, plus those of what is concatenated to it.
        latent_dim: Size of z.
        width: Channels of the first convolution.
        num_classes: Classes of a label that is concatenated as constant channels; 0 for none.
    """

    def __init__(
        self, in_channels: int, latent_dim: int, width: int = 16, num_classes: int = 0
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels + num_classes, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, 2 * latent_dim),
        )

    def forward(self, image: Tensor, label: Tensor | None = None) -> Distribution:
        """The distribution of z, event dims (latent,), of images (case, channel, row, col).

        The label, dims (case,), is needed exactly when ``num_classes`` is not 0.
        """
        if label is not None:
            planes = one_hot(label, self.num_classes, image)
            planes = planes[:, :, None, None].expand(-1, -1, *image.shape[2:])
            image = torch.cat([image, planes], dim=1)
        output = self.layers(image)  # of half precision under autocast
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        loc, log_scale = output.chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.clamp(*LOG_SCALE_RANGE).exp()).to_event(1)


def one_hot(label: Tensor, num_classes: int, like: Tensor) -> Tensor:
    """One number per class, 1 for the label's own, dims (case, class), of another tensor's type."""
    # A comparison: torch's one_hot checks the range on the host.
    return (label[:, None] == torch.arange(num_classes, device=label.device)).to(like)


def mask_planes(image: Tensor, mask: Tensor | None, num_classes: int) -> list[Tensor]:
    """One plane per class, 0.5 inside and -0.5 outside, (case, class, *space); none without mask.

    A pixel of class -1, not annotated, is outside everywhere. A mask must come with classes only.
    """
    if (mask is not None) != bool(num_classes):
        raise ValueError(
            f"mask is {'missing' if mask is None else 'given'}, but this net was built with "
            f"num_classes={num_classes}"
        )
    if mask is None:
        return []
    # A comparison: one_hot checks the range on the host, and refuses -1.
    classes = torch.arange(num_classes, device=mask.device).view(-1, *[1] * (mask.dim() - 1))
    return [(mask.unsqueeze(1) == classes).to(image) - 0.5]


class _ComponentsApart(HeLinear):
    """Starts with the means of components apart from each other, or all would learn the same."""

    def __init__(self, in_features: int, out_features: int, num_apart: int) -> None:
        self.num_apart = num_apart
        super().__init__(in_features, out_features, gain=0.5**0.5)

    def reset_parameters(self) -> None:
        """Draw new start values."""
        super().reset_parameters()
        nn.init.normal_(self.bias[: self.num_apart])


class ConvGaussian(nn.Module):
    """The encoder of a U-Net, averaged over space, as a diagonal normal over z.

    Prior and posterior net of the Probabilistic U-Net (``AxisAlignedConvGaussian`` of the authors'
    code). Log-scales are clamped to (-7, 5): unclamped, released code gives NaN within an epoch.

    Args:
        in_channels: Image channels.
        latent_dim: Size of z.
        num_classes: Classes of the mask that is concatenated, as one-hot planes minus 0.5; 0 for a
            net of the image alone.
        channels: Channels by scale, the finest first.
        num_convolutions: Convolutions per block.
        spatial_dims: 2 or 3.
        sees_image: False for a net of the mask alone.
        components: Number of normals that are mixed. A prior of several can put mass on separate
            modes; the KL is then estimated from the draw.

    Raises:
        ValueError: If the net would see nothing, or ``components`` is below 1.
    """

    def __init__(
        self,
        in_channels: int,
        latent_dim: int,
        num_classes: int = 0,
        channels: Sequence[int] = CHANNELS,
        num_convolutions: int = 3,
        spatial_dims: int = 2,
        *,
        sees_image: bool = True,
        components: int = 1,
    ) -> None:
        super().__init__()
        if not (sees_image or num_classes):
            raise ValueError("sees_image=False leaves nothing to see; give num_classes")
        whole("components", components)
        self.num_classes, self.sees_image = num_classes, sees_image
        self.components, self.latent_dim = components, latent_dim
        planes = (in_channels if sees_image else 0) + num_classes
        self.encoder = Encoder(planes, channels, num_convolutions, spatial_dims)
        numbers = 2 * latent_dim if components == 1 else components * (2 * latent_dim + 1)
        apart = components * latent_dim if components > 1 else 0
        self.parameters_of_z = _ComponentsApart(channels[-1], numbers, apart)

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Distribution:
        """The distribution of z, event dims (latent,), of images (case, channel, *space).

        The mask, integer classes (case, *space) or -1 where not annotated, is needed exactly when
        ``num_classes`` is not 0.
        """
        planes = mask_planes(image, mask, self.num_classes)
        inputs = torch.cat([image, *planes] if self.sees_image else planes, 1)
        features = self.encoder(inputs)[-1]
        numbers = self.parameters_of_z(features.flatten(2).mean(-1)).float()
        size = self.components * self.latent_dim
        loc, log_scale, weights = numbers.split([size, size, numbers.shape[1] - 2 * size], dim=-1)
        scale = log_scale.clamp(*LOG_SCALE_RANGE).exp()
        if self.components == 1:
            return dist.Normal(loc, scale).to_event(1)
        shape = (len(image), self.components, self.latent_dim)
        normals = dist.Normal(loc.view(shape), scale.view(shape)).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=weights), normals)
