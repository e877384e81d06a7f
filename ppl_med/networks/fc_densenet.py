"""Fully convolutional DenseNets, the "Tiramisu": dense blocks on the way down and up again.

Blocks, with k the growth rate and L the layers of a block:

    layer            batch norm, ReLU, convolution of width 3 to k features
    dense block      L layers, each fed with the block's input and all layers before it
    transition down  batch norm, ReLU, convolution of width 1, max pooling by 2
    transition up    transposed convolution of width 3 and stride 2, cropped to the skip

On the way up only the new features of a block, L k of them, are enlarged; the skips carry the rest.
The dropout of the paper is not part of the net: the guide decides which weights are dropped.

Reference: Jégou, Drozdzal, Vazquez, Romero and Bengio, "The One Hundred Layers Tiramisu: Fully
Convolutional DenseNets for Semantic Segmentation", CVPR Workshops 2017, and the authors' released
code, from which the cropping and the start values are taken.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppl_med.checks import choice, reject, whole

FIRST_FEATURES = 48
# Depth in the name: layers of the dense blocks from the finest to the bottleneck, growth rate.
DEPTHS = {
    56: ((4, 4, 4, 4, 4, 4), 12),
    67: ((5, 5, 5, 5, 5, 5), 16),
    103: ((4, 5, 7, 10, 12, 15), 16),
}
DEPTHS[57] = DEPTHS[56]
_NORMS: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOLS: dict[int, Any] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


class _HeUniform:
    """Starts a layer: He-uniform weights, biases at 0; its own, so that ensembles start alike."""

    weight: Any
    bias: Any

    def reset_parameters(self) -> None:
        """Draw new start values."""
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.bias)


class _Conv2d(_HeUniform, nn.Conv2d):
    pass


class _Conv3d(_HeUniform, nn.Conv3d):
    pass


class _Enlarge2d(_HeUniform, nn.ConvTranspose2d):
    pass


class _Enlarge3d(_HeUniform, nn.ConvTranspose3d):
    pass


_CONVOLUTIONS: dict[int, Any] = {2: _Conv2d, 3: _Conv3d}
_ENLARGEMENTS: dict[int, Any] = {2: _Enlarge2d, 3: _Enlarge3d}


def _layer(spatial_dims: int, in_features: int, out_features: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        _NORMS[spatial_dims](in_features),
        nn.ReLU(),
        _CONVOLUTIONS[spatial_dims](in_features, out_features, width, padding=width // 2),
    )


class _DenseBlock(nn.Module):
    """Layers that see all before them; the output is what they add."""

    def __init__(
        self, spatial_dims: int, in_features: int, num_layers: int, growth_rate: int
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _layer(spatial_dims, in_features + index * growth_rate, growth_rate, 3)
            for index in range(num_layers)
        )

    def forward(self, stack: Tensor) -> Tensor:
        stacked = [stack]
        for layer in self.layers:
            stacked.append(layer(torch.cat(stacked, 1)))
        return torch.cat(stacked[1:], 1)


class FCDenseNet(nn.Module):
    """A fully convolutional DenseNet, to class scores or to a map of features.

    Any size of image that survives the halvings will do: the transposed convolution gives back what
    pooling leaves out at an odd size, and cropping at the far end makes up the rest, as in the
    paper (at CamVid's 360 rows, 22 become 11, and 45 become 22).

    Args:
        in_channels: Image channels.
        num_outputs: Channels of a last convolution of width 1; None stops at the features before
            it, ``num_features`` of them, as a backbone.
        num_layers: Layers of the dense blocks on the way down, the finest first, then those of the
            bottleneck; the way up mirrors the way down.
        growth_rate: Features that each layer adds.
        first_features: Features of the first convolution.
        spatial_dims: 2 for images, 3 for volumes.

    Attributes:
        in_channels: Image channels.
        num_features: Channels of the features of the last block with all that it was fed.

    Raises:
        ValueError: If an argument is out of range; on a run, if the image is too small.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_outputs: int | None = None,
        num_layers: Sequence[int] = DEPTHS[103][0],
        growth_rate: int = DEPTHS[103][1],
        first_features: int = FIRST_FEATURES,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        choice("spatial_dims", spatial_dims, _CONVOLUTIONS)
        if len(num_layers) < 2 or min(num_layers) < 1:
            rule = "one or more layers in each of two or more blocks, the bottleneck last"
            reject("num_layers", rule, tuple(num_layers))
        whole("in_channels", in_channels)
        whole("growth_rate", growth_rate)
        whole("first_features", first_features)
        if num_outputs is not None:
            whole("num_outputs", num_outputs, fix="None stops at the features")
        *outer, inner = num_layers
        dims, convolution = spatial_dims, _CONVOLUTIONS[spatial_dims]
        self.in_channels = in_channels
        self.first = convolution(in_channels, first_features, 3, padding=1)
        self.down, self.transitions_down = nn.ModuleList(), nn.ModuleList()
        features, skips = first_features, []
        for count in outer:
            self.down.append(_DenseBlock(dims, features, count, growth_rate))
            features += count * growth_rate
            skips.append(features)
            transition = nn.Sequential(_layer(dims, features, features, 1), _POOLS[dims](2))
            self.transitions_down.append(transition)
        self.bottleneck = _DenseBlock(dims, features, inner, growth_rate)
        self.up, self.transitions_up = nn.ModuleList(), nn.ModuleList()
        new = inner * growth_rate
        for count, skip in zip(reversed(outer), reversed(skips), strict=True):
            self.transitions_up.append(_ENLARGEMENTS[dims](new, new, 3, stride=2))
            features = new + skip
            self.up.append(_DenseBlock(dims, features, count, growth_rate))
            new = count * growth_rate
        self.num_features = features + new
        self.last = None if num_outputs is None else convolution(self.num_features, num_outputs, 1)

    @classmethod
    def of_depth(
        cls,
        depth: int,
        in_channels: int = 3,
        num_outputs: int | None = None,
        *,
        spatial_dims: int = 2,
    ) -> "FCDenseNet":
        """One of the published nets.

        Args:
            depth: Convolutions in the net: 56, 67 or 103, which at 11 classes are 1.40, 3.50 or
                9.43 million numbers, running statistics counted as the authors do (their table has
                1.5, 3.5 and 9.4). 57, as some name the smallest, is 56.
            in_channels: Image channels.
            num_outputs: Channels of the output; None for features.
            spatial_dims: 2 or 3; the paper has 2.
        """
        choice("depth", depth, sorted(DEPTHS))
        num_layers, growth_rate = DEPTHS[depth]
        return cls(in_channels, num_outputs, num_layers, growth_rate, spatial_dims=spatial_dims)

    def forward(self, image: Tensor) -> Tensor:
        """Scores or features (case, channel, *space) of images (case, channel, *space)."""
        smallest = 2 ** len(self.down)
        if min(image.shape[2:]) < smallest:
            raise ValueError(
                f"image is {' x '.join(map(str, image.shape[2:]))}; {len(self.down)} halvings need "
                f"{smallest} pixels or more along every axis: pad it, or use fewer blocks"
            )
        stack, skips = self.first(image), []
        for block, transition in zip(self.down, self.transitions_down, strict=True):
            skips.append(torch.cat([stack, block(stack)], 1))
            stack = transition(skips[-1])
        new = self.bottleneck(stack)
        for block, transition, skip in zip(
            self.up, self.transitions_up, reversed(skips), strict=True
        ):
            stack = torch.cat([_crop(transition(new), skip), skip], 1)
            new = block(stack)
        features = torch.cat([stack, new], 1)
        return features if self.last is None else self.last(features)


def _crop(features: Tensor, like: Tensor) -> Tensor:
    """The near corner, of the size of another map: the middle, for at most one pixel too many."""
    for axis in range(2, features.dim()):
        features = features.narrow(axis, 0, like.shape[axis])
    return features
