"""Synthetic depth scenes whose noise is known: mean and standard deviation follow from the image.

An image has three channels in 0..1: red, green and blue. Far things are hazy, which is blue; dark
things give the sensor little light, which is noise. With B the binomial blur of 5 x 5 pixels
(weights 1, 4, 6, 4, 1 over 16 along each axis, the border repeated), at every pixel

    haze         h  =  B[blue]
    brightness   v  =  B[(red + green) / 2]
    mean depth   m  =  3 + 8 h²                metres
    noise sd     s  =  0.05 · 20^(1 - v)       metres: 0.55 where v is 0.2, 0.09 where it is 0.8
    depth           =  m + s e                 e of mean 0 and sd 1, independent between pixels

so a net that sees 5 x 5 pixels can know both maps, and log s is linear in v. This holds for the
image as it is given, shifted or not. Outliers, if there are any, replace the depth by a draw from
12 to 20 m, beyond every mean, as an echo from elsewhere would: they pull to one side.

A scene is a ground that recedes from the bottom row to the top, with waves of haze and brightness,
and three discs of their own haze and brightness. The two are drawn apart and do not correlate, so
the noise cannot be read from the depth. Red and green differ by 0.05 at most.

Shifted scenes are drawn from the same h and v, and differ only in what neither map looks at:

    "colour"    red and green differ by 0.3 to 0.4 everywhere: a hue that no scene has
    "texture"   stripes or a chessboard of one pixel's width, ±0.15, in all channels, which B
                takes away except at the border

A posterior should doubt its weights there, while the noise is what it was.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import choice, share, whole
from ppl_med.data.random_streams import random_stream

NEAREST, SPAN = 3.0, 8.0  # metres
NOISE_AT_WHITE, NOISE_RATIO = 0.05, 20.0  # metres; ratio of black to white
OUTLIER_RANGE = (12.0, 20.0)  # metres
NUM_DISCS = 3
NUM_WAVES = 3
_CHUNK = 128  # scenes made at a time
_LAYOUT, _HUE, _TEXTURE, _NOISE, _OUTLIERS = range(5)  # streams of random numbers


def depth_scenes(
    num_cases: int,
    *,
    size: int = 64,
    noise: Literal["gaussian", "laplace"] = "gaussian",
    outlier_fraction: float = 0.0,
    shift: Literal["none", "colour", "texture"] = "none",
    seed: int = 0,
) -> dict[str, Any]:
    """Generate scenes, with the mean and the standard deviation of their depths.

    With one ``seed``, haze, brightness and noise are the same whatever ``outlier_fraction`` and
    ``shift`` are.

    Args:
        num_cases: Number of scenes.
        size: Rows and columns, pixels, at least 16.
        noise: Family of the noise; ``noise_sd`` is its standard deviation in both.
        outlier_fraction: Probability that a pixel's depth is an outlier, at least 0, below 1.
        shift: Which scenes; see above.
        seed: Seed of everything drawn at random.

    Returns:
        "image" float32 (case, channel=3, row, col), 0..1; "depth" float32 (case, row, col), metres,
        what was measured; "mean_depth" and "noise_sd" float32 (case, row, col), metres, of
        the depth of pixels that are no outliers; "outlier" bool (case, row, col); "id" str (case),
        "depth-scene-000000" and on, with "-colour" or "-texture" in shifted ones.

    Raises:
        ValueError: An argument is out of its range.
    """
    whole("num_cases", num_cases)
    whole("size", size, 16)
    choice("noise", noise, ("gaussian", "laplace"))
    share("outlier_fraction", outlier_fraction)
    choice("shift", shift, ("none", "colour", "texture"))
    image = np.empty((num_cases, 3, size, size), np.float32)
    for index, start in enumerate(range(0, num_cases, _CHUNK)):
        part = image[start : start + _CHUNK]
        haze, brightness = _maps(random_stream(seed, _LAYOUT, index), len(part), size)
        hue = _hue(random_stream(seed, _HUE, index), len(part), shift)
        part[:, 0], part[:, 1], part[:, 2] = brightness + hue, brightness - hue, haze
        if shift == "texture":
            part += _texture(random_stream(seed, _TEXTURE, index), len(part), size)
    mean, sd = _mean_and_sd(image)
    standard = _standard(random_stream(seed, _NOISE), mean.shape, noise)
    depth = mean + sd * standard
    outlier = np.zeros(mean.shape, bool)
    if outlier_fraction:
        random = random_stream(seed, _OUTLIERS)
        outlier = random.random(mean.shape, np.float32) < outlier_fraction
        low, high = OUTLIER_RANGE
        depth[outlier] = random.uniform(low, high, int(outlier.sum()))
    suffix = "" if shift == "none" else f"-{shift}"
    return {
        "image": image,
        "depth": depth,
        "mean_depth": mean,
        "noise_sd": sd,
        "outlier": outlier,
        "id": np.array([f"depth-scene-{case:06d}{suffix}" for case in range(num_cases)]),
    }


def _mean_and_sd(image: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and standard deviation of the depth, metres, from an image as it is given."""
    pixels = np.asarray(image, np.float32)
    haze, brightness = _blur(pixels[:, 2]), _blur((pixels[:, 0] + pixels[:, 1]) / 2)
    mean = NEAREST + SPAN * np.square(haze)
    slope = np.float32(np.log(NOISE_RATIO))
    return mean, NOISE_AT_WHITE * np.exp(slope * (1 - brightness))


