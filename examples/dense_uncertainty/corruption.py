"""Street scenes in bad weather and through a bad camera: the same scenes, other pixels.

    blur     normal blur of sd 0.6, 1, 1.5, 2.2 or 3 pixels at 64 rows, wider in proportion
    noise    normal noise of sd 0.06, 0.1, 0.16, 0.24 or 0.34 at every pixel
    fog      white laid over it at 0.25, 0.4, 0.55, 0.68 or 0.8 in the mean, in drifts

by severity 1 to 5. After the corruptions of Hendrycks and Dietterich, "Benchmarking neural network
robustness to common corruptions and perturbations", ICLR 2019, with parameters of our own: theirs
are for images of 224 rows.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dense_uncertainty.options import Corruption

_STRENGTHS: dict[str, tuple[float, ...]] = {
    "blur": (0.6, 1.0, 1.5, 2.2, 3.0),
    "noise": (0.06, 0.1, 0.16, 0.24, 0.34),
    "fog": (0.25, 0.4, 0.55, 0.68, 0.8),
}
_ROWS = 64  # image height that the widths are given for


def corrupt(
    images: NDArray[np.uint8], kind: Corruption, severity: int, *, seed: int = 0
) -> NDArray[np.uint8]:
    """Corrupt every image; its place among the images determines its noise and drifts.

    Args:
        images: Dims (case, channel, row, col).
        kind: Which corruption.
        severity: 1 to 5.
        seed: With the position of the image, determines noise and drifts.

    Returns:
        As the images.

    Raises:
        ValueError: ``kind`` or ``severity`` is unknown, or the images are not uint8.
    """
    if kind not in _STRENGTHS:
        raise ValueError(f"kind is {kind!r}; it is one of {sorted(_STRENGTHS)}")
    if not 1 <= severity <= 5:
        raise ValueError(f"severity is {severity}; it is 1 to 5")
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"images are {images.dtype} with {images.ndim} axes; expected uint8 (case, channel, "
            "row, col)"
        )
    strength = _STRENGTHS[kind][severity - 1]
    found = np.empty_like(images)
    for index, image in enumerate(images):
        random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
        pixels = image.astype(np.float32) / 255
        if kind == "blur":
            width = strength * image.shape[1] / _ROWS
            pixels = ndimage.gaussian_filter(pixels, (0, width, width), mode="nearest")
        elif kind == "noise":
            pixels = pixels + strength * random.standard_normal(image.shape, np.float32)
        else:
            cover = (strength + 0.15 * _drifts(random, image.shape[1:])).clip(0, 0.95)
            pixels = (1 - cover) * pixels + cover
        found[index] = np.round(255 * pixels.clip(0, 1)).astype(np.uint8)
    return found


def _drifts(random: np.random.Generator, size: tuple[int, ...]) -> NDArray[np.float32]:
    """Smooth noise of mean 0 and sd 1 (row, col)."""
    rough = random.standard_normal(size, np.float32)
    smooth = ndimage.gaussian_filter(rough, (size[0] / 8, size[1] / 6), mode="wrap")
    return (smooth - smooth.mean()) / max(float(smooth.std()), 1e-6)
