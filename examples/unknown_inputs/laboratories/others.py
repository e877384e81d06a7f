"""Pictures as another laboratory would have taken them: other stain, light, focus, magnification.

A laboratory is the same for all of its cases: what is random in a corruption is drawn once.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ppl_med.data.shifts import corrupt


class Laboratory(NamedTuple):
    """How another laboratory differs.

    Attributes:
        corruptions: Names and severities, in the order in which they happen.
        magnification: Times that of the first laboratory.
    """

    corruptions: tuple[tuple[str, int], ...]
    magnification: float = 1.0

    def __str__(self) -> str:
        """In words."""
        parts = [f"{name.replace('_', ' ')} {severity}" for name, severity in self.corruptions]
        return ", ".join([*parts, f"magnification {self.magnification:g}"])


PLANTED = {
    "pale": Laboratory((("stain", 4), ("gamma_down", 4))),
    "dark": Laboratory((("stain", 5), ("brightness_down", 3)), 1.2),
    "faint": Laboratory((("contrast_down", 3), ("gaussian_blur", 3)), 0.85),
}


def planted(cases: dict[str, Any], laboratory: Laboratory) -> dict[str, Any]:
    """The same cases, as the other laboratory shows them.

    Args:
        cases: "image" uint8 (case, channel, row, col), "mask" (case, row, col), and more.
        laboratory: How it differs.

    Returns:
        The same arrays; beyond the border of a picture its edge is repeated, with -1 in the mask.
    """
    image = np.stack([_moved(one, laboratory.magnification, 1) for one in cases["image"]])
    mask = np.stack([_moved(one, laboratory.magnification, 0) for one in cases["mask"]])
    for name, severity in laboratory.corruptions:
        image = np.concatenate([corrupt(one[None], name, severity) for one in image])
    return cases | {"image": image, "mask": mask}


def _moved(values: NDArray[Any], factor: float, order: int) -> NDArray[Any]:
    """Magnify about the middle along the last two axes; order 0 is of masks."""
    if factor == 1:
        return values.copy()
    plane = np.array(values.shape[-2:])
    middle = (plane - 1) / 2
    settings: dict[str, Any] = {"order": order, "offset": middle - middle / factor}
    settings |= {"mode": "nearest"} if order else {"mode": "constant", "cval": -1}
    matrix = np.full(2, 1 / factor)
    if values.ndim == 2:
        return np.asarray(ndimage.affine_transform(values, matrix, **settings))
    return np.stack([ndimage.affine_transform(one, matrix, **settings) for one in values])
