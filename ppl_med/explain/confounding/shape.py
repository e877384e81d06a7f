"""Shape normalisation: every foreground gets the same outline, so shape carries no information.

A radial warp about the middle of the foreground. With r(θ) the distance from the middle to the
outline in the direction θ, a pixel of the new image at distance ρ from the new middle shows

    the old image at distance  ρ · r_old(θ) / r_new(θ)     inside, ρ ≤ r_new(θ)
                               r_old(θ) + (ρ - r_new(θ))   outside

in the same direction, so that the outline goes to the outline, what is inside is stretched and the
background is moved. Foregrounds that the rays from the middle leave and enter again have no such
r(θ) and are refused.

Reference: Sdika, "Uncertainties and explainability" (lecture), brain shape normalisation; the warp
is our choice.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

ANGLES = 720
STEP = 0.25  # pixels along a ray
TOLERANCE = 0.02  # share of the foreground's area that rays may cross twice


def common_shape(mask: NDArray[Any]) -> NDArray[np.bool_]:
    """An ellipse in the middle of the image, with the foregrounds' mean height and width.

    Args:
        mask: Foregrounds, (case, row, col), bool or 0 and 1; a ValueError where one is empty.

    Returns:
        Mask (row, col).
    """
    masks = _binary("mask", mask, 3)
    spans = np.array(
        [[np.ptp(np.flatnonzero(one.any(axis))) + 1 for axis in (1, 0)] for one in masks]
    )
    radii = spans.mean(0) / 2
    middle = (np.array(masks.shape[1:]) - 1) / 2
    place = (np.indices(masks.shape[1:]) - middle[:, None, None]) / radii[:, None, None]
    return (place**2).sum(0) <= 1


def normalize_shape(
    image: NDArray[Any], mask: NDArray[Any], target: NDArray[Any] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Resample images so that their foregrounds get one outline.

    With the mask of a case of another class as ``target`` this is the swap of shapes of
    ``swap_test``.

    Args:
        image: Dims (case, channel, row, col).
        mask: Foreground of each, (case, row, col), bool or 0 and 1.
        target: Foreground that all get, (row, col); by default ``common_shape`` of the masks.

    Returns:
        Images (case, channel, row, col), linearly interpolated, and their foregrounds (case, row,
        col), warped likewise.

    Raises:
        ValueError: If shapes do not fit, a mask is empty, or rays from the middle of a foreground
            cross its outline more than once over more than 2 % of its area.
    """
    masks, image = _binary("mask", mask, 3), np.asarray(image, float)
    if image.ndim != 4 or image.shape[:1] + image.shape[2:] != masks.shape:
        raise ValueError(
            f"image has shape {image.shape}, mask {masks.shape}; expected (case, channel, row, "
            "col) and (case, row, col)"
        )
    wanted = common_shape(masks) if target is None else _binary("target", target, 2)
    if wanted.shape != masks.shape[1:]:
        raise ValueError(f"target has shape {wanted.shape}, the masks {masks.shape[1:]}")
    new_middle, new_radius = _outline("target", wanted)
    offset = np.indices(wanted.shape) - new_middle[:, None, None]
    distance, angle = np.hypot(*offset), np.arctan2(offset[0], offset[1])
    new = _at(new_radius, angle)
    direction = np.stack([np.sin(angle), np.cos(angle)])
    images, foregrounds = np.empty_like(image), np.empty(masks.shape, bool)
    for case, one in enumerate(masks):
        middle, radius = _outline(f"mask of case {case}", one)
        old = _at(radius, angle)
        source = np.where(distance <= new, distance * old / new, old + distance - new)
        place = middle[:, None, None] + source * direction
        for channel, plane in enumerate(image[case]):
            images[case, channel] = _sampled(plane, place)
        foregrounds[case] = _sampled(one.astype(float), place) >= 0.5
    return images, foregrounds


def _binary(name: str, mask: NDArray[Any], ndim: int) -> NDArray[np.bool_]:
    mask = np.asarray(mask)
    if mask.ndim != ndim or not np.isin(mask, (0, 1)).all():
        raise ValueError(
            f"{name} is {mask.dtype} of shape {mask.shape}; expected {ndim} axes of bool or 0 and 1"
        )
    empty = ~mask.astype(bool).any((-2, -1))
    if empty.any():
        raise ValueError(f"{name} has {int(empty.sum())} empty foreground(s); leave them out")
    return mask.astype(bool)


def _outline(name: str, mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Middle of a foreground, and the distance from it to the outline at every angle."""
    middle = np.argwhere(mask).mean(0)
    angle = np.linspace(-np.pi, np.pi, ANGLES, endpoint=False)
    steps = np.arange(0, np.hypot(*mask.shape), STEP)
    ray = np.stack([np.sin(angle), np.cos(angle)])[:, :, None] * steps
    # Outside the image there is no foreground.
    padded = np.pad(mask.astype(float), 1)
    value = map_coordinates(
        padded, middle[:, None, None] + 1 + ray, order=1, mode="constant", cval=0.0
    )
    inside = value >= 0.5
    area = steps * STEP * 2 * np.pi / ANGLES
    first = np.logical_and.accumulate(inside, 1)
    beyond = ((inside & ~first) * area).sum() / mask.sum()
    if not first[:, 0].all() or beyond > TOLERANCE:
        raise ValueError(
            f"{name}: rays from its middle cross the outline more than once over "
            f"{min(1.0, beyond):.0%} of its area; a radial warp needs a foreground without holes "
            "or deep bays, such as a filled or convex one"
        )
    last = first.sum(1) - 1
    rows = np.arange(ANGLES)
    here, there = value[rows, last], value[rows, np.minimum(last + 1, len(steps) - 1)]
    part = np.where(here > there, (here - 0.5) / np.where(here > there, here - there, 1), 0)
    return middle, steps[last] + STEP * part


def _at(radius: NDArray[np.float64], angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Radius at any angle, linear between those known, around the circle."""
    known = np.linspace(-np.pi, np.pi, ANGLES, endpoint=False)
    return np.interp(angle, known, radius, period=2 * np.pi)


def _sampled(plane: NDArray[np.float64], place: NDArray[np.float64]) -> NDArray[np.float64]:
    return map_coordinates(plane, place, order=1, mode="nearest")
