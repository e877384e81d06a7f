"""Planted confounders: marks that go with a class and are no part of the disease.

A mark is drawn into some images, more often in one class than in another, and what was drawn is
returned as a mask, so that it is known where an explanation must not look:

    tag         bright letters in the upper left corner, as a hospital's markers
    pacemaker   a bright can in the upper right with a lead to the middle
    ruler       bright ticks along the lower edge, as on dermatoscopes
    border      a dark frame, as of a scanner or of a picture that was padded

Which cases get one follows from a probability for each class. The same probabilities can be applied
as they are (a confounded data set), exchanged between the classes (the mark now goes with the other
class: what relied on it fails), or replaced by their mean (the mark says nothing of the class).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import choice, finite, positive

Kind = Literal["tag", "pacemaker", "ruler", "border"]
Association = Literal["as_given", "swapped", "unconfounded"]
LEAST_SIZE = 20  # pixels; smaller images have no room for two letters
_GLYPHS = {"A": "010101111101101", "P": "110101110100100"}  # rows of three
_ADDED = ("confounder", "confounder_mask")


def plant(
    arrays: Mapping[str, Any],
    kind: Kind,
    probability_given_class: Sequence[float],
    *,
    association: Association = "as_given",
    opacity: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Draw a mark into some images.

    Whether a case gets one, and its small displacement, follow from ``seed`` and the case's
    position alone: under all three associations, and with other probabilities, a case that has the
    mark has it in the same place. ``probability_given_class=(1, 1)`` gives it to every case.

    Args:
        arrays: "image" (case, channel, row, col), uint8 or floating, and "label" (case), integers
            from 0; other arrays are passed on.
        kind: What is drawn.
        probability_given_class: Probability of the mark, for each class in order.
        association: ``"as_given"``; ``"swapped"``, where the class with the highest probability
            gets the lowest, and so on inwards; ``"unconfounded"``, where every class gets the mean
            over cases.
        opacity: Above 0, up to 1, where the mark hides what is under it.
        seed: Seed of everything drawn at random.

    Returns:
        The arrays with "image" replaced, and beside it "confounder" int64 (case), 1 where the mark
        is, and "confounder_mask" bool (case, row, col), its pixels. Bright is 255 for uint8 and the
        largest intensity of all images otherwise, dark 0 or the smallest.

    Raises:
        ValueError: An argument does not fit, images are smaller than 20 pixels or no plane images,
            or the arrays have a mark already.
    """
    image, label = _checked(arrays, kind, probability_given_class, association, opacity)
    chance = _chances(np.asarray(probability_given_class, float), label, association)
    random = np.random.default_rng(seed)
    present = random.random(len(image)) < chance[label]
    shift = random.integers(0, 3, (len(image), 2))
    mask = np.zeros((len(image), *image.shape[2:]), bool)
    for case in np.flatnonzero(present):
        mask[case] = _DRAWINGS[kind](image.shape[2:], shift[case])
    low, high = (0, 255) if image.dtype == np.uint8 else (image.min(), image.max())
    value = low if kind == "border" else high
    marked = (1 - opacity) * image.astype(float) + opacity * float(value)
    if image.dtype == np.uint8:
        marked = marked.round()
    return {
        **arrays,
        "image": np.where(mask[:, None], marked, image).astype(image.dtype),
        "confounder": present.astype(np.int64),
        "confounder_mask": mask,
    }


