"""Denoising network: MONAI's diffusion U-Net, and a branch for the image that runs once a chain.

The diffusion U-Net sees blocks of pixels (``patch``); what it finds is joined, pixel by pixel, with
the features of the image and the noised mask, so that edges stay sharp.

    output = a(features) + signal(step) b(features, noised, step) + c(step)

What the noised mask adds fades with its signal. Norm layers take out of a state how much it tells,
and the loss at steps of nearly pure noise is too small to teach the net that it tells nothing: a
net without the factor is sure of itself there, and what it makes out of noise is what samples
become. It is the preconditioning of Karras et al. (NeurIPS 2022, eq. 7), for any target.
"""

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets.diffusion_model_unet import (
    DiffusionModelUNet,
    get_timestep_embedding,
)
from torch import Tensor, nn
from torch.nn import functional

from ppl_med.axes import SPACE
from ppl_med.checks import choice, reject, whole
from ppl_med.data.masks import check_divisible
from ppl_med.networks.unet import UNet, convolution

TIME_CHANNELS = 32  # of the embedding of the step from which offsets are made
TIMES = 1000  # the last step of a chain, on the scale of the net's embedding of time


class DenoisingUNet(nn.Module):
    """From an image, a noised mask and the step to what the mask was.

        features = net(image)                                     once a chain
        output = net(features=features, noised=x, step=t)         once a step

    Args:
        in_channels: Image channels; 0 without an image to be told of, as where the image itself is
            noised.
        num_noised: Channels of a noised mask or image.
        num_outputs: Channels of the output.
        channels: Channels of the diffusion U-Net by scale, the finest first.
        image_channels: Channels of the image's U-Net by scale, the finest first.
        num_blocks: Residual blocks per scale.
        attention: Whether the coarsest scale has self-attention.
        patch: Pixels along each axis that one position of the diffusion U-Net stands for: 2 makes a
            step about 2 ** spatial_dims times as fast.
        norm_groups: Groups of the norm layers, a divisor of every number of channels.
        num_code: Channels that a model joins to the image's features, such as a latent code.
        spatial_dims: 2 for images, 3 for volumes.

    Raises:
        ValueError: On sizes that do not fit each other; on a run, on images whose size cannot be
            halved as often as there are scales.
    """

    signal: Tensor

    def __init__(
        self,
        in_channels: int,
        num_noised: int,
        num_outputs: int,
        channels: Sequence[int] = (32, 64, 64),
        image_channels: Sequence[int] = (16, 32, 32),
        num_blocks: int = 1,
        *,
        attention: bool = False,
        patch: int = 1,
        norm_groups: int = 8,
        num_code: int = 0,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        choice("spatial_dims", spatial_dims, SPACE)
        whole("patch", patch)
        whole("num_code", num_code, 0)
        if any(width % norm_groups for width in channels):
            reject("channels", f"multiples of norm_groups, {norm_groups}", tuple(channels))
        self.in_channels, self.num_noised, self.num_outputs = in_channels, num_noised, num_outputs
        self.patch, self.spatial_dims, self.num_code = patch, spatial_dims, num_code
        self.halvings = max(len(channels) - 1, 0)
        branch = UNet(in_channels, image_channels, 2, spatial_dims) if in_channels else None
        self.image_branch, self.num_features = branch, branch.num_features if branch else 0
        size = patch**spatial_dims
        self.denoiser = DiffusionModelUNet(
            spatial_dims,
            (self.num_features + num_code + num_noised) * size,
            channels[0] * size,
            num_res_blocks=num_blocks,
            channels=tuple(channels),
            attention_levels=(*[False] * self.halvings, attention),
            norm_num_groups=norm_groups,
            num_head_channels=min(norm_groups, channels[-1]),
        )
        hidden = self.num_features + num_code + num_noised + channels[0]
        self.head = nn.Sequential(
            convolution(spatial_dims, hidden, 2 * channels[0], 1),
            nn.SiLU(),
            convolution(spatial_dims, 2 * channels[0], num_outputs, 1),
        )
        self.image_head: nn.Sequential | None = None
        if known := self.num_features + num_code:
            self.image_head = nn.Sequential(
                convolution(spatial_dims, known, 2 * channels[0], 1),
                nn.SiLU(),
                convolution(spatial_dims, 2 * channels[0], num_outputs, 1),
            )
        self.offset = nn.Sequential(
            nn.Linear(TIME_CHANNELS, TIME_CHANNELS),
            nn.SiLU(),
            nn.Linear(TIME_CHANNELS, num_outputs),
        )
        self.register_buffer("signal", torch.tensor([1.0, 0.0]), persistent=False)

    def set_signal(self, signal: Tensor) -> None:
        """Say how much a state tells of the mask, which models do that know their noise.

        Args:
            signal: Of steps evenly spaced from 0 (the mask) to 1 (noise), falling from 1 to 0 or
                so; between them it is interpolated. By default it falls linearly.
        """
        self.signal = signal.to(self.signal)

    def forward(
        self,
        image: Tensor | None = None,
        *,
        features: Tensor | None = None,
        noised: Tensor | None = None,
        step: Tensor | None = None,
    ) -> Tensor:
        """Features of an image, or the output for a noised mask.

        Args:
            image: Dims (case, channel, *space); alone, it gives features (case, feature, *space).
            features: Of the images, dims (case, feature, *space), and ``num_code`` channels more.
            noised: Noised masks, dims (case, num_noised, *space).
            step: Part of the chain that has been gone, from 0 (the mask) to 1 (noise), dims (case).

        Returns:
            Features, or the output (case, num_outputs, *space).
        """
        if image is not None:
            self._check(image)
            found: Tensor = image if self.image_branch is None else self.image_branch(image)
            return found
        assert features is not None and noised is not None and step is not None
        if features.shape[1] != self.num_features + self.num_code:
            raise ValueError(
                f"features has {features.shape[1]} channels, but the net takes "
                f"{self.num_features} of the image and num_code={self.num_code} of a "
                "code; build it with num_code as long as the model's code, 0 for a model without"
            )
        if noised.shape[1] != self.num_noised:
            raise ValueError(
                f"noised has {noised.shape[1]} channels, but the net takes num_noised="
                f"{self.num_noised}; build it with num_noised={noised.shape[1]}"
            )
        both = torch.cat([features, noised], 1)
        time = step.float() * TIMES
        far = self.denoiser(_to_patches(both, self.patch), time)
        output: Tensor = self.head(torch.cat([both, _from_patches(far, self.patch)], 1))
        place = step.float() * (len(self.signal) - 1)
        low = place.floor().long().clamp(max=len(self.signal) - 2)
        signal = torch.lerp(self.signal[low], self.signal[low + 1], place - low)
        offset = self.offset(get_timestep_embedding(time, TIME_CHANNELS).to(output))
        ones = [1] * self.spatial_dims
        output = output * signal.view(-1, 1, *ones) + offset.view(*offset.shape, *ones)
        return output if self.image_head is None else output + self.image_head(features)

    def _check(self, image: Tensor) -> None:
        size = image.shape[2:]
        if image.dim() - 2 != self.spatial_dims or image.shape[1] != self.in_channels:
            raise ValueError(
                f"image has shape {tuple(image.shape)}, but the net takes (case, "
                f"{self.in_channels}, {', '.join(SPACE[self.spatial_dims])})"
            )
        if any(n % self.patch for n in size):
            raise ValueError(
                f"image has the size {tuple(size)}, but it must be divisible by patch, {self.patch}"
            )
        check_divisible([n // self.patch for n in size], self.halvings)


def _to_patches(maps: Tensor, patch: int) -> Tensor:
    """Blocks of pixels as channels."""
    if patch == 1:
        return maps
    if maps.dim() == 4:
        return functional.pixel_unshuffle(maps, patch)
    case, channel, *space = maps.shape
    split: list[Any] = [n for size in space for n in (size // patch, patch)]
    blocks = maps.view(case, channel, *split)
    places = [2 + 2 * axis for axis in range(len(space))]
    blocks = blocks.permute(0, 1, *[place + 1 for place in places], *places)
    return blocks.reshape(case, -1, *[size // patch for size in space])


def _from_patches(maps: Tensor, patch: int) -> Tensor:
    """The inverse of ``_to_patches``."""
    if patch == 1:
        return maps
    if maps.dim() == 4:
        return functional.pixel_shuffle(maps, patch)
    case, channel, *space = maps.shape
    axes = len(space)
    blocks = maps.view(case, channel // patch**axes, *[patch] * axes, *space)
    order = [place for axis in range(axes) for place in (2 + axes + axis, 2 + axis)]
    return blocks.permute(0, 1, *order).reshape(case, -1, *[size * patch for size in space])
