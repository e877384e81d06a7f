"""Small nets and images that the tests of attribution share."""

from typing import Any

import torch
from torch import Tensor, nn


def images(cases: int = 3, channels: int = 2, size: int = 8, space: int = 2) -> Tensor:
    return torch.randn(cases, channels, *[size] * space, dtype=torch.float64)


def conv_net(space: int = 2, bias: bool = True, classes: int = 3, channels: int = 2) -> Any:
    """Two convolutions, batch norm, max pool and a linear head, for sides of 8."""
    conv: Any = nn.Conv2d if space == 2 else nn.Conv3d
    norm: Any = nn.BatchNorm2d if space == 2 else nn.BatchNorm3d
    pool: Any = nn.MaxPool2d if space == 2 else nn.MaxPool3d
    layers = [conv(channels, 4, 3, padding=1, bias=bias), nn.ReLU(), pool(2)]
    if bias:
        layers[1:1] = [norm(4)]
    net = nn.Sequential(
        *layers,
        conv(4, 5, 3, padding=1, bias=bias),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 4**space, classes, bias=bias),
    ).double()
    return randomized(net)


def randomized(net: nn.Module) -> nn.Module:
    """In evaluation mode, without parameter gradients, norms off their start."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return net.eval().requires_grad_(False)


class PooledNet(nn.Module):
    """Convolutions, global average pool, one linear layer: the net that CAM was made for."""

    def __init__(self, space: int = 2, classes: int = 3) -> None:
        super().__init__()
        conv: Any = nn.Conv2d if space == 2 else nn.Conv3d
        self.features = nn.Sequential(
            conv(2, 4, 3, padding=1), nn.ReLU(), conv(4, 6, 3, padding=1, stride=2), nn.ReLU()
        )
        self.head = nn.Linear(6, classes)
        self.double()
        randomized(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(2).mean(2))


def segmenter(space: int = 2, classes: int = 3) -> nn.Module:
    conv: Any = nn.Conv2d if space == 2 else nn.Conv3d
    net = nn.Sequential(conv(2, 4, 3, padding=1), nn.Tanh(), conv(4, classes, 3, padding=1))
    return randomized(net.double())
