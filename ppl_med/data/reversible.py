"""Augmentations for prediction: each one fixed, and most of them undone on maps.

    augmentations = symmetries(8)                              # of the square, exact
    augmentations = turns(6, degrees=10, factor=1.1, seed=0)   # drawn once, interpolated
    augmentations = drawn(add_noise, 6, seed=0)                # of one's own, not undone

``inference.predict_augmented`` runs every draw under every one of them. What is random is drawn
here, once, so that all draws see the same images.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from ppl_med import checks
from ppl_med.data.random_streams import random_stream

_NAMES = ("mirror", "upend", "transpose")


@dataclass(frozen=True)
class Augmentation:
    """One augmentation.

    Args:
        name: Its name in the tree.
        move: From images (case, channel, *space) and the position of the first of them in the data
            set to images of the same shape. The same call must always give the same images.
        undo: From maps (..., *space) of the moved images to those of the images; NaN, or -1 in
            integers, where a pixel had left the image. None where it cannot be undone: such an
            augmentation is for predictions of whole cases.
    """

    name: str
    move: Callable[[Tensor, int], Tensor]
    undo: Callable[[Tensor], Tensor] | None = None


def symmetries(number: int = 8) -> list[Augmentation]:
    """Return symmetries of the square, the identity first; exact, and undone exactly.

    Args:
        number: 2: identity and left-right; 4: with up-down and the half turn, for images and
            volumes of any size; 8: with the transposed ones, for square images. Mirrors are wrong
            where one side differs from the other, such as in a chest X-ray.

    Raises:
        ValueError: Another number.
    """
    checks.choice("number", number, (1, 2, 4, 8))
    found = []
    for index in range(number):
        flags = tuple(bool(index >> bit & 1) for bit in range(3))
        names = [name for name, flag in zip(_NAMES, flags, strict=True) if flag]
        found.append(
            Augmentation("+".join(names) or "identity", _Symmetry(flags), _Symmetry(flags, True))
        )
    return found


def turns(
    number: int, *, degrees: float = 10.0, factor: float = 1.1, seed: int = 0
) -> list[Augmentation]:
    """Draw turns about the middle with a zoom, the same for all cases; the first is the identity.

    Images are interpolated linearly, and their border is repeated outside. Maps are turned back
    likewise, integers by the nearest pixel, and are not known where any neighbour had left the
    image. Interpolation blurs maps twice, which adds to what the augmentations differ in.

    Args:
        number: How many, with the identity.
        degrees: Largest angle, either way; uniform.
        factor: Largest zoom, in or out, 1 or more; uniform on the logarithmic scale.
        seed: Seed of angles and zooms.

    Raises:
        ValueError: A number below 1, an angle outside 0 to 180, a factor below 1.
    """
    checks.whole("number", number)
    checks.finite("degrees", degrees, 0, 180)
    checks.finite("factor", factor, 1)
    random = random_stream(checks.whole("seed", seed, least=0))
    found = symmetries(1)
    for _ in range(number - 1):
        angle, power = random.uniform(-1, 1, 2)
        turn = _Turn(degrees * float(angle), factor ** float(power))
        found.append(
            Augmentation(f"turn {turn.degrees:+.3g}, zoom {turn.zoom:.3g}", turn, turn.undo)
        )
    return found


def drawn(
    augment: Callable[[Tensor, torch.Generator], Tensor], number: int, *, seed: int = 0
) -> list[Augmentation]:
    """Fix draws of a random augmentation: of every case one for each, whatever the batches are.

    Args:
        augment: ``augment(image, generator) -> image`` as in ``Batches``.
        number: How many.
        seed: Seed of them.

    Returns:
        Augmentations that cannot be undone, for predictions of whole cases.

    Raises:
        ValueError: A number below 1.
    """
    name = getattr(augment, "__name__", type(augment).__name__)
    checks.whole("seed", seed, least=0)
    return [
        Augmentation(f"{name} {index}", _Drawn(augment, seed, index))
        for index in range(checks.whole("number", number))
    ]


def check_augmentations(augmentations: Any) -> list[Augmentation]:
    """Return augmentations with names of their own; functions of images become one each.

    Raises:
        ValueError: None, no augmentation or function among them, or two of one name.
    """
    if not isinstance(augmentations, Sequence) or not augmentations:
        checks.reject("augmentations", "a list such as symmetries(8)", augmentations)
    found = []
    for one in augmentations:
        if not isinstance(one, Augmentation):
            if not callable(one):
                checks.reject("augmentations", "a list of Augmentation or of functions", one)
            name = getattr(one, "__name__", type(one).__name__)
            one = Augmentation(name, _Plain(one))
        found.append(one)
    checks.different_names("names of augmentations", [one.name for one in found])
    return found


@dataclass(frozen=True)
class _Plain:
    function: Callable[[Tensor], Tensor]

    def __call__(self, image: Tensor, first: int) -> Tensor:
        return self.function(image)


@dataclass(frozen=True)
class _Drawn:
    augment: Callable[[Tensor, torch.Generator], Tensor]
    seed: int
    index: int

    def __call__(self, image: Tensor, first: int) -> Tensor:
        rows = []
        for position, one in enumerate(image.split(1), first):
            own = int(random_stream(self.seed, self.index, position).integers(2**63))
            rows.append(self.augment(one, torch.Generator().manual_seed(own)))
        return torch.cat(rows)


@dataclass(frozen=True)
class _Symmetry:
    """Mirror left and right, up and down, transpose, in that order or back."""

    flags: tuple[bool, ...]
    back: bool = False

    def __call__(self, values: Tensor, first: int = 0) -> Tensor:
        mirror, upend, swap = self.flags
        if swap and values.shape[-1] != values.shape[-2]:
            raise ValueError(
                f"image has shape {tuple(values.shape)}; to transpose it, it must be square: use "
                "symmetries(4), or crop the images"
            )
        if swap and self.back:
            values = values.transpose(-1, -2)
        axes = [axis for axis, flag in ((-1, mirror), (-2, upend)) if flag]
        values = values.flip(axes) if axes else values
        return values.transpose(-1, -2) if swap and not self.back else values


@dataclass(frozen=True)
class _Turn:
    """Turn by an angle and zoom, about the middle."""

    degrees: float
    zoom: float

    def __call__(self, image: Tensor, first: int = 0) -> Tensor:
        if image.ndim != 4:
            raise ValueError(
                f"image has shape {tuple(image.shape)}; turns are of images with dims (case, "
                "channel, row, col): use symmetries(4) for volumes"
            )
        grid = self._grid(image, 1).to(image.dtype).expand(len(image), -1, -1, -1)
        return grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def undo(self, maps: Tensor) -> Tensor:
        """Turn maps (..., row, col) back."""
        whole = not maps.is_floating_point()
        layers = maps.reshape(1, -1, *maps.shape[-2:])
        layers = layers.double() if whole else layers
        mode = "nearest" if whole else "bilinear"
        back = self._grid(maps, -1).to(layers.dtype)

        def read(values: Tensor, mode: str) -> Tensor:
            return grid_sample(values, back, mode=mode, padding_mode="zeros", align_corners=False)

        seen = read(torch.ones_like(layers[:, :1]), "bilinear") > 1 - 1e-4
        moved = read(layers, mode).masked_fill(~seen, -1.0 if whole else math.nan)
        return moved.to(maps.dtype).view(maps.shape)

    def _grid(self, values: Tensor, sign: int) -> Tensor:
        """From new places to old ones, or back."""
        rows, cols = values.shape[-2:]
        angle, zoom = sign * math.radians(self.degrees), self.zoom**-sign
        cosine, sine = zoom * math.cos(angle), zoom * math.sin(angle)
        matrix = torch.tensor(
            [[cosine, -sine * rows / cols, 0.0], [sine * cols / rows, cosine, 0.0]]
        ).double()
        return affine_grid(matrix[None], [1, 1, rows, cols], align_corners=False).to(values.device)
