"""Small nets from an image to the logits of classes."""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from ppl_med.checks import whole


class _FeaturesThenClassifier(nn.Module):
    features: nn.Module
    classifier: nn.Module

    def forward(self, image: Tensor) -> Tensor:
        """Logits (case, output) of images (case, channel, row, col)."""
        return self.classifier(self.features(image))


class AlexNet(_FeaturesThenClassifier):
    """AlexNet as the Bayesian-CNN papers size it for images of 32 to 63 pixels.

    Five convolutions and one linear layer (Shridhar, Laumann and Liwicki, arXiv:1901.02731): 2.2
    million weights instead of the 57 million of the ImageNet net (Krizhevsky et al., NeurIPS 2012).
    Larger images are pooled to one position at the end. Weights start He-normal (He et al. 2015)
    and biases at 0.

    Args:
        in_channels: Image channels.
        num_outputs: Output units, one per class.
    """

    def __init__(self, in_channels: int = 1, num_outputs: int = 2) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 64, 11, stride=4, padding=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 128, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(128, num_outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _start(module)


class CompactCNN(_FeaturesThenClassifier):
    """A net that finds small structures anywhere in a small image.

    Three 3x3 convolutions, each halving the image, a maximum over positions, a linear layer.
    Weights start He-normal (He et al. 2015) and biases at 0.

    Args:
        in_channels: Image channels.
        num_outputs: Output units, one per class.
        width: Channels of the first convolution; each further one has twice as many.
    """

    def __init__(self, in_channels: int = 1, num_outputs: int = 2, width: int = 12) -> None:
        super().__init__()
        self.in_channels = in_channels
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((in_channels, width, 2 * width, 4 * width)):
            layers += [_start(nn.Conv2d(inputs, outputs, 3, padding=1)), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(4 * width, num_outputs)


class StridedCNN(_FeaturesThenClassifier):
    """Four convolutions that halve the image by their strides, for cheap studies of small images.

    5x5 and 3x3 with stride 2, then 3x3 twice, the last without stride; a maximum over positions, a
    linear layer. No pooling between: a training step takes a fifth of ``AlexNet``'s. Weights start
    He-normal (He et al. 2015) and biases at 0.

    Args:
        in_channels: Image channels.
        num_outputs: Output units, one per class.
        width: Channels of the first convolution; the second has twice, the others four times as
            many.
    """

    def __init__(self, in_channels: int = 1, num_outputs: int = 2, width: int = 16) -> None:
        super().__init__()
        self.in_channels = in_channels
        layers: list[nn.Module] = []
        channels = (in_channels, width, 2 * width, 4 * width, 4 * width)
        shapes = ((5, 2), (3, 2), (3, 2), (3, 1))
        for (inputs, outputs), (kernel, stride) in zip(pairwise(channels), shapes, strict=True):
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)
            layers += [_start(convolution), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(4 * width, num_outputs)


class LeNet(_FeaturesThenClassifier):
    """LeNet-5 (LeCun et al., Proceedings of the IEEE 1998) with ReLU and max pooling.

    Args:
        in_channels: Image channels.
        num_outputs: Output units, one per class.
        size: Image height and width in pixels, at least 16.

    Raises:
        ValueError: If the size is below 16.
    """

    def __init__(self, in_channels: int = 1, num_outputs: int = 10, size: int = 28) -> None:
        super().__init__()
        whole("size", size, 16)
        self.in_channels = in_channels
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        with torch.no_grad():
            width = self.features(torch.zeros(1, in_channels, size, size)).shape[1]
        self.classifier = nn.Sequential(
            nn.Linear(width, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_outputs),
        )


def _start(convolution: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    nn.init.constant_(cast(Tensor, convolution.bias), 0.0)
    return convolution
