"""A net for scans in register: what each place says is weighed by the place, and adds up.

    logit_c = Σ over positions p and channels k of w_ckp A_k(p) + b_c

A global average (``PooledCNN``) has one weight for all places and cannot tell where a finding lies;
here a fluid space beside the temporal lobe may count and the same in a ventricle not. The summands
of a position are its contribution to the logit, exactly: ``attribute(..., method="additive")``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppl_med.checks import choice, whole
from ppl_med.networks.pooled_cnn import relu_convolutions


class _Weighed(nn.Module):
    """Contributions (case, class, *grid) of features (case, channel, *grid)."""

    def __init__(self, num_outputs: int, channels: int, grid: Sequence[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_outputs, channels, *grid))

    def forward(self, features: Tensor) -> Tensor:
        if features.shape[1:] != self.weight.shape[1:]:
            raise ValueError(
                f"features have shape {tuple(features.shape[1:])}, the net was made for "
                f"{tuple(self.weight.shape[1:])}; give images of the size that it was made for"
            )
        return torch.einsum("nk...,ck...->nc...", features, self.weight)


class AdditiveCNN(nn.Module):
    """3x3 convolutions with ReLU, and a weight for every channel and position; 2D or 3D.

    Weights of the convolutions start He-normal (He et al. 2015), those of the positions and all
    biases at 0.

    Args:
        size: Pixels of the image along each of its two or three axes; images must be in register.
        in_channels: Image channels.
        num_outputs: Output units, one per class.
        channels: Channels of the convolutions.
        strides: Their strides; few keep the map fine.

    Raises:
        ValueError: A size is below 1, or channels and strides differ in length.
    """

    def __init__(
        self,
        size: Sequence[int],
        in_channels: int = 1,
        num_outputs: int = 2,
        *,
        channels: Sequence[int] = (4,),
        strides: Sequence[int] = (2,),
    ) -> None:
        super().__init__()
        choice("len(size)", len(size), (2, 3))
        grid = [whole("size", side) for side in size]
        self.in_channels = whole("in_channels", in_channels)
        self.features = relu_convolutions(len(size), in_channels, channels, strides)
        for stride in strides:
            grid = [(side - 1) // stride + 1 for side in grid]
        self.contributions = _Weighed(whole("num_outputs", num_outputs), channels[-1], grid)
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, image: Tensor) -> Tensor:
        """Logits (case, class) of images (case, channel, [depth,] row, col)."""
        return self.contributions(self.features(image)).flatten(2).sum(2) + self.bias
