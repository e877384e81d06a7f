"""Small networks between an image of fixed size and a latent code, given a class or not."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ppl_med.checks import reject
from ppl_med.networks.encoder import LOG_SCALE_RANGE, one_hot

SHRINKING = 4  # two layers of stride 2


class CodeEncoder(nn.Module):
    """A diagonal normal over the code of an image and its class; places are kept, not averaged.

    Log-scales are clamped to (-7, 5).

    Args:
        in_channels: Image channels.
        size: Rows and columns of the image; a ValueError if one is not a multiple of 4.
        num_classes: Classes; 0 for an encoder of the image alone.
        latent_dim: Size of the code.
        width: Channels of the first convolution.
    """

    def __init__(
        self, in_channels: int, size: tuple[int, int], num_classes: int, latent_dim: int, width: int
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        row, col = reduced(size)
        self.numbers = nn.Linear(2 * width * row * col + num_classes, 2 * latent_dim)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Distribution:
        """The distribution of the codes of images (case, channel, row, col) and labels (case,)."""
        joined = _with_class(self.features(image), label, self.num_classes)
        loc, log_scale = self.numbers(joined).float().chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.clamp(*LOG_SCALE_RANGE).exp()).to_event(1)


class CodeDecoder(nn.Module):
    """The mean image of a code and a class; arguments as in ``CodeEncoder``."""

    def __init__(
        self, in_channels: int, size: tuple[int, int], num_classes: int, latent_dim: int, width: int
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        row, col = reduced(size)
        self.layers = nn.Sequential(
            nn.Linear(latent_dim + num_classes, 2 * width * row * col),
            nn.Unflatten(1, (2 * width, row, col)),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, in_channels, 3, padding=1),
        )

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Images (..., case, channel, row, col) of codes (..., case, latent) and labels (case,)."""
        flat = z.flatten(0, -2)
        if label is not None:
            label = label.expand(z.shape[:-1]).flatten()
        images = self.layers(_with_class(flat, label, self.num_classes))
        return images.view(*z.shape[:-1], *images.shape[1:])


def _with_class(numbers: Tensor, label: Tensor | None, num_classes: int) -> Tensor:
    """Numbers (case, number), and behind them the class where there are classes."""
    if label is None:
        return numbers
    return torch.cat([numbers, one_hot(label, num_classes, numbers)], dim=1)


def check_size(image: Tensor, in_channels: int, size: tuple[int, int]) -> None:
    """A ValueError unless images are (case, channel, row, col) of that size."""
    if tuple(image.shape[1:]) != (in_channels, *size):
        expected = f"(case, {in_channels}, {', '.join(map(str, size))})"
        raise ValueError(f"image must be {expected}, got shape {tuple(image.shape)}")


def reduced(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns after two layers of stride 2; a ValueError if one is no multiple of 4."""
    row, col = size
    if row < SHRINKING or col < SHRINKING or row % SHRINKING or col % SHRINKING:
        reject("size", f"multiples of {SHRINKING}", size, "pad or resize the images")
    return row // SHRINKING, col // SHRINKING
