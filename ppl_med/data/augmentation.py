"""Augmentations of a batch: functions of what is moved and of a generator, nothing else.

``flips_and_turns`` takes and returns images, for ``Batches(augment=...)``. The others take and
return a whole batch, for ``Batches(transform=...)``: with the image they move its mask, its boxes,
and all else that has a value per pixel.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_med.checks import finite, reject

SQUARE = 0.01  # by which the sides of a pixel may differ


def flips_and_turns(image: Tensor, generator: torch.Generator) -> Tensor:
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
    return turned(image, _symmetries(image, generator))


def flips_and_turns_with_mask(batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
    """Put every image, with its mask and boxes, through a random symmetry of the square.

    With the same generator, images move as by ``flips_and_turns``.

    Args:
        batch: Holds "image" (case, channel, row, col), square, and masks whose last dims are
            (row, col).
        generator: Source of the choices, one per case.

    Returns:
        The batch with new tensors for the image, for all that has its rows and columns, and for
        "box".

    Raises:
        ValueError: The images are not square, or are volumes.
    """
    choice = _symmetries(batch["image"], generator)
    return turned_batch(batch, choice)


def mirror_with_mask(batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
    """Swap left and right of every image, with its mask and boxes, with probability 1/2.

    Right for street scenes, in which up is up, and for images of any size.

    Args:
        batch: Holds "image" (case, channel, [depth,] row, col), and masks whose last dims are
            (row, col).
        generator: Source of the choices, one per case.

    Returns:
        The batch with new tensors for the image, for all that has its rows and columns, and for
        "box".
    """
    choice = torch.rand(3, len(batch["image"]), generator=generator) < 0.5
    choice[1:] = False
    return turned_batch(batch, choice)


class RandomPixels:
    """Replace pixels by random intensities, as the background model of a likelihood ratio needs.

    An ``augment`` of ``Batches``. What is left of an image then is what it has in common with any
    other, such as smoothness (Ren et al., NeurIPS 2019, arXiv:1906.02845, who replace 10 to 30 %).

    Args:
        share: Probability with which a value of a pixel and channel is replaced.
        low: Least of the new intensities, which are uniform, in the unit of the images.
        high: Largest of them.

    Raises:
        ValueError: A share outside [0, 1], or a range without extent.
    """

    def __init__(self, share: float, low: float, high: float) -> None:
        """Check the settings; see the class."""
        self.share = finite("share", share, 0, 1)
        self.low, self.high = finite("low", low), finite("high", high)
        if not self.low < self.high:
            reject("high", f"above low, {low:g}", high)

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Replace pixels of a batch (case, channel, [depth,] row, col) in a new tensor."""
        chance, value = torch.rand(2, *image.shape, generator=generator).to(image)
        return torch.where(chance < self.share, self.low + (self.high - self.low) * value, image)


