"""A compact convolutional network that finds small structures anywhere in a small image."""

from itertools import pairwise
from typing import cast

from torch import Tensor, nn


class CompactCNN(nn.Module):
    """Three 3x3 convolutions, each halving the image, a maximum over positions, a linear layer.

    Weights start He-normal (He et al. 2015) and biases at 0.

    Args:
        in_channels: Image channels.
        num_outputs: Output units, one a class.
        width: Channels of the first convolution; they double with each.
    """

    def __init__(self, in_channels: int = 1, num_outputs: int = 2, width: int = 12) -> None:
        super().__init__()
        self.in_channels = in_channels
        layers: list[nn.Module] = []
        sizes = (in_channels, width, 2 * width, 4 * width)
        for inputs, outputs in pairwise(sizes):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            nn.init.constant_(cast(Tensor, convolution.bias), 0.0)
            layers += [convolution, nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(4 * width, num_outputs)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (case, output) of images (case, channel, row, col)."""
        return self.classifier(self.features(image))
