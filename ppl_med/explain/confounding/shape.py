"""Shape normalisation: every foreground gets the same outline, so shape carries no information.

A radial warp about the middle of the foreground, of images and of volumes. With r(u) the distance
from the middle to the outline in the direction u, a pixel of the new image at distance ρ from the
new middle shows

    the old image at distance  ρ · r_old(u) / r_new(u)     inside, ρ ≤ r_new(u)
                               r_old(u) + (ρ - r_new(u))   outside

in the same direction, so that the outline goes to the outline, what is inside is stretched and the
background is moved. Foregrounds that the rays from the middle leave and enter again have no such
r(u) and are refused.

Distances are counted in pixels. A ray of pixels is a ray of millimetres, and both distances of a
ray grow by the same factor, so the warp is that of millimetres whatever the spacing is, as long as
all images have one.

Reference: Sdika, "Uncertainties and explainability" (lecture), brain shape normalisation; the warp
is our choice.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_fill_holes, map_coordinates

from ppl_med.axes import SPACE

ANGLES = 720  # around a plane foreground
LEAST_ANGLES = 60  # around one of a volume; more where the outline is far
ARC = 0.75  # pixels between rays where a volume's outline is farthest
STEP = 0.25  # pixels along a ray
TOLERANCE = 0.02  # share of the foreground that rays may cross twice
_ALIKE = 0.01  # share by which spacings may differ and count as one


def common_shape(mask: NDArray[Any]) -> NDArray[np.bool_]:
    """An ellipse or ellipsoid in the middle of the image, with the foregrounds' mean sides.

    Args:
        mask: Foregrounds, (case, [depth,] row, col), bool or 0 and 1; a ValueError where one is
            empty.

    Returns:
        Mask ([depth,] row, col).
    """
    masks = as_foregrounds("mask", mask)
    spans = np.array([np.ptp(np.argwhere(one), axis=0) + 1 for one in masks])
    size = np.array(masks.shape[1:])
    offset = np.indices(masks.shape[1:]) - _column((size - 1) / 2, size)
    place = offset / _column(spans.mean(0) / 2, size)
    return (place**2).sum(0) <= 1


def normalize_shape(
    image: NDArray[Any],
    mask: NDArray[Any],
    target: NDArray[Any] | None = None,
    *,
    spacing: ArrayLike | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Resample images so that their foregrounds get one outline, or each that of its target.

    What comes from outside the image repeats its border.

    Args:
        image: Dims (case, channel, [depth,] row, col).
        mask: Foreground of each, (case, [depth,] row, col), bool or 0 and 1.
        target: Foreground that all get, ([depth,] row, col), or one each, (case, [depth,] row,
            col), as in ``swap_shape``; by default ``common_shape`` of the masks.
        spacing: mm along each axis, of every case (case, axis) as readers give it. The images must
            have one, or a shape in pixels is none in mm, and the texture's scale tells them apart.

    Returns:
        Images (case, channel, [depth,] row, col), linearly interpolated, and their foregrounds
        (case, [depth,] row, col), warped likewise.

    Raises:
        ValueError: If shapes do not fit, images are not finite, spacings differ, a mask is empty or
            has holes, or rays from the middle of a foreground cross its outline more than once over
            more than 2 % of it.
    """
    masks, image = as_foregrounds("mask", mask), np.asarray(image, float)
    if image.ndim != masks.ndim + 1 or image.shape[:1] + image.shape[2:] != masks.shape:
        raise ValueError(
            f"image has shape {image.shape}, mask {masks.shape}; expected (case, channel, [depth,] "
            "row, col) and (case, [depth,] row, col)"
        )
    if not np.isfinite(image).all():
        raise ValueError("image holds NaN or infinite intensities; replace them first")
    if spacing is not None:
        check_one_spacing(spacing, masks)
    wanted = common_shape(masks) if target is None else np.asarray(target)
    each = wanted.ndim == masks.ndim
    if wanted.shape != (masks.shape if each else masks.shape[1:]):
        raise ValueError(f"target has shape {wanted.shape}, the masks {masks.shape}")
    targets = as_foregrounds("target", wanted if each else wanted[None])
    images, foregrounds = np.empty_like(image), np.empty(masks.shape, bool)
    for case, one in enumerate(masks):
        if each or case == 0:
            name = f"target of case {case}" if each else "target"
            middle, radius = _outline(name, targets[case])
            offset = np.indices(one.shape) - _column(middle, one.shape)
            distance, angles = np.sqrt((offset**2).sum(0)), _angles(offset)
            new, direction = _at(radius, angles), _direction(angles)
        middle, radius = _outline(f"mask of case {case}", one)
        old = _at(radius, angles)
        source = np.where(distance <= new, distance * old / new, old + distance - new)
        place = _column(middle, one.shape) + source * direction
        for channel, plane in enumerate(image[case]):
            images[case, channel] = _sampled(plane, place)
        # A rough outline may close around a pixel on the way.
        foregrounds[case] = binary_fill_holes(_sampled(one.astype(float), place) >= 0.5)
    return images, foregrounds


