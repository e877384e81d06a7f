"""Pictures and volumes of several sizes brought to one, and what becomes of their spacing."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ppl_med.data.readers.image_files import centred, nearest, resized

Resize = Literal["fit", "scale", "pad"]
RESIZES = ("fit", "scale", "pad")


def resampled(values: NDArray[Any], shape: Sequence[int], *, labels: bool = False) -> NDArray[Any]:
    """Values at another number of pixels along the last axes, dims (..., *space).

    Linear, averaging where it shrinks; labels are taken at the middles of the new pixels. The
    dtype stays.
    """
    new = tuple(int(n) for n in shape)
    if values.shape[-len(new) :] == new:
        return values
    if labels:
        return nearest(values, new)
    if values.dtype == np.uint8 and len(new) == 2:
        return _pictures(values, new)
    from skimage.transform import resize

    lead = values.shape[: -len(new)]
    parts = [
        resize(part, new, order=1, mode="edge", anti_aliasing=True, preserve_range=True)
        for part in values.reshape(-1, *values.shape[-len(new) :]).astype(np.float32)
    ]
    out = np.stack(parts).reshape(*lead, *new)
    return (
        np.rint(out).astype(values.dtype) if values.dtype.kind in "ui" else out.astype(np.float32)
    )


def at_spacing(
    values: NDArray[Any], spacing: NDArray[Any], wanted: Sequence[float], *, labels: bool = False
) -> NDArray[Any]:
    """Values (..., *space) resampled from one spacing to another, mm along each axis of space."""
    old = np.array(values.shape[-len(wanted) :])
    shape = np.maximum(1, np.rint(old * np.asarray(spacing) / np.asarray(wanted))).astype(int)
    return resampled(values, shape.tolist(), labels=labels)


def to_size(
    values: NDArray[Any], size: Sequence[int], how: Resize, *, labels: bool = False
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Values (..., *space) at a size, and by how much each pixel grew along each axis.

    "fit" scales to the largest that fits and pads, "scale" stretches, "pad" crops or pads about the
    middle without scaling. Padding is 0 in images and -1 in labels.
    """
    old = np.array(values.shape[-len(size) :])
    new = np.array(size) if how == "scale" else old
    if how == "fit":
        new = np.maximum(1, np.rint(old * (np.array(size) / old).min())).astype(int)
    scaled = resampled(values, new.tolist(), labels=labels)
    if labels:
        scaled = scaled.astype(np.result_type(scaled.dtype, np.int8))
    return centred(scaled, size, fill=-1 if labels else 0), old / new


def moved_affine(
    affine: NDArray[Any], old: Sequence[int], new: Sequence[int], growth: NDArray[Any]
) -> NDArray[np.float64]:
    """The affine of an array that ``to_size`` made, from index to mm, RAS+, 4 x 4.

    ``old`` and ``new`` are the sizes before and after, in the order of the affine's columns.
    """
    scaled = np.rint(np.array(old) / growth).astype(int)
    first = (np.array(new) - scaled) // 2  # where the first old pixel lies in the new array
    cut = np.maximum(scaled - np.array(new), 0) // 2
    first = np.where(scaled > np.array(new), -cut, first)
    out = np.array(affine, np.float64)
    middle = 0.5 * growth - 0.5 - first * growth  # old index of the middle of the new pixel 0
    out[:3, 3] = affine[:3, 3] + affine[:3, : len(new)] @ middle
    out[:3, : len(new)] = affine[:3, : len(new)] * growth
    return out


def _pictures(values: NDArray[np.uint8], size: tuple[int, ...]) -> NDArray[np.uint8]:
    rows, cols = size
    if values.ndim == 3 and values.shape[0] == 3:
        return resized(values, (rows, cols))
    flat = values.reshape(-1, *values.shape[-2:])
    parts = [resized(one, (rows, cols)) for one in flat]
    return np.stack(parts).reshape(*values.shape[:-2], rows, cols)
