"""Synthetic lesions on which graders disagree, as the image says: every probability is known.

Each image shows one bright blob of contrast score c and blurriness b, both uniform on 0..1. A
grader outlines nothing, or the blob in one of three styles, small, medium or large:

    P(outlined | image)         = sigmoid(6 (c - 0.5))
    P(style | outlined, image)  = softmax(a + B b)

Graders decide independently. So a faint blob has mostly empty masks, a sharp one mostly medium and
a blurred one mostly large outlines: a model whose latent ignores the image cannot be calibrated.
The blob's height is 0.2 + 0.8 c over a noise of 0.05, so c, b and the outlines can be read off the
image; what is left unknown is what the graders toss.

The design follows the LIDC lung nodules, which up to four readers outlined or left out.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import whole
from ppl_med.data.random_streams import random_stream

CLASS_NAMES = ("background", "lesion")
STYLES = ("small", "medium", "large")
STYLE_SCALES = (0.75, 1.0, 1.25)  # radius of the outline over the radius of the blob
NOISE = 0.05
_SHARP = np.log([0.2, 0.7, 0.1])  # a: logits of the styles at blurriness 0
_BLURRED = np.log([0.15, 0.2, 0.65])  # a + B: at blurriness 1
_BLOCK = 512  # cases rendered at a time, which bounds the memory
_BLOBS, _GRADERS, _NOISE = range(3)  # streams of random numbers


def lesions(
    num_cases: int, *, size: int = 64, num_graders: int | None = 4, seed: int = 0
) -> dict[str, Any]:
    """Generate blobs, graders' masks of them, and the probabilities by which they were drawn.

    With one ``seed``, the images are the same whatever ``num_graders`` is.

    Args:
        num_cases: Number of images.
        size: Rows and columns, pixels, at least 32.
        num_graders: Masks of every image, drawn independently; None for one, without an axis of
            graders.
        seed: Seed of everything drawn at random.

    Returns:
        "image" float32 (case, channel=1, row, col), background 0; "mask" int8 (case, grader, row,
        col) or (case, row, col), ids of ``CLASS_NAMES``; "mode" int64 (case, grader) or (case),
        what was drawn: 0 nothing, 1.. a style; "mode_mask" int8 (case, mode=4, row, col);
        "mode_probability" float64 (case, mode=4); "presence_probability" float64 (case), of any
        outline; "style_probability" float64 (case, style=3), given one; "contrast" and
        "blurriness" float64 (case); "id" str (case), "lesion-000000" and on.

    Raises:
        ValueError: An argument is out of its range.
    """
    whole("num_cases", num_cases)
    whole("size", size, 32, fix="in fewer pixels the three outlines are hardly different")
    if num_graders is not None:
        whole("num_graders", num_graders, fix="give None for one mask without an axis of graders")
    blobs, noise = random_stream(seed, _BLOBS), random_stream(seed, _NOISE)
    contrast, blurriness = blobs.random((2, num_cases))
    image = np.empty((num_cases, 1, size, size), np.float32)
    outlines = np.zeros((num_cases, 1 + len(STYLES), size, size), np.int8)
    for start in range(0, num_cases, _BLOCK):
        rows = slice(start, start + _BLOCK)
        image[rows, 0], outlines[rows, 1:] = _render(blobs, contrast[rows], blurriness[rows], size)
        image[rows] += NOISE * noise.standard_normal(image[rows].shape, np.float32)
    presence, style = presence_probability(contrast), style_probability(blurriness)
    chance = np.concatenate([1 - presence[:, None], presence[:, None] * style], 1)
    mode = _draw(random_stream(seed, _GRADERS), chance, num_graders or 1)
    mask = np.take_along_axis(outlines, mode[:, :, None, None], 1)
    return {
        "image": image,
        "mask": mask[:, 0] if num_graders is None else mask,
        "mode": mode[:, 0] if num_graders is None else mode,
        "mode_mask": outlines,
        "mode_probability": chance,
        "presence_probability": presence,
        "style_probability": style,
        "contrast": contrast,
        "blurriness": blurriness,
        "id": np.array([f"lesion-{case:06d}" for case in range(num_cases)]),
    }


def presence_probability(contrast: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability that a grader outlines anything, dims as ``contrast``."""
    return 1 / (1 + np.exp(-6 * (contrast - 0.5)))


def style_probability(blurriness: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of every style, given an outline, dims (case, style)."""
    logits = _SHARP + (_BLURRED - _SHARP) * blurriness[:, None]
    odds = np.exp(logits)
    return odds / odds.sum(1, keepdims=True)


def _draw(random: np.random.Generator, chance: NDArray, num_graders: int) -> NDArray[np.int64]:
    """One mode for each grader by inversion, dims (case, grader)."""
    uniform = random.random((len(chance), num_graders, 1))
    # Rounding may leave the last sum below 1, so it is left out.
    return (uniform >= chance.cumsum(1)[:, None, :-1]).sum(-1)


def _render(
    random: np.random.Generator, contrast: NDArray, blurriness: NDArray, size: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Images without noise (case, row, col) and the three outlines (case, style, row, col)."""
    num_cases = len(contrast)
    radius = random.uniform(0.13, 0.2, num_cases) * size
    stretch = random.uniform(0.85, 1.15, num_cases)
    reach = radius * 1.15 * STYLE_SCALES[-1] * 1.1 + 1
    centre = reach + (size - 2 * reach) * random.random((2, num_cases))
    lumps, phase = random.uniform(0, 0.08, num_cases), random.uniform(0, 2 * np.pi, num_cases)
    axis = np.arange(size, dtype=np.float32) + 0.5
    across = (axis[:, None] - _each(centre[0])) * _each(stretch)
    along = (axis - _each(centre[1])) / _each(stretch)
    distance, angle = np.hypot(across, along), np.arctan2(across, along)
    outline = _each(radius) * (1 + _each(lumps) * np.cos(3 * angle + _each(phase)))
    soft = _each(size / 64 * (0.4 + 3.0 * blurriness))  # pixels over which the edge falls off
    height = _each(0.2 + 0.8 * contrast)
    image = height / (1 + np.exp(np.clip((distance - outline) / soft, -60, 60)))
    inside = [distance <= scale * outline for scale in STYLE_SCALES]
    return image, np.stack(inside, 1)


def _each(values: NDArray) -> NDArray[np.float32]:
    """One number per case, shaped to meet (case, row, col)."""
    return values.astype(np.float32)[:, None, None]
