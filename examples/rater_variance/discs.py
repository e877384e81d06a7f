"""Discs that raters outline narrowly or widely, and what is known about them.

An image shows one soft disc on a noisy ground, of height 0.4 + 0.6 c with c uniform on 0..1. A
rater draws the wide outline with probability

    p = sigmoid(6 (c - 0.5))

and the narrow one otherwise, both around the same centre. With A pixels in the wide and a in the
narrow outline the area has mean a + (A - a) p and variance p (1 - p) (A - a)^2 between raters,
exactly. One rater annotates an image, once.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_med.data.random_streams import random_stream

SIZE = 16  # rows and columns
RADII = (2.5, 5.0)  # of the narrow and the wide outline, pixels
CLASSES = ("background", "disc")
_SLOPE = 6.0
_NOISE = 0.05
_SHIFT = 2  # most that a centre is off the middle, pixels
_PARTS = {"train": 0, "val": 1, "test": 2}
_PRIOR_SD = 10.0  # of both numbers of the logistic regression
_NEWTON = 20  # steps to its most probable values
_GRID = np.linspace(-6, 6, 49)  # posterior standard deviations


def discs(num_cases: int, seed: int, part: str) -> dict[str, Any]:
    """Generate images and one rater's mask of each; fewer of a seed are the first of more.

    Args:
        num_cases: Number of images.
        seed: Seed of everything drawn at random.
        part: "train", "val" or "test", which have no image in common.

    Returns:
        "image" float32 (case, channel=1, row, col); "mask" int64 (case, row, col), 1 inside;
        "contrast" float64 (case), c; "wide" int64 (case), 1 for the wide outline; "id" (case).
    """
    streams = [random_stream(seed, _PARTS[part], place) for place in range(4)]
    contrast = streams[0].random(num_cases)
    shift = streams[1].integers(-_SHIFT, _SHIFT + 1, (num_cases, 2))
    axis = np.arange(SIZE) - SIZE // 2
    rows, cols = axis[:, None] - shift[:, :1, None], axis - shift[:, 1:, None]
    distance = np.hypot(rows, cols)
    soft = 1 / (1 + np.exp(distance - np.mean(RADII)))
    image = (0.4 + 0.6 * contrast)[:, None, None] * soft
    image += _NOISE * streams[2].standard_normal(image.shape)
    wide = streams[3].random(num_cases) < wide_probability(contrast)
    radius = np.where(wide, RADII[1], RADII[0])[:, None, None]
    return {
        "image": 2 * image[:, None].astype(np.float32),
        "mask": (distance <= radius).astype(np.int64),
        "contrast": contrast,
        "wide": wide.astype(np.int64),
        "id": [f"{part}-{case:05d}" for case in range(num_cases)],
    }


def add_noise(batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
    """New noise on the images of a batch, as much again, so that no image is known by its own."""
    image = batch["image"]
    noise = 2 * _NOISE * torch.randn(image.shape, generator=generator)
    return batch | {"image": image + noise}


def wide_probability(contrast: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of the wide outline, dims as ``contrast``."""
    return np.asarray(1 / (1 + np.exp(-_SLOPE * (contrast - 0.5))))


def areas() -> tuple[int, int]:
    """Pixels in the narrow and in the wide outline."""
    axis = np.arange(-SIZE, SIZE + 1)
    distance = np.hypot(axis[:, None], axis)
    narrow, wide = (int((distance <= radius).sum()) for radius in RADII)
    return narrow, wide


def true_area(contrast: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of the area (case), pixels, and its variance between raters (case), pixels^2."""
    probability, (narrow, wide) = wide_probability(contrast), areas()
    mean = narrow + (wide - narrow) * probability
    return mean, probability * (1 - probability) * (wide - narrow) ** 2


def area_variance_of_regression(
    contrast: NDArray[np.float64], wide: NDArray[np.int64], at: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What a logistic regression that is told c leaves unknown of the mean area, pixels^2.

    Its posterior, with normal priors of sd 10 on intercept (at c = 0.5) and slope, on a grid: what
    is the least that lies between the weights of a model that must learn to read c besides.

    Args:
        contrast: Of the training images (case).
        wide: Outlines there (case).
        at: Contrasts where the mean area is asked (case).
    """
    design = np.stack([np.ones(len(contrast)), contrast - 0.5])
    centre = np.zeros(2)
    for _ in range(_NEWTON):
        probability = 1 / (1 + np.exp(-centre @ design))
        gradient = design @ (wide - probability) - centre / _PRIOR_SD**2
        weighted = design * (probability * (1 - probability))
        precision = weighted @ design.T + np.eye(2) / _PRIOR_SD**2
        centre = centre + np.linalg.solve(precision, gradient)
    # Nodes in units of the posterior's own spread, weighted by the posterior itself.
    nodes = np.stack(np.meshgrid(_GRID, _GRID)).reshape(2, -1)
    numbers = centre[:, None] + np.linalg.cholesky(np.linalg.inv(precision)) @ nodes
    logits = numbers.T @ design
    log_weight = (wide * logits - np.logaddexp(0, logits)).sum(1)
    log_weight -= (numbers**2).sum(0) / (2 * _PRIOR_SD**2)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    asked = np.stack([np.ones(len(at)), at - 0.5])
    found = 1 / (1 + np.exp(-numbers.T @ asked))
    mean = weight @ found
    narrow, large = areas()
    return np.asarray(weight @ (found - mean) ** 2 * (large - narrow) ** 2)