class RotateAndScale:
    """Turn and zoom every image, with its mask, about the middle, by a random angle and factor.

    A ``transform`` of ``Batches``. The image is interpolated linearly, and its border is repeated
    outside. Everything else with a value per pixel takes that of the nearest pixel, lest it get one
    that stands nowhere; outside it is not observed: NaN in maps of floating numbers such as depth,
    -1 in those of integers, which no likelihood counts. Masks of bool, which cannot say so, are
    False there.

    Args:
        degrees: Largest angle, either way; uniform.
        factor: Largest zoom, in or out, 1 or more; uniform on the logarithmic scale.

    Raises:
        ValueError: Negative degrees, or a factor below 1.
    """

    def __init__(self, degrees: float = 22.5, factor: float = 1.2) -> None:
        """Check the settings; see the class."""
        finite("degrees", degrees, 0, 180)
        finite("factor", factor, 1)
        self.degrees, self.factor = degrees, factor

    def __call__(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Move a batch.

        Args:
            batch: Holds "image" floating (case, channel, row, col), and masks whose last dims are
                (row, col).
            generator: Source of the angles and factors, one of each per case.

        Returns:
            The batch with new tensors for the image and all that has its rows and columns.

        Raises:
            ValueError: The images are volumes, or there are boxes, which a turn leaves too wide.
        """
        image = batch["image"]
        if "box" in batch:
            raise ValueError(
                "RotateAndScale cannot move box: the box around a turned box is wider than its "
                "object; use MoveWithBoxes(shift=..., factor=...)"
            )
        if image.ndim != 4:
            raise ValueError(
                f"image has shape {tuple(image.shape)}; RotateAndScale moves images with dims "
                "(case, channel, row, col)"
            )
        draw = 2 * torch.rand(2, len(image), generator=generator) - 1
        angle, zoom = draw[0] * math.radians(self.degrees), self.factor ** -draw[1]
        rows, cols = image.shape[2:]
        # From the new place to the old, in units of half a side: (col, row).
        cosine, sine, zero = zoom * angle.cos(), zoom * angle.sin(), torch.zeros_like(angle)
        matrix = torch.stack(
            [cosine, -sine * rows / cols, zero, sine * cols / rows, cosine, zero], 1
        ).view(-1, 2, 3)
        shape = [len(image), 1, rows, cols]
        grid = torch.nn.functional.affine_grid(matrix, shape, align_corners=False)
        grid = grid.to(image.device)
        return batch | {
            name: interpolated(values, grid) if name == "image" else nearest(values, grid)
            for name, values in per_pixel(batch).items()
        }


def check_square_pixels(steps: Sequence[Any], spacing: Any, ids: Sequence[Any]) -> None:
    """Raise where images are to be turned whose pixels are not square.

    Args:
        steps: Augmentations and transforms; those that turn are known.
        spacing: Size of a pixel, dims (case, axis), in the order (depth,) row, col.
        ids: Names of the cases.

    Raises:
        ValueError: A step turns, and in some cases a row is not as wide as a column: how many, and
            the first of them.
    """
    turning = [
        getattr(step, "__name__", type(step).__name__)
        for step in steps
        if step in (flips_and_turns, flips_and_turns_with_mask)
        or isinstance(step, RotateAndScale)
        or getattr(step, "turn", False)
    ]
    values = torch.as_tensor(spacing).double()
    if not turning or values.ndim != 2 or values.shape[1] < 2:
        return
    oblong = ((values[:, -2] / values[:, -1] - 1).abs() > SQUARE).nonzero().flatten().tolist()
    if oblong:
        shown = ", ".join(
            f"{ids[case]!r} ({values[case, -2]:.3g} x {values[case, -1]:.3g})"
            for case in oblong[:3]
        )
        raise ValueError(
            f"{turning[0]} turns images, which needs square pixels, but {len(oblong)} of "
            f"{len(values)} cases have others: {shown}{', ...' if len(oblong) > 3 else ''}; "
            "resample to square pixels first, or use mirror_with_mask"
        )


def per_pixel(batch: dict[str, Any]) -> dict[str, Tensor]:
    """Everything in a batch that has a value per pixel."""
    size = batch["image"].shape[-2:]
    return {
        name: values
        for name, values in batch.items()
        if isinstance(values, Tensor) and values.ndim > 2 and values.shape[-2:] == size
        if name != "box"
    }


def _symmetries(image: Tensor, generator: torch.Generator) -> Tensor:
    """Whether to mirror, to upend and to transpose each image, dims (3, case)."""
    if image.ndim != 4 or image.shape[2] != image.shape[3]:
        raise ValueError(
            f"image has shape {tuple(image.shape)}; flips and turns need square images with dims "
            "(case, channel, row, col): crop or pad them first, or use mirror_with_mask"
        )
    return torch.rand(3, len(image), generator=generator) < 0.5


def turned_batch(batch: dict[str, Any], choice: Tensor) -> dict[str, Any]:
    """The batch with all that has a place mirrored, upended and transposed; see ``turned``."""
    moved = {name: turned(values, choice) for name, values in per_pixel(batch).items()}
    if "box" in batch:
        moved["box"] = _turned_boxes(batch["box"], choice, batch["image"].shape[-2:])
    return batch | moved


def turned(values: Tensor, choice: Tensor) -> Tensor:
    """Mirror left and right, up and down, and transpose; ``choice`` has dims (3, case)."""
    mirror, upend, swap = choice.to(values.device).view(3, -1, *[1] * (values.ndim - 1))
    values = torch.where(mirror, values.flip(-1), values)
    values = torch.where(upend, values.flip(-2), values)
    return torch.where(swap, values.transpose(-1, -2), values) if choice[2].any() else values


def _turned_boxes(box: Tensor, choice: Tensor, size: Sequence[int]) -> Tensor:
    """Boxes (case, ..., 4) moved as ``turned`` moves the pixels of images with such rows, cols."""
    mirror, upend, swap = choice.to(box.device).view(3, -1, *[1] * (box.ndim - 1))
    rows, cols = size
    left, top, right, bottom = box.split(1, -1)
    box = torch.where(mirror, torch.cat([cols - right, top, cols - left, bottom], -1), box)
    left, top, right, bottom = box.split(1, -1)
    box = torch.where(upend, torch.cat([left, rows - bottom, right, rows - top], -1), box)
    return torch.where(swap, box[..., [1, 0, 3, 2]], box)


def interpolated(image: Tensor, grid: Tensor) -> Tensor:
    """Read off an image at the places of a grid, linearly; beyond the border, the border."""
    return torch.nn.functional.grid_sample(
        image, grid.to(image.dtype), mode="bilinear", padding_mode="border", align_corners=False
    )


def nearest(values: Tensor, grid: Tensor) -> Tensor:
    """Read off values, dims (case, ..., row, col), at the places of a grid; outside unobserved."""
    dtype = torch.int16 if values.dtype == torch.uint8 else values.dtype
    layers = (values.flatten(1, -3) if values.ndim > 3 else values[:, None]).double()
    moved, inside = (
        torch.nn.functional.grid_sample(
            every, grid.double(), mode="nearest", padding_mode="zeros", align_corners=False
        )
        for every in (layers, torch.ones_like(layers[:, :1]))
    )
    if dtype != torch.bool:
        moved = moved.masked_fill(inside == 0, math.nan if dtype.is_floating_point else -1.0)
    return moved.to(dtype).view(values.shape)
