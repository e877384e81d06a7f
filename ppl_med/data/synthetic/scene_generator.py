"""Synthetic scenes of five classes that flip: the probability of every mask is known exactly.

Every image is five bands, one for each class, in random order and direction, with random wavy
borders. A pixel's intensity tells its class, at ten noise standard deviations from the next, so
nothing is ambiguous but the flips of ``ClassFlips``: given the image, each of 32 masks has a known
probability, the same for all images. Their entropy is 3.1696 nats, which no model's negative
log-likelihood can beat on average.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import finite, whole
from ppl_med.data.random_streams import random_stream
from ppl_med.data.synthetic.class_flips import ClassFlips

NUM_CLASSES = 5
SCENE_FLIPS = ClassFlips(("road", "pavement", "car", "pedestrian", "tree"), range(NUM_CLASSES))
THINNEST = 3  # pixels that every band has at least, across
_LEVELS = np.arange(NUM_CLASSES, dtype=np.float32) - NUM_CLASSES // 2
_MAPS, _FLIPS, _NOISE = range(3)  # streams of random numbers


def scenes(
    num_cases: int,
    *,
    size: int = 32,
    num_graders: int | None = None,
    noise: float = 0.1,
    seed: int = 0,
) -> dict[str, Any]:
    """Generate scenes with flipped masks and the masks before flipping.

    All modes of a case are ``SCENE_FLIPS.mode_masks(arrays["unflipped_mask"][case])``, their
    probabilities ``SCENE_FLIPS.mode_probabilities()``. With one ``seed``, the images are the same
    whatever ``num_graders`` is.

    Args:
        num_cases: Number of images.
        size: Rows and columns, pixels, at least 24.
        num_graders: Annotations of every image, each with its own flips; None for one, without
            an axis of graders.
        noise: Standard deviation of the pixels; class levels are 1 apart, from -2 to 2.
        seed: Seed of everything drawn at random.

    Returns:
        "image" float32 (case, channel=1, row, col), mean about 0; "mask" int8 (case, row, col) or
        (case, grader, row, col), ids of ``SCENE_FLIPS.class_names``; "unflipped_mask" int8 (case,
        row, col); "mode" int64 (case) or (case, grader), the number of the mode drawn; "id" str
        (case), "scene-000000" and on.

    Raises:
        ValueError: An argument is out of its range.
    """
    whole("num_cases", num_cases)
    whole("size", size, 24, fix="five wavy bands need the room")
    if num_graders is not None:
        whole("num_graders", num_graders, fix="give None for one mask without an axis of graders")
    finite("noise", noise, 0)
    unflipped = _maps(random_stream(seed, _MAPS), num_cases, size)
    pixels = random_stream(seed, _NOISE).standard_normal(unflipped.shape, np.float32)
    image = _LEVELS[unflipped] + np.float32(noise) * pixels
    graders = num_graders or 1
    chance = SCENE_FLIPS.probabilities
    flips = random_stream(seed, _FLIPS).random((num_cases, graders, len(chance))) < chance
    flat = np.repeat(unflipped, graders, 0)
    mask = SCENE_FLIPS.flip(flat, flips.reshape(-1, len(chance)))
    shape = (num_cases,) if num_graders is None else (num_cases, graders)
    return {
        "image": image[:, None],
        "mask": mask.reshape(*shape, size, size),
        "unflipped_mask": unflipped,
        "mode": (flips @ (1 << np.arange(len(chance)))).reshape(shape),
        "id": np.array([f"scene-{case:06d}" for case in range(num_cases)]),
    }


def _maps(random: np.random.Generator, num_cases: int, size: int) -> NDArray[np.int8]:
    """Class of every pixel, dims (case, row, col), all five in each."""
    wave = random.uniform(0, size / 16, (num_cases, 1))
    # What every band needs: the outer ones also room for the wave. The rest is spread at random.
    needed = np.full((num_cases, NUM_CLASSES), THINNEST + 1.0)
    needed[:, [0, -1]] += wave
    spare = size - needed.sum(1, keepdims=True)
    width = needed + spare * random.dirichlet(np.ones(NUM_CLASSES), num_cases)
    border = width.cumsum(1)[:, :-1].astype(np.float32)
    along = np.arange(size) + 0.5
    turns, phase = random.uniform(0.3, 2, (num_cases, 1)), random.uniform(0, 1, (num_cases, 1))
    shift = wave * np.sin(2 * np.pi * (turns * along / size + phase))
    place = (along[:, None] + shift[:, None, :]).astype(np.float32)  # case, across, along
    band = np.zeros(place.shape, np.int8)
    for k in range(NUM_CLASSES - 1):
        band += place > border[:, k, None, None]
    order = random.permuted(np.tile(np.arange(NUM_CLASSES, dtype=np.int8), (num_cases, 1)), axis=1)
    classes = np.take_along_axis(order, band.reshape(num_cases, -1), 1).reshape(band.shape)
    standing = random.random(num_cases) < 0.5
    return np.where(standing[:, None, None], classes.transpose(0, 2, 1), classes)