def check_one_spacing(spacing: ArrayLike, masks: NDArray[Any]) -> None:
    """Raise unless all cases of masks (case, [depth,] row, col) have one known spacing in mm."""
    axes = SPACE[masks.ndim - 1]
    values = np.asarray(spacing, float)
    if values.shape != (len(masks), len(axes)):
        raise ValueError(
            f"spacing has shape {values.shape}; expected {(len(masks), len(axes))}, mm along "
            f"{', '.join(axes)} of every case"
        )
    unknown = ~(np.isfinite(values) & (values > 0)).all(1)
    if unknown.any():
        raise ValueError(
            f"spacing must be mm above 0, which it is not in {int(unknown.sum())} of {len(masks)} "
            f"cases, first case {int(unknown.argmax())}: {values[unknown][0].tolist()}"
        )
    usual = np.median(values, axis=0)
    other = ~np.isclose(values, usual, rtol=_ALIKE, atol=0).all(1)
    if other.any():
        shown = ", ".join(f"{value:.3g}" for value in usual)
        raise ValueError(
            f"spacing differs from the median, ({shown}) mm, in {int(other.sum())} of {len(masks)} "
            f"cases, first case {int(other.argmax())}; read them all with spacing=({shown}), to "
            "which readers resample"
        )


def as_foregrounds(name: str, mask: NDArray[Any]) -> NDArray[np.bool_]:
    """Masks (case, [depth,] row, col) as bool; a ValueError where one is empty or no mask."""
    mask = np.asarray(mask)
    if mask.ndim not in (3, 4) or not np.isin(mask, (0, 1)).all():
        raise ValueError(
            f"{name} is {mask.dtype} of shape {mask.shape}; expected (case, [depth,] row, col) of "
            "bool or 0 and 1"
        )
    mask = mask.astype(bool)
    empty = ~mask.any(tuple(range(1, mask.ndim)))
    if empty.any():
        raise ValueError(f"{name} has {int(empty.sum())} empty foreground(s); leave them out")
    return mask


