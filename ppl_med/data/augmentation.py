"""Augmentations of a batch: functions of the images and of a generator, nothing else."""

import torch
from jaxtyping import Float
from torch import Tensor


def flips_and_turns(
    image: Float[Tensor, "case channel row col"], generator: torch.Generator
) -> Float[Tensor, "case channel row col"]:
    """Put every image through a random symmetry of the square, all eight equally likely.

    Left-right flip, up-down flip and transposition, each with probability 1/2 and independent, give
    the four quarter turns with and without a mirror. Right for smears, pathology and dermoscopy,
    where no direction is special; wrong for a chest X-ray, whose heart lies on one side.

    Args:
        image: Dims (case, channel, row, col), square.
        generator: Source of the choices, one per case.

    Returns:
        A new tensor of the same shape: the same pixels, moved.

    Raises:
        ValueError: The images are not square, or are volumes.
    """
    if image.ndim != 4 or image.shape[2] != image.shape[3]:
        raise ValueError(
            f"image has shape {tuple(image.shape)}; flips_and_turns needs square images with dims "
            "(case, channel, row, col): crop or pad them first"
        )
    choice = torch.rand(3, len(image), 1, 1, 1, generator=generator).to(image.device) < 0.5
    image = torch.where(choice[0], image.flip(3), image)
    image = torch.where(choice[1], image.flip(2), image)
    return torch.where(choice[2], image.transpose(2, 3), image)
