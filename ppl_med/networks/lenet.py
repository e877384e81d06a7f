"""LeNet-5 (LeCun et al., Proceedings of the IEEE 1998) with ReLU and max pooling."""

import torch
from torch import Tensor, nn


class LeNet(nn.Module):
    """Two convolutions and three linear layers, for small images.

    Args:
        in_channels: Image channels.
        num_outputs: Output units, one a class.
        size: Image height and width in pixels, at least 16.
    """

    def __init__(self, in_channels: int = 1, num_outputs: int = 10, size: int = 28) -> None:
        super().__init__()
        if size < 16:
            raise ValueError(f"size must be at least 16 pixels, got {size}")
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

    def forward(self, image: Tensor) -> Tensor:
        """Logits (case, output) of images (case, channel, row, col)."""
        return self.classifier(self.features(image))
