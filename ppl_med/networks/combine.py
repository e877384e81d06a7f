"""Joins a map of features with a latent code: the 1x1 convolutions of the Probabilistic U-Net."""

from typing import cast

import torch
from torch import Tensor, nn

from ppl_med.networks.unet import convolution


class Combine(nn.Module):
    """``f_comb``: three 1x1 convolutions with ReLU, and one to the logits.

    The latent code is constant over the image, so the first convolution of features and tiled code
    is the sum of one of the features and a linear map of the code: the former is the same for
    every code, and no tiled map is made.

    Args:
        num_features: Channels of the features.
        latent_dim: Size of z.
        num_outputs: Channels of the output.
        width: Channels of the hidden layers.
        num_layers: Hidden layers.
        spatial_dims: 2 or 3.
    """

    def __init__(
        self,
        num_features: int,
        latent_dim: int,
        num_outputs: int,
        width: int = 32,
        num_layers: int = 3,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        joint = convolution(spatial_dims, num_features + latent_dim, width, 1)
        weight = cast(Tensor, joint.weight).detach().flatten(1)
        self.of_features = convolution(spatial_dims, num_features, width, 1)
        self.of_code = nn.Linear(latent_dim, width, bias=False)
        with torch.no_grad():
            own = cast(Tensor, self.of_features.weight)
            own.copy_(weight[:, :num_features].view_as(own))
            self.of_code.weight.copy_(weight[:, num_features:])
        hidden = [convolution(spatial_dims, width, width, 1) for _ in range(num_layers - 1)]
        self.hidden = nn.ModuleList(hidden)
        self.output = convolution(spatial_dims, width, num_outputs, 1)

    def forward(self, of_features: Tensor, z: Tensor) -> Tensor:
        """Logits, dims (..., case, output, *space).

        Args:
            of_features: What ``of_features`` gave, dims (case, width, *space).
            z: Codes, dims (..., case, latent).
        """
        space = of_features.shape[2:]
        shift = self.of_code(z)
        joined = torch.relu(of_features + shift.view(*shift.shape, *[1] * len(space)))
        leading = joined.shape[: -1 - len(space)]
        flat = joined.reshape(-1, *joined.shape[-1 - len(space) :])
        for layer in self.hidden:
            flat = torch.relu(layer(flat))
        return self.output(flat).view(*leading, -1, *space)