def _outline(name: str, mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Middle of a foreground, and the distance from it to the outline in a grid of directions."""
    holes = int(binary_fill_holes(mask).sum() - mask.sum())
    if holes:
        raise ValueError(
            f"{name} has holes of {holes} pixels, at whose edges rays from its middle would stop; "
            "fill them with scipy.ndimage.binary_fill_holes"
        )
    where = np.argwhere(mask)
    middle = where.mean(0)
    reach = np.sqrt(((where - middle) ** 2).sum(1).max()) + 2
    steps = np.arange(0, reach + STEP, STEP)
    # Outside the image there is no foreground.
    padded = np.pad(mask.astype(float), 1)
    radii, beyond, starts = [], 0.0, True
    for angles, share in _grid(mask.ndim, reach):
        ray = _direction(angles)[..., None] * steps
        value = _sampled(padded, _column(middle + 1, ray.shape[1:]) + ray, mode="constant")
        inside = value >= 0.5
        first = np.logical_and.accumulate(inside, -1)
        size = share * STEP * steps ** (mask.ndim - 1)
        beyond += float(((inside & ~first) * size).sum() / mask.sum())
        starts = starts and bool(first[..., 0].all())
        last = (first.sum(-1) - 1)[..., None]
        here, there = (
            np.take_along_axis(value, np.clip(at, 0, len(steps) - 1), -1) for at in (last, last + 1)
        )
        part = np.where(here > there, (here - 0.5) / np.where(here > there, here - there, 1), 0)
        radii.append((steps[np.maximum(last, 0)] + STEP * part)[..., 0])
    if not starts or beyond > TOLERANCE:
        raise ValueError(
            f"{name}: rays from its middle cross the outline more than once over "
            f"{min(1.0, beyond):.0%} of it"
            + ("" if starts else ", and the middle is no foreground")
            + "; a radial warp needs a foreground without deep bays: take the convex hull, "
            "skimage.morphology.convex_hull_image"
        )
    return middle, np.concatenate(radii) if mask.ndim == 2 else np.stack(radii)


def _grid(ndim: int, reach: float) -> list[tuple[NDArray[np.float64], float]]:
    """Angles (angle, ray) in rows, and the share of the circle or sphere that each ray stands for.

    One row of a plane; of a volume one for each angle from the first axis, both poles included.
    """
    if ndim == 2:
        return [(np.linspace(-np.pi, np.pi, ANGLES, endpoint=False)[None], 2 * np.pi / ANGLES)]
    half = max(LEAST_ANGLES, int(np.ceil(2 * np.pi * reach / ARC))) // 2
    around = np.linspace(-np.pi, np.pi, 2 * half, endpoint=False)
    edges = np.linspace(0, np.pi, half + 1)
    middles = np.concatenate([[0], (edges[1:] + edges[:-1]) / 2, [np.pi]])
    return [
        (
            np.stack([np.full_like(around, polar), around]),
            float(np.cos(low) - np.cos(high)) * np.pi / half,
        )
        for polar, low, high in zip(edges, middles[:-1], middles[1:], strict=True)
    ]


def _angles(offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angles (angle, ...) of offsets (axis, ...): around, before it the one from the first axis."""
    around = np.arctan2(offset[-2], offset[-1])
    if len(offset) == 2:
        return around[None]
    return np.stack([np.arctan2(np.hypot(offset[1], offset[2]), offset[0]), around])


def _direction(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit vectors (axis, ...) of angles (angle, ...)."""
    plane = np.stack([np.sin(angles[-1]), np.cos(angles[-1])])
    if len(angles) == 1:
        return plane
    return np.concatenate([np.cos(angles[:1]), np.sin(angles[:1]) * plane])


def _at(radius: NDArray[np.float64], angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Radius at any angles, linear between those of the grid, around the circle."""
    place = (angles[-1:] + np.pi) / (2 * np.pi) * radius.shape[-1]
    if radius.ndim == 2:
        place = np.concatenate([angles[:1] / np.pi * (len(radius) - 1), place])
    closed = np.concatenate([radius, radius[..., :1]], -1)
    return _sampled(closed, place)


def _column(values: NDArray[Any], shape: Any) -> NDArray[Any]:
    """One value per axis, to broadcast over (axis, *shape)."""
    return values.reshape(-1, *[1] * len(shape))


def _sampled(
    plane: NDArray[np.float64], place: NDArray[np.float64], mode: str = "nearest"
) -> NDArray[np.float64]:
    return map_coordinates(plane, place, order=1, mode=mode, cval=0.0)
