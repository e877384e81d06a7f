"""Map of features joined with a latent code: the 1x1 convolutions of the Probabilistic U-Net."""

import itertools

import torch
from torch import Tensor, nn

from ppl_med.networks.unet import HeLinear


class Combine(nn.Module):
    """``f_comb``: three 1x1 convolutions with ReLU, and one to the logits.

    The latent code is constant over the image, so the first convolution of features and tiled code
    is the sum of one of the features and a linear map of the code: the former is the same for
    every code, and no tiled map is made. A convolution of size 1 is a linear map of every pixel;
    with the channels last, it is one matrix product, three times as fast on a CPU.

    Args:
        num_features: Channels of the features.
        latent_dim: Size of z.
        num_outputs: Channels of the output.
        width: Channels of the hidden layers.
        num_layers: Hidden layers.
    """

    def __init__(
        self,
        num_features: int,
        latent_dim: int,
        num_outputs: int,
        width: int = 32,
        num_layers: int = 3,
    ) -> None:
        super().__init__()
        joint = num_features + latent_dim
        self.features = HeLinear(num_features, width, joint_fan_in=joint)
        self.code = HeLinear(latent_dim, width, bias=False, joint_fan_in=joint)
        self.hidden = nn.ModuleList(HeLinear(width, width) for _ in range(num_layers - 1))
        self.output = HeLinear(width, num_outputs)

    def of_features(self, features: Tensor) -> Tensor:
        """What the first layer makes of features (case, feature, *space), the same for every code.

        Dims (case, *space, width).
        """
        return self.features(features.movedim(1, -1).contiguous())

    def forward(self, of_features: Tensor, z: Tensor) -> Tensor:
        """Logits, dims (..., case, output, *space).

        Args:
            of_features: What ``of_features`` gave, dims (case, *space, width).
            z: Codes, dims (..., case, latent).
        """
        space = of_features.shape[1:-1]
        pixels, code = of_features.flatten(1, -2), self.code(z)
        if torch.is_grad_enabled() or pixels.device.type != "cpu":
            logits = self._logits(pixels, code.unsqueeze(-2))
        else:  # case by case, so that the hidden layers stay in a CPU's cache
            pairs = zip(code.flatten(0, -2), itertools.cycle(pixels), strict=False)
            logits = torch.stack([self._logits(one, of_case) for of_case, one in pairs])
        return logits.view(*code.shape[:-1], self.output.out_features, *space)

    def _logits(self, pixels: Tensor, code: Tensor) -> Tensor:
        """Dims (..., output, pixel), of (..., pixel, width) and (..., width)."""
        hidden = torch.relu_(pixels + code)
        for layer in self.hidden:
            hidden = torch.relu_(layer(hidden))
        return self.output.weight @ hidden.mT + self.output.bias[:, None]
