"""Other brightness, contrast or stain. Images have intensities in [0, 1]."""

import numpy as np

# Optical density of haematoxylin, eosin and DAB in red, green, blue (Ruifrok and Johnston, 2001).
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_STAINS /= np.linalg.norm(_STAINS, axis=1, keepdims=True)
_DARKEST = 1e-6


def brightness(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Multiply by ``1 + strength``; below 0 it gets darker."""
    return image * (1.0 + strength)


def contrast(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Multiply the distance from the mean of each channel by ``1 + strength``."""
    mean = image.mean(tuple(range(1, image.ndim)), keepdims=True)
    return mean + (image - mean) * (1.0 + strength)


def gamma(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Raise to the power ``1 + strength``; above 0 it gets darker."""
    return image.clip(0, None) ** (1.0 + strength)


def stain(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Take more or less of haematoxylin, eosin and the rest, each by a random factor.

    Factors are drawn from ``1 - strength`` to ``1 + strength``; for images of three channels.

    Raises:
        ValueError: The image has other than three channels.
    """
    if image.shape[0] != 3:
        raise ValueError(
            f"image has {image.shape[0]} channel(s); name='stain' needs red, green and blue"
        )
    density = -np.log(image.clip(_DARKEST, 1.0))
    amounts = np.tensordot(np.linalg.inv(_STAINS).T, density, 1)
    factors = random.uniform(1 - strength, 1 + strength, 3).reshape(3, *[1] * (image.ndim - 1))
    return np.exp(-np.tensordot(_STAINS.T, amounts * factors, 1))
