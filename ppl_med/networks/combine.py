"""Map of features joined with a latent code: the 1x1 convolutions of the Probabilistic U-Net."""

from typing import Any

import torch
from torch import Tensor, nn

from ppl_med.networks.unet import HeLinear

BLOCK = 2**17  # numbers of a hidden layer that stay in a CPU's cache
ROUNDING = 2.0**-14  # of a logit, that shifts of hidden layers may cost


class Combine(nn.Module):
    """``f_comb``: three 1x1 convolutions with ReLU, and one to the logits.

    The latent code is constant over the image, so the first convolution of features and tiled code
    is the sum of one of the features and a linear map of the code: the former is the same for
    every code, and no tiled map is made. A convolution of size 1 is a linear map of every pixel,
    one matrix product, three times as fast on a CPU.

    Many codes are drawn without gradients. Then ``relu(x + b) = max(x, -b) + b`` spares every pass
    that only adds: the last ``b`` goes through the next layer by itself, once for all pixels. What
    ``relu`` sets to 0 is then ``-b + b`` only to rounding, of the size of ``b``; where that is not
    small, as of codes far out or of half precision, it is done as in training.

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

        Dims (case, *space, width); without gradients on a CPU, the pixels of a channel are
        neighbours in memory.
        """
        found = self.features(features.movedim(1, -1).contiguous())
        if torch.is_grad_enabled() or found.device.type != "cpu":
            return found
        return found.movedim(-1, 1).contiguous().movedim(1, -1)

    def forward(self, of_features: Tensor, z: Tensor) -> Tensor:
        """Logits, dims (..., case, output, *space).

        Args:
            of_features: What ``of_features`` gave, dims (case, *space, width).
            z: Codes, dims (..., case, latent).
        """
        space = of_features.shape[1:-1]
        pixels, code = of_features.flatten(1, -2), self.code(z)
        shifts = self._shifts(code) if self._in_blocks(pixels, code) else []
        if shifts and _are_small(shifts):
            logits = self._drawn(pixels.mT, shifts)
        else:
            logits = self._logits(pixels, code.unsqueeze(-2))
        return logits.view(*code.shape[:-1], self.output.out_features, *space)

    def _logits(self, pixels: Tensor, code: Tensor) -> Tensor:
        """Dims (..., output, pixel), of (..., pixel, width) and (..., width)."""
        hidden = torch.relu_(pixels + code)
        for layer in self.hidden:
            hidden = torch.relu_(layer(hidden))
        return self.output.weight @ hidden.mT + self.output.bias[:, None]

    def _in_blocks(self, pixels: Tensor, code: Tensor) -> bool:
        """Whether all is plain tensors of one type on a CPU, without gradients or ``vmap``."""
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            return False
        if code.dim() < 2 or len(pixels) not in (1, code.shape[-2]):
            return False
        layers = [*self.hidden, self.output]
        tensors = [pixels, code, *(one for layer in layers for one in (layer.weight, layer.bias))]
        return all(
            type(one) in (Tensor, nn.Parameter) and one.is_cpu and one.dtype == code.dtype
            for one in tensors
        )

    def _shifts(self, code: Tensor) -> list[Tensor]:
        """What is added to every hidden layer, dims (code, width), of (..., case, width)."""
        shifts = [code.flatten(0, -2)]
        for layer in self.hidden:
            shifts.append(layer(shifts[-1]))
        return shifts

    def _drawn(self, pixels: Tensor, shifts: list[Tensor]) -> Tensor:
        """Dims (code, output, pixel), of (case, width, pixel) and what `_shifts` gave."""
        floors = [shift.neg().unsqueeze(-1) for shift in shifts]
        ends, last = self.output(shifts[-1]).unsqueeze(-1), self.output.weight
        weights: list[Any] = [layer.weight for layer in self.hidden]
        num_cases, width, num_pixels = pixels.shape
        size = min(num_pixels, max(1, BLOCK // width))
        room = pixels.new_empty(2, width, size)
        whole = room.unbind()
        logits = pixels.new_empty(len(ends), len(last), num_pixels)
        for at, output in enumerate(logits):
            first, *others = [floor[at] for floor in floors]
            parts = zip(pixels[at % num_cases].split(size, 1), output.split(size, 1), strict=True)
            for block, part in parts:
                here, there = whole if block.shape[1] == size else room[..., : block.shape[1]]
                torch.maximum(block, first, out=here)
                for weight, floor in zip(weights, others, strict=True):
                    torch.mm(weight, here, out=there)
                    here, there = torch.maximum(there, floor, out=there), here
                torch.mm(last, here, out=part)
        return logits.add_(ends)


def _are_small(shifts: list[Tensor]) -> bool:
    """Whether rounding of numbers of this size is small in logits; not of infinities or NaN."""
    most = ROUNDING / torch.finfo(shifts[0].dtype).eps
    return all(bool(shift.abs().amax() <= most) for shift in shifts if shift.numel())
