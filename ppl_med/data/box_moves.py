"""Augmentation of images with boxes: flips, quarter turns, small shifts and zooms."""

from typing import Any

import torch
from torch import Tensor

from ppl_med.checks import finite, reject
from ppl_med.data.augmentation import interpolated, nearest, per_pixel, turned_batch


class MoveWithBoxes:
    """Flip, turn, shift and zoom every image at random, with its boxes and masks.

    A ``transform`` of ``Batches``. Flips and quarter turns move pixels and edges exactly. Shifts
    and zooms interpolate the image linearly and repeat its border; boxes are cut at the border, and
    one of which too little stays inside is left out: then "num_boxes" counts what is left. Columns
    that belong to boxes, other than "box", "box_label" and "num_boxes", stay as they are. Masks
    move as with ``RotateAndScale``.

    Args:
        mirror: Whether left and right are swapped, with probability 1/2; wrong for chest films,
            whose heart lies on one side.
        upend: Whether top and bottom are swapped, with probability 1/2.
        turn: Whether rows and columns are swapped, with probability 1/2: with the two others, all
            eight symmetries of the square are equally likely. Needs square images and pixels.
        shift: Largest shift along each axis, pixels, uniform.
        factor: Largest zoom, in or out, about the middle, 1 or more; uniform on the logarithmic
            scale.
        least_share: Boxes of which less than this share of the area stays inside are left out.

    Raises:
        ValueError: A setting is out of range, or all of them leave the image as it is.
    """

    def __init__(
        self,
        *,
        mirror: bool = False,
        upend: bool = False,
        turn: bool = False,
        shift: float = 0.0,
        factor: float = 1.0,
        least_share: float = 0.25,
    ) -> None:
        """Check the settings; see the class."""
        self.mirror, self.upend, self.turn = mirror, upend, turn
        self.shift, self.factor = finite("shift", shift, 0), finite("factor", factor, 1)
        if not 0 < finite("least_share", least_share) <= 1:
            reject("least_share", "above 0 and at most 1", least_share)
        self.least_share = least_share
        if not (mirror or upend or turn or shift or factor > 1):
            raise ValueError(
                "MoveWithBoxes moves nothing: give mirror=True, upend=True, turn=True, shift or "
                "factor"
            )

    def __call__(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Move a batch.

        Args:
            batch: Holds "image" floating (case, channel, row, col), "box" (case, [grader,] box, 4)
                with "box_label", and masks whose last dims are (row, col).
            generator: Source of the choices, one of each per case.

        Returns:
            The batch with new tensors for all that moved.

        Raises:
            ValueError: The images are volumes, or not square and to be turned, or there are no
                boxes.
        """
        image = batch["image"]
        if image.ndim != 4 or (self.turn and image.shape[2] != image.shape[3]):
            raise ValueError(
                f"image has shape {tuple(image.shape)}; MoveWithBoxes moves images with dims "
                "(case, channel, row, col), and turns square ones: crop or pad them, or leave "
                "out turn"
            )
        if missing := {"box", "box_label"} - batch.keys():
            raise ValueError(
                f"the batch lacks {sorted(missing)}; for images with masks alone use "
                "mirror_with_mask, flips_and_turns_with_mask or RotateAndScale"
            )
        choice = torch.rand(3, len(image), generator=generator) < 0.5
        choice &= torch.tensor([self.mirror, self.upend, self.turn])[:, None]
        batch = turned_batch(batch, choice)
        if self.shift == 0 and self.factor == 1:
            return batch
        draw = 2 * torch.rand(3, len(image), generator=generator, dtype=torch.float64) - 1
        return self._shifted(batch, self.factor ** draw[0], self.shift * draw[1:].T)

    def _shifted(self, batch: dict[str, Any], zoom: Tensor, shift: Tensor) -> dict[str, Any]:
        """Zoom (case) about the middle, then shift (case, 2) by columns and rows, in pixels."""
        image, box = batch["image"], batch["box"]
        rows, cols = image.shape[2:]
        zero = torch.zeros_like(zoom)
        back = -2 * shift / torch.tensor([cols, rows]) / zoom[:, None]  # from new places to old
        matrix = torch.stack([1 / zoom, zero, back[:, 0], zero, 1 / zoom, back[:, 1]], 1)
        grid = torch.nn.functional.affine_grid(
            matrix.view(-1, 2, 3), [len(image), 1, rows, cols], align_corners=False
        ).to(image.device)
        moved = {
            name: interpolated(values, grid) if name == "image" else nearest(values, grid)
            for name, values in per_pixel(batch).items()
        }
        size = torch.tensor([cols, rows, cols, rows])
        lead = (-1, *[1] * (box.ndim - 1))
        there = shift.repeat(1, 2).view(*lead[:-1], 4) + size / 2  # where the middle goes
        there, zoom, size = (one.to(box.device) for one in (there, zoom.view(lead), size))
        whole = (box.double() - size / 2) * zoom + there
        inside = whole.clamp(min=torch.zeros_like(size, dtype=whole.dtype), max=size)
        stays = _area(inside) >= self.least_share * _area(whole)  # False for NaN
        return batch | moved | _packed(batch, inside.to(box.dtype), stays)


def _area(box: Tensor) -> Tensor:
    return (box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1])


def _packed(batch: dict[str, Any], box: Tensor, stays: Tensor) -> dict[str, Tensor]:
    """The boxes that stay, in their order, and NaN and -1 after the last."""
    order = (~stays).to(torch.int8).argsort(dim=-1, stable=True)
    stays = stays.gather(-1, order)
    label = batch["box_label"].gather(-1, order).masked_fill(~stays, -1)
    box = box.gather(-2, order[..., None].expand_as(box)).masked_fill(~stays[..., None], torch.nan)
    count = {"num_boxes": stays.sum(-1)} if "num_boxes" in batch else {}
    return {"box": box, "box_label": label} | count
