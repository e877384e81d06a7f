"""Noise of sensors. Images have intensities in [0, 1]; sd are in these units.

Noise is drawn anew for every pixel and channel; grey images stored as three equal channels are to
be corrupted as one channel, or their noise would average out.
"""

import numpy as np


def gaussian(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Add normal noise of sd ``strength``."""
    return image + random.normal(0.0, strength, image.shape)


def speckle(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Add normal noise of sd ``strength`` times the intensity, as of ultrasound."""
    return image * (1.0 + random.normal(0.0, strength, image.shape))


def shot(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Count photons, ``1 / strength`` of them at intensity 1 (Poisson)."""
    return random.poisson(image.clip(0, None) / strength) * strength


def salt_and_pepper(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Set a share ``strength`` of the pixels to 0 or 1, in all channels at once."""
    chance = random.random((1, *image.shape[1:]))
    bad = np.where(chance < strength / 2, 0.0, np.where(chance > 1 - strength / 2, 1.0, np.nan))
    return np.where(np.isnan(bad), image, bad)


def rician(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Take the magnitude after complex noise of sd ``strength``, as of MR.

    It raises dark regions: the mean at intensity 0 is ``strength`` * sqrt(pi / 2).
    """
    real, imaginary = random.normal(0.0, strength, (2, *image.shape))
    return np.hypot(image + real, imaginary)
