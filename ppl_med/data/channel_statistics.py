"""Location and scale of the pixels, fitted on training images and passed on to every split."""

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1024  # cases converted to float64 at a time
_ROUNDING = 1e-9  # of the mean; a smaller standard deviation is the rounding of a constant


def standardization(train_images: NDArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Fit the mean and standard deviation of every channel.

    Args:
        train_images: Dims (case, channel, row, col) or (case, channel, depth, row, col), uint8 or
            floating. Training cases only: other splits are standardised with these numbers.

    Returns:
        ``loc`` and ``scale``, dims (channel). In units of the image as ``Batches`` yields it before
        standardising: uint8 counts as 0..1, floating values as they are.

    Raises:
        ValueError: No images, wrong rank, non-finite pixels, or a channel that is constant.
    """
    images = np.asarray(train_images)
    if images.ndim not in (4, 5) or images.size == 0:
        raise ValueError(
            f"train_images has shape {images.shape}; expected at least one image with dims "
            "(case, channel, row, col) or (case, channel, depth, row, col)"
        )
    unit = 255.0 if images.dtype == np.uint8 else 1.0
    axes = (0, *range(2, images.ndim))
    num_pixels = images.size / images.shape[1]
    shape = (-1, *[1] * (images.ndim - 2))
    chunks = [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]
    loc = sum(chunk.sum(axes, dtype=np.float64) for chunk in chunks) / num_pixels
    centred = loc.reshape(shape)
    variance = sum(np.square(chunk - centred).sum(axes) for chunk in chunks) / num_pixels
    if not (np.isfinite(loc).all() and np.isfinite(variance).all()):
        raise ValueError("train_images holds NaN or infinite pixels; replace or drop those cases")
    constant = variance <= np.square(_ROUNDING * loc)
    if constant.any():
        channels = np.flatnonzero(constant).tolist()
        raise ValueError(f"train_images is constant in channel(s) {channels}; drop them")
    return (loc / unit).astype(np.float32), (np.sqrt(variance) / unit).astype(np.float32)