def _blur(maps: NDArray[Any]) -> NDArray[Any]:
    """Binomial blur of 5 x 5 pixels, dims (case, row, col), the border repeated."""
    weights = np.array([1, 4, 6, 4, 1], np.float32) / 16
    rows, cols = maps.shape[1:]
    wide = np.pad(maps, ((0, 0), (2, 2), (2, 2)), mode="edge")
    tall = sum(weight * wide[:, k : k + rows] for k, weight in enumerate(weights))
    return sum(weight * tall[..., k : k + cols] for k, weight in enumerate(weights))


def _maps(
    random: np.random.Generator, num_cases: int, size: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Haze in 0.15..0.85 and brightness in 0.2..0.8, dims (case, row, col)."""
    far = 1 - (np.arange(size, dtype=np.float32) + 0.5) / size
    low, high = random.uniform(0.0, 0.3, (num_cases, 1)), random.uniform(0.6, 1.0, (num_cases, 1))
    ground = (low + (high - low) * far).astype(np.float32)
    haze = ground[:, :, None] + 0.15 * _waves(random, num_cases, size)
    brightness = 0.5 + 0.6 * _waves(random, num_cases, size)
    place = (np.arange(size, dtype=np.float32) + 0.5) / size
    for _ in range(NUM_DISCS):
        centre = random.random((2, num_cases, 1), np.float32)
        radius = random.uniform(0.08, 0.25, (num_cases, 1, 1)).astype(np.float32)
        rows, cols = np.square(place - centre[0]), np.square(place - centre[1])
        inside = rows[:, :, None] + cols[:, None, :] < np.square(radius)
        levels = random.random((2, num_cases, 1, 1), np.float32)
        haze = np.where(inside, levels[0], haze)
        shade = levels[1] + 0.3 * (brightness - 0.5)
        brightness = np.where(inside, shade, brightness)
    return 0.15 + 0.7 * haze.clip(0, 1), 0.2 + 0.6 * brightness.clip(0, 1)


def _waves(random: np.random.Generator, num_cases: int, size: int) -> NDArray[Any]:
    """A sum of slow waves in random directions, within -1..1, dims (case, row, col)."""
    place = np.arange(size, dtype=np.float32) / size
    total = np.zeros((num_cases, size, size), np.float32)
    for _ in range(NUM_WAVES):
        turns = random.uniform(-2.5, 2.5, (2, num_cases, 1)).astype(np.float32)
        phase = random.random((num_cases, 1), np.float32)
        across, along = (2 * np.pi * (turns[0] * place + phase), 2 * np.pi * turns[1] * place)
        total += np.cos(across)[:, :, None] * np.cos(along)[:, None, :]
        total -= np.sin(across)[:, :, None] * np.sin(along)[:, None, :]
    return total / NUM_WAVES


def _hue(random: np.random.Generator, num_cases: int, shift: str) -> NDArray[Any]:
    """Half of red minus green, one a scene, dims (case, 1, 1)."""
    share = random.random((num_cases, 1, 1), np.float32)
    if shift == "colour":
        sign = random.choice(np.array([-1, 1], np.float32), (num_cases, 1, 1))
        return sign * (0.15 + 0.05 * share)
    return 0.025 * (2 * share - 1)


def _texture(random: np.random.Generator, num_cases: int, size: int) -> NDArray[Any]:
    """Stripes along rows or columns, or a chessboard, dims (case, 1, row, col)."""
    alternating = (1 - 2 * (np.arange(size) % 2)).astype(np.float32)
    kinds = np.stack(
        [
            np.broadcast_to(alternating[:, None], (size, size)),
            np.broadcast_to(alternating, (size, size)),
            alternating[:, None] * alternating,
        ]
    )
    return 0.15 * kinds[random.integers(len(kinds), size=num_cases)][:, None]


def _standard(random: np.random.Generator, shape: tuple[int, ...], noise: str) -> NDArray[Any]:
    """Noise of mean 0 and standard deviation 1."""
    if noise == "gaussian":
        return random.standard_normal(shape, np.float32)
    sides = random.choice(np.array([-1, 1], np.float32), shape)
    return sides * random.standard_exponential(shape, np.float32) / np.float32(np.sqrt(2))
