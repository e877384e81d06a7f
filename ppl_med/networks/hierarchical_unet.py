"""U-Net that draws maps of latent codes on its way up, from coarse to fine."""

import itertools
import math
from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional

from ppl_med.networks.encoder import LOG_SCALE_RANGE, mask_planes
from ppl_med.networks.unet import convolution, descend

CHANNELS = (24, 48, 96, 192, 192, 192, 192, 192)
Draw = Callable[[int, TorchDistributionMixin], Tensor]


class ResidualBlock(nn.Module):
    """Pre-activated residual block: three convolutions of half the width, and one of size 1."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = max(out_channels // 2, 1)
        widths = [in_channels, half, half, half]
        sizes = [convolution(spatial_dims, a, b, 3) for a, b in itertools.pairwise(widths)]
        # Blocks start close to their skip; without normalisation a deep sum would explode.
        last = convolution(spatial_dims, half, out_channels, 1, gain=0.1)
        self.layers = nn.ModuleList([*sizes, last])
        self.skip = (
            nn.Identity()
            if in_channels == out_channels
            else convolution(spatial_dims, in_channels, out_channels, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features, dims (case, channel, *space)."""
        inner = features
        for layer in self.layers:
            inner = layer(torch.relu(inner))
        return self.skip(features) + inner


def _blocks(spatial_dims: int, in_channels: int, out_channels: int, number: int) -> nn.Sequential:
    widths = [in_channels, *[out_channels] * number]
    return nn.Sequential(
        *(ResidualBlock(spatial_dims, a, b) for a, b in itertools.pairwise(widths))
    )


class HierarchicalUNet(nn.Module):
    """Prior or posterior half of the hierarchical Probabilistic U-Net (Kohl et al., 2019).

    At each of the coarsest decoder scales, a convolution of size 1 gives a normal over a map of
    codes; the map that is drawn joins the features. So z_l depends on all z before it.

    Args:
        in_channels: Image channels.
        latent_dims: Channels of each map of codes, the coarsest first.
        channels: Channels by scale, the finest first.
        num_blocks: Residual blocks per scale.
        spatial_dims: 2 or 3.
        num_outputs: Channels of the output; 0 stops after the last map of codes (a posterior net).
        num_classes: Classes of a mask that is concatenated to the image, as one-hot planes minus
            0.5; 0 for a net of the image alone.

    Raises:
        ValueError: If there are more maps of codes than scales.
    """

    def __init__(
        self,
        in_channels: int,
        latent_dims: Sequence[int] = (1, 1, 1, 1),
        channels: Sequence[int] = CHANNELS,
        num_blocks: int = 3,
        spatial_dims: int = 2,
        *,
        num_outputs: int = 0,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        if not 1 <= len(latent_dims) <= len(channels):
            raise ValueError(
                f"latent_dims must have 1 to {len(channels)} entries, at most one per scale, got "
                f"{len(latent_dims)}"
            )
        self.num_classes, self.latent_dims = num_classes, tuple(latent_dims)
        widths = [in_channels + num_classes, *channels]
        self.down = nn.ModuleList(
            _blocks(spatial_dims, a, b, num_blocks) for a, b in itertools.pairwise(widths)
        )
        coarse_first = list(reversed(channels))
        # Close to standard normals: on features without norm, He weights give a KL of 1e9 nats.
        self.codes = nn.ModuleList(
            convolution(spatial_dims, width, 2 * latent_dim, 1, gain=0.01)
            for width, latent_dim in zip(coarse_first, latent_dims, strict=False)
        )
        last = len(channels) if num_outputs else len(latent_dims)
        added = [*latent_dims, *[0] * len(channels)]
        self.up = nn.ModuleList(
            _blocks(spatial_dims, coarse + added[level] + fine, fine, num_blocks)
            for level, (coarse, fine) in enumerate(itertools.pairwise(coarse_first[:last]))
        )
        inner = coarse_first[-1] + (added[last - 1])
        self.output = convolution(spatial_dims, inner, num_outputs, 1) if num_outputs else None

    def forward(self, image: Tensor, draw: Draw, mask: Tensor | None = None) -> Tensor | None:
        """Draw the maps of codes, and give the output if there is one.

        Args:
            image: Dims (case, channel, *space).
            draw: From level (0 is the coarsest) and the distribution of its codes, event dims
                (latent, *space), to a value, perhaps with dims before the case.
            mask: Classes, dims (case, *space); needed exactly when ``num_classes`` is not 0.

        Returns:
            Output, dims (..., case, output, *space), or None.
        """
        skips = self.skips(image, mask)
        features = skips[-1]
        leading = features.shape[:1]
        for level in range(len(skips)):
            if level:
                features = functional.interpolate(features, scale_factor=2.0, mode="nearest")
                skip = skips[-1 - level]
                repeats = features.shape[0] // skip.shape[0]
                skip = skip.repeat(repeats, *[1] * (skip.dim() - 1)) if repeats > 1 else skip
                features = self.up[level - 1](torch.cat([features, skip], 1))
            if level < len(self.codes):
                z = draw(level, self._normal(level, features, leading))
                repeats = math.prod(z.shape[: 1 - features.dim()]) // features.shape[0]
                features = features.repeat(repeats, *[1] * (features.dim() - 1))
                leading = z.shape[: 1 - features.dim()]
                features = torch.cat([features, z.reshape(-1, *z.shape[1 - features.dim() :])], 1)
            if level + 1 == len(self.codes) and self.output is None:
                return None
        assert self.output is not None
        output = self.output(features)
        return output.view(*leading, *output.shape[1:])

    def skips(self, image: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Features of every scale on the way down, the finest first."""
        planes = mask_planes(image, mask, self.num_classes)
        return descend(self.down, torch.cat([image, *planes], 1))

    def _normal(self, level: int, features: Tensor, leading: torch.Size) -> TorchDistributionMixin:
        loc, log_scale = self.codes[level](torch.relu(features)).float().chunk(2, 1)
        scale = log_scale.clamp(*LOG_SCALE_RANGE).exp()
        shape = (*leading, *loc.shape[1:])
        return dist.Normal(loc.view(shape), scale.view(shape)).to_event(loc.dim() - 1)
