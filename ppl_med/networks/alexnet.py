"""AlexNet as the Bayesian-CNN papers size it for small images.

Five convolutions and one linear layer (Shridhar, Laumann and Liwicki, arXiv:1901.02731): 2.2
million weights instead of the 57 million of the ImageNet net (Krizhevsky et al., NeurIPS 2012).
"""

from typing import cast

from torch import Tensor, nn


class AlexNet(nn.Module):
    """AlexNet for images of 32 to 63 pixels; larger ones are pooled to one position at the end.

    Weights start He-normal (He et al. 2015) and biases at 0.

    Args:
        in_channels: Image channels.
        num_outputs: Output units, one a class.
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
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.constant_(cast(Tensor, module.bias), 0.0)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (case, output) of images (case, channel, row, col)."""
        return self.classifier(self.features(image))
