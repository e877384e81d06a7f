"""U-Net whose output is a map of features, as the Probabilistic U-Net and its relatives need it."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppl_med.checks import choice, reject
from ppl_med.data.masks import check_divisible

CHANNELS = (32, 64, 128, 192, 192, 192, 192)
_POOLS: dict[int, Any] = {2: functional.avg_pool2d, 3: functional.avg_pool3d}
_UPSAMPLINGS = {2: "bilinear", 3: "trilinear"}


class _TruncatedHe:
    """Starts a layer: truncated normal weights of ``gain`` times the He scale, biases near 0.

    It is the layer's own ``reset_parameters``, so that members of an ensemble start alike.
    """

    gain = 1.0
    joint_fan_in = 0
    weight: Any
    bias: Any

    def reset_parameters(self) -> None:
        """Draw new start values."""
        fan_in = self.joint_fan_in or self.weight[0].numel()
        # A normal cut at 2 standard deviations has 0.8796 times its standard deviation.
        for parameter, sd in (
            (self.weight, self.gain * (2 / fan_in) ** 0.5 / 0.8796),
            (self.bias, 1e-3),
        ):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=sd, a=-2 * sd, b=2 * sd)


class _HeConv2d(_TruncatedHe, nn.Conv2d):
    pass


class _HeConv3d(_TruncatedHe, nn.Conv3d):
    pass


class HeLinear(_TruncatedHe, nn.Linear):
    """A linear layer that starts as the convolutions here do.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        bias: Whether it has one.
        joint_fan_in: Inputs of the layer that this one is a part of; 0 if it stands alone.
        gain: Factor on the scale of the weights at the start.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        joint_fan_in: int = 0,
        gain: float = 1.0,
    ) -> None:
        self.joint_fan_in, self.gain = joint_fan_in, gain
        super().__init__(in_features, out_features, bias=bias)


_CONVOLUTIONS: dict[int, type[_HeConv2d | _HeConv3d]] = {2: _HeConv2d, 3: _HeConv3d}


def convolution(
    spatial_dims: int, in_channels: int, out_channels: int, size: int, gain: float = 1.0
) -> nn.Module:
    """A convolution of odd width that keeps the size; weights He-normal times a gain."""
    choice("spatial_dims", spatial_dims, _CONVOLUTIONS)
    layer = _CONVOLUTIONS[spatial_dims](in_channels, out_channels, size, padding=size // 2)
    layer.gain = gain
    layer.reset_parameters()
    return layer


def block(
    spatial_dims: int, in_channels: int, out_channels: int, num_convolutions: int
) -> nn.Sequential:
    """Convolutions of width 3, each with a ReLU."""
    layers: list[nn.Module] = []
    for index in range(num_convolutions):
        inputs = in_channels if index == 0 else out_channels
        layers += [convolution(spatial_dims, inputs, out_channels, 3), nn.ReLU()]
    return nn.Sequential(*layers)


def halve(features: Tensor) -> Tensor:
    """Average pooling by 2 along every spatial axis; features (case, channel, *space)."""
    return _POOLS[features.dim() - 2](features, 2)


def enlarge(features: Tensor, like: Tensor) -> Tensor:
    """Linear interpolation to the spatial size of another map."""
    return functional.interpolate(
        features, like.shape[2:], mode=_UPSAMPLINGS[features.dim() - 2], align_corners=True
    )


def descend(blocks: nn.ModuleList, image: Tensor) -> list[Tensor]:
    """Features of every scale, the finest first, with average pooling between the blocks."""
    check_divisible(image.shape[2:], len(blocks) - 1)
    found = [blocks[0](image)]
    for layers in list(blocks)[1:]:
        found.append(layers(halve(found[-1])))
    return found


class Encoder(nn.Module):
    """The descending half of a ``UNet``: one block per scale, average pooling between them."""

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = CHANNELS,
        num_convolutions: int = 3,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        widths = [in_channels, *channels]
        self.blocks = nn.ModuleList(
            block(spatial_dims, first, second, num_convolutions)
            for first, second in itertools.pairwise(widths)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of every scale, the finest first, each (case, channel, *space)."""
        return descend(self.blocks, image)


class UNet(nn.Module):
    """U-Net of plain convolutions and ReLUs, without normalisation (Kohl et al., NeurIPS 2018).

    The sizes are those of the authors' released code: 7 scales, 3 convolutions per block, average
    pooling, bilinear upsampling, skips by concatenation.

    Args:
        in_channels: Image channels.
        channels: Channels by scale, the finest first; the image is halved between scales.
        num_convolutions: Convolutions per block.
        spatial_dims: 2 for images, 3 for volumes.

    Attributes:
        num_features: Channels of the output.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = CHANNELS,
        num_convolutions: int = 3,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        if not channels or min(channels) < 1:
            reject("channels", "widths of one scale or more, each 1 or more", tuple(channels))
        self.in_channels, self.num_features = in_channels, channels[0]
        self.encoder = Encoder(in_channels, channels, num_convolutions, spatial_dims)
        self.decoder = nn.ModuleList(
            block(spatial_dims, coarse + fine, fine, num_convolutions)
            for fine, coarse in itertools.pairwise(channels)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Features (case, channel, *space) of images (case, channel, *space)."""
        *skips, features = self.encoder(image)
        for skip, layers in zip(reversed(skips), reversed(list(self.decoder)), strict=True):
            features = layers(torch.cat([enlarge(features, skip), skip], dim=1))
        return features
