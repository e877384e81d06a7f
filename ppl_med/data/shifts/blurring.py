"""Detail that is lost. Lengths are shares of the image's size along their axis.

So a strength means the same on 28 and on 512 pixels.
"""

import io

import numpy as np
from PIL import Image
from scipy import ndimage


def gaussian_blur(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Blur by a normal kernel whose sd is ``strength`` of the size along every axis."""
    sd = [0.0, *(strength * size for size in image.shape[1:])]
    return ndimage.gaussian_filter(image, sd, mode="nearest")


def motion_blur(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Move the object in the plane while the shutter is open, by ``strength`` of the size.

    The direction is drawn at random; the path is straight and its middle is the true position.
    """
    angle = random.uniform(0.0, 2 * np.pi)
    rows, cols = (strength * size for size in image.shape[-2:])
    steps = np.linspace(-0.5, 0.5, max(3, 2 * int(np.ceil(max(rows, cols))) + 1))
    still = [0.0] * (image.ndim - 2)
    shifts = [[*still, t * rows * np.sin(angle), t * cols * np.cos(angle)] for t in steps]
    return np.mean([ndimage.shift(image, by, order=1, mode="nearest") for by in shifts], axis=0)


def pixelate(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Keep ``1 - strength`` of the pixels along every axis; each stands for its surroundings.

    Coarse pixels are means over the area they cover, and are drawn as blocks; a pixel that two of
    them share is their mean by area.
    """
    result = image
    for axis in range(1, image.ndim):
        size = image.shape[axis]
        coarse = max(1, round(size * (1.0 - strength)))
        result = np.moveaxis(_overlap(size, coarse) @ np.moveaxis(result, axis, -2), -2, axis)
    return result


def jpeg(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Store as JPEG of quality ``100 * (1 - strength)`` and read again; volumes slice by slice."""
    channels = image.shape[0]
    colour, quality = channels == 3, round(100 * (1 - strength))
    slices = np.moveaxis(image, 0, -1).reshape(-1, *image.shape[-2:], channels)
    result = np.empty_like(slices)
    for index, plane in enumerate((slices.clip(0, 1) * 255).round().astype(np.uint8)):
        for part in [slice(None)] if colour else range(channels):
            buffer = io.BytesIO()
            Image.fromarray(plane[..., part]).save(buffer, "JPEG", quality=quality)
            buffer.seek(0)
            with Image.open(buffer) as read:
                result[index][..., part] = np.asarray(read) / 255.0
    return np.moveaxis(result.reshape(*image.shape[1:], channels), -1, 0)


def _overlap(size: int, coarse: int) -> np.ndarray:
    """Matrix (size, size): the mean over each coarse pixel, then over those a pixel lies in."""
    edges = np.linspace(0, size, coarse + 1)
    left, right = np.arange(size), np.arange(1, size + 1)
    inner = np.minimum(right, edges[1:, None]) - np.maximum(left, edges[:-1, None])
    shares = inner.clip(0, None)  # (coarse, size), of a pixel's side
    return (shares / shares.sum(0)).T @ (shares / shares.sum(1, keepdims=True))
