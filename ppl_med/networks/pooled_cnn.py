"""Convolutions, a global average and one linear layer: the net whose class activation map is exact.

    logit_c = mean over positions of Σ_k w_ck A_k(position) + b_c

so that the map of ``attribute(..., method="cam")``, before it is interpolated to the image, has the
logit without its bias as its mean.

Reference: Zhou et al., "Learning deep features for discriminative localization", CVPR 2016.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from ppl_med.checks import choice, reject, whole


class PooledCNN(nn.Module):
    """3x3 convolutions with ReLU, global average pooling, a linear layer; images or volumes.

    Weights of the convolutions start He-normal (He et al. 2015) and biases at 0.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Image channels.
        num_outputs: Output units, one per class.
        channels: Channels of the convolutions.
        strides: Their strides; few keep the map fine.

    Raises:
        ValueError: A size is below 1, or channels and strides differ in length.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        num_outputs: int = 2,
        *,
        channels: Sequence[int] = (8, 16, 32),
        strides: Sequence[int] = (2, 1, 1),
    ) -> None:
        super().__init__()
        choice("spatial_dims", spatial_dims, (2, 3))
        self.in_channels = whole("in_channels", in_channels)
        self.features = relu_convolutions(spatial_dims, in_channels, channels, strides)
        self.classifier = nn.Linear(channels[-1], whole("num_outputs", num_outputs))

    def forward(self, image: Tensor) -> Tensor:
        """Logits (case, class) of images (case, channel, [depth,] row, col)."""
        return self.classifier(self.features(image).flatten(2).mean(2))


def relu_convolutions(
    spatial_dims: int, in_channels: int, channels: Sequence[int], strides: Sequence[int]
) -> nn.Sequential:
    """3x3 convolutions with ReLU, He-normal, biases at 0; a side s becomes (s - 1) // stride + 1.

    Raises:
        ValueError: A channel or stride is below 1, or they differ in length.
    """
    for name, values in (("channels", channels), ("strides", strides)):
        for value in values:
            whole(name, value)
    if len(channels) != len(strides) or not len(channels):
        reject("strides", f"one for each of the {len(channels)} channels", strides)
    conv: Any = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
    layers: list[nn.Module] = []
    for (inputs, outputs), stride in zip(pairwise((in_channels, *channels)), strides, strict=True):
        layer = conv(inputs, outputs, 3, stride, padding=1)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.constant_(layer.bias, 0.0)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers)
