"""Boxes at random, and a batch of images with them."""

from typing import Any

import torch
from torch import Tensor

CLASSES = ("a", "b")


def random_boxes(*shape: int, seed: int = 0, size: float = 64.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    start = size * 0.7 * torch.rand(*shape, 2, generator=generator)
    sides = 4 + 0.3 * size * torch.rand(*shape, 2, generator=generator)
    return torch.cat([start, start + sides], -1)


def batch(size: int = 64, channels: int = 3) -> dict[str, Any]:
    """Two images, with two boxes and none."""
    generator = torch.Generator().manual_seed(1)
    box = torch.full((2, 2, 4), torch.nan)
    box[0] = torch.tensor([[4.0, 6, 30, 28], [36, 30, 58, 60]]) * size / 64
    return {
        "image": torch.randn(2, channels, size, size, generator=generator),
        "box": box,
        "box_label": torch.tensor([[0, 1], [-1, -1]]),
    }
