"""Networks from an image to a normal distribution over a latent code."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

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
        """The distribution of z, event dims (latent,).

        Args:
            image: Dims (case, channel, row, col).
            label: Dims (case,), needed exactly when ``num_classes`` is not 0.
        """
        if label is not None:
            # A comparison: one_hot checks the labels' range on the host.
            classes = torch.arange(self.num_classes, device=label.device)
            planes = (label[:, None] == classes).to(image.dtype)
            planes = planes[:, :, None, None].expand(-1, -1, *image.shape[2:])
            image = torch.cat([image, planes], dim=1)
        loc, log_scale = self.layers(image).chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.clamp(*LOG_SCALE_RANGE).exp()).to_event(1)