def _checked(
    arrays: Mapping[str, Any],
    kind: str,
    probability_given_class: Sequence[float],
    association: str,
    opacity: float,
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Images and labels, once everything fits."""
    choice("kind", kind, get_args(Kind))
    choice("association", association, get_args(Association))
    missing = [name for name in ("image", "label") if arrays.get(name) is None]
    if missing:
        raise ValueError(f"arrays has no {missing}; its keys are {sorted(arrays)}")
    if set(_ADDED) & arrays.keys():
        raise ValueError('arrays has a "confounder" already; plant one in the arrays before it')
    image, label = np.asarray(arrays["image"]), np.asarray(arrays["label"])
    if image.ndim != 4 or min(image.shape[2:]) < LEAST_SIZE:
        raise ValueError(
            f"image has shape {image.shape}; expected (case, channel, row, col) with at least "
            f"{LEAST_SIZE} rows and columns"
        )
    if not (image.dtype == np.uint8 or np.issubdtype(image.dtype, np.floating)):
        raise ValueError(f"image is {image.dtype}; expected uint8 or floating")
    if label.shape != (len(image),) or not np.issubdtype(label.dtype, np.integer):
        raise ValueError(
            f"label is {label.dtype} of shape {label.shape}; expected {len(image)} integers"
        )
    chance = np.asarray(probability_given_class, float)
    if chance.ndim != 1 or not ((chance >= 0) & (chance <= 1)).all():
        raise ValueError(
            f"probability_given_class is {probability_given_class}; expected one number from 0 to "
            "1 for each class"
        )
    if len(label) and not (label.min() >= 0 and label.max() < len(chance)):
        raise ValueError(
            f"label runs from {label.min()} to {label.max()}, but probability_given_class has "
            f"{len(chance)} entries; give one for each class"
        )
    finite("opacity", positive("opacity", opacity), most=1)
    return image, label.astype(np.int64)


def _chances(
    given: NDArray[np.float64], label: NDArray[np.int64], association: str
) -> NDArray[np.float64]:
    """Probability of the mark for each class, (class,)."""
    if association == "unconfounded":
        return np.full_like(given, given[label].mean() if len(label) else 0.0)
    if association == "as_given":
        return given
    order = np.argsort(given, kind="stable")
    swapped = np.empty_like(given)
    swapped[order] = given[order[::-1]]
    return swapped


def _tag(size: tuple[int, int], shift: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Letters, at least one pixel a stroke."""
    scale = max(1, min(size) // 28)
    letters = [np.array(list(bits)).reshape(5, 3) == "1" for bits in _GLYPHS.values()]
    gap = np.zeros((5, 1), bool)
    text = np.concatenate([letters[0], gap, letters[1]], 1).repeat(scale, 0).repeat(scale, 1)
    mask = np.zeros(size, bool)
    top, left = 1 + shift
    mask[top : top + text.shape[0], left : left + text.shape[1]] = text
    return mask


def _pacemaker(size: tuple[int, int], shift: NDArray[np.int64]) -> NDArray[np.bool_]:
    """An ellipse, and a quarter of an ellipse from its lower end to the middle."""
    rows, cols = size
    row, col = np.indices(size)
    centre = np.array([0.2 * rows, 0.76 * cols]) + shift - 1
    radii = 0.09 * rows, 0.075 * cols
    body = ((row - centre[0]) / radii[0]) ** 2 + ((col - centre[1]) / radii[1]) ** 2 <= 1
    angle = np.linspace(0, np.pi / 2, 4 * (rows + cols))
    start, end = (centre[0] + radii[0], centre[1]), (0.55 * rows, 0.52 * cols)
    along = start[0] + (end[0] - start[0]) * np.sin(angle)
    across = end[1] + (start[1] - end[1]) * np.cos(angle)
    width = max(1, min(size) // 64)
    for offset in range(width):
        body[along.round().astype(int), across.round().astype(int) + offset] = True
    return body


def _ruler(size: tuple[int, int], shift: NDArray[np.int64]) -> NDArray[np.bool_]:
    """A tick every fourteenth of the width, every fifth of them long."""
    rows, cols = size
    mask = np.zeros(size, bool)
    width, step = max(1, cols // 64), max(2, cols // 14)
    for number, start in enumerate(range(int(shift[1]), cols, step)):
        length = max(2, round((0.16 if number % 5 == 0 else 0.09) * rows))
        mask[rows - length :, start : start + width] = True
    return mask


def _border(size: tuple[int, int], shift: NDArray[np.int64]) -> NDArray[np.bool_]:
    """A frame of a twelfth of each side, a little wider in one direction or the other."""
    mask = np.ones(size, bool)
    high, wide = (
        max(1, side // 12) + int(extra) // 2 for side, extra in zip(size, shift, strict=True)
    )
    mask[high : size[0] - high, wide : size[1] - wide] = False
    return mask


_DRAWINGS: dict[str, Callable[[tuple[int, int], NDArray[np.int64]], NDArray[np.bool_]]] = {
    "tag": _tag,
    "pacemaker": _pacemaker,
    "ruler": _ruler,
    "border": _border,
}
