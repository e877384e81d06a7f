"""Synthetic red blood cells with and without malaria parasites: every pixel of the truth is known.

Each image is one segmented cell on black, grey, as in the malaria crops of the NIH:

    cell       lumpy ellipse, soft edge, central pallor, uneven light, stain texture, noise
    artefacts  platelets at the rim, smudges of stain and pale spots inside the cell
    parasite   one or two dark rings with a chromatin dot inside the cell     (infected cells only)
    label      infected or not, flipped with probability ``label_noise``

Cells, artefacts and noise are drawn before, and apart from, the infection: both classes have the
same distribution of everything except the parasite, and the parasite alone decides the clean label.

Units: lengths are fractions of half the image side, intensities are grey levels 0..255.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import finite, whole
from ppl_med.data.random_streams import random_stream

Field = NDArray[np.float32]  # dims (case, row, col)

_BLOCK = 512  # cells rendered at a time, which bounds the memory
_CELLS, _PARASITES, _LABELS = range(3)  # streams of random numbers
_SHALLOW = 0.08  # relative darkening below which a pixel is not called parasite


class _Cells(NamedTuple):
    """Healthy cells, and where a parasite may lie."""

    image: Field  # grey levels
    cover: Field  # share of the pixel covered by the cell
    centre: NDArray[np.float64]  # dims (case, 2): row, col
    inner: NDArray[np.float64]  # dims (case): radius of a disc that lies within the cell


def blood_smear(
    num_cases: int,
    *,
    size: int = 32,
    parasitized: float = 0.5,
    label_noise: float = 0.05,
    seed: int = 0,
) -> dict[str, Any]:
    """Generate cells with known class, known parasite pixels and noisy labels.

    With the same ``seed``, ``num_cases`` and ``size`` the cells are the same whatever
    ``parasitized`` is: ``parasitized=0`` renders every case's healthy twin, equal outside ``mask``
    and different at every pixel inside it.

    Args:
        num_cases: Number of cells.
        size: Rows and columns of the image, pixels, at least 16.
        parasitized: Probability that a cell is infected.
        label_noise: Probability that ``label`` is the wrong one, at most 0.5.
        seed: Seed of everything drawn at random.

    Returns:
        "image" uint8 (case, channel=1, row, col), grey levels; "label" int64 (case), 1 is
        parasitized, as an observer gave it; "clean_label" int64 (case), the truth; "mask" bool
        (case, row, col), the parasite's pixels; "id" str (case), "cell-000000" and on.

    Raises:
        ValueError: An argument is out of its range.
    """
    whole("num_cases", num_cases)
    whole("size", size, 16, fix="in fewer pixels a parasite cannot be drawn")
    finite("parasitized", parasitized, 0, 1)
    finite("label_noise", label_noise, 0, 0.5)
    labels = random_stream(seed, _LABELS, 0)
    clean_label = (labels.random(num_cases) < parasitized).astype(np.int64)
    flipped = labels.random(num_cases) < label_noise
    image = np.empty((num_cases, 1, size, size), np.uint8)
    mask = np.empty((num_cases, size, size), bool)
    for block, start in enumerate(range(0, num_cases, _BLOCK)):
        rows = slice(start, start + _BLOCK)
        infected = clean_label[rows] == 1
        cells = _cells(random_stream(seed, _CELLS, block), len(infected), size)
        dark = _parasites(random_stream(seed, _PARASITES, block), cells) * infected[:, None, None]
        image[rows, 0] = np.clip(cells.image * (1 - dark), 0, 255).round()
        mask[rows] = dark > 0
    return {
        "image": image,
        "label": np.where(flipped, 1 - clean_label, clean_label),
        "clean_label": clean_label,
        "mask": mask,
        "id": np.array([f"cell-{case:06d}" for case in range(num_cases)]),
    }


def _cells(random: np.random.Generator, num_cases: int, size: int) -> _Cells:
    """Draw healthy cells, artefacts and noise included."""
    centre = random.uniform(-0.05, 0.05, (num_cases, 2))
    radius = random.uniform(0.78, 0.94, num_cases)
    stretch = 1 + random.exponential(0.06, num_cases).clip(max=0.4)
    distance, direction = _polar(random, centre, size, stretch)
    outline = _outline(random, radius, direction)
    edge = random.uniform(0.008, 0.02, num_cases).astype(np.float32)
    cover = 1 / (1 + np.exp(np.clip(_each(1 / edge) * (distance - outline), -60, 60)))
    grey = _each(random.normal(168, 17, num_cases).clip(115, 215)) + np.zeros_like(distance)
    pallor, width = random.gamma(1, 13, num_cases).clip(0, 50), random.uniform(0.2, 0.45, num_cases)
    grey += _each(pallor) * np.exp(-((distance / _each(width * 1.4)) ** 2))
    rim = random.normal(0, 8, num_cases)
    grey += _each(rim) * np.clip(distance / outline, 0, 1) ** 6
    grey += _light(random, num_cases, size) + _texture(random, num_cases, size)
    grey *= 1 - _smudges(random, centre, radius, size)
    grey += _pale_spots(random, centre, radius, size)
    image, cover_all = _platelets(random, centre, radius, grey, cover)
    image += cover_all * random.normal(0, 1.5, image.shape).astype(np.float32)
    inner = outline.min((1, 2)) / stretch
    return _Cells(image.clip(0, 255), cover, centre, inner)


def _parasites(random: np.random.Generator, cells: _Cells) -> Field:
    """Draw what a parasite would take from each pixel's brightness: 0 none, 1 all of it."""
    num_cases, size = len(cells.image), cells.image.shape[1]
    thinnest = 1.4 / size  # 0.7 pixels: anything thinner could fall between two of them
    dark = np.zeros_like(cells.image)
    second = random.random(num_cases) < 0.3
    for present in (np.ones(num_cases, bool), second):
        place = _inside(random, cells.centre, cells.inner * 0.6)
        ring = random.uniform(0.1, 0.25, num_cases).clip(max=cells.inner * 0.35)
        angle = random.uniform(0, 2 * np.pi, num_cases)
        faint = random.uniform(0.18, 0.45, num_cases) * present
        distance, direction = _polar(random, place, size, 1 + random.exponential(0.12, num_cases))
        wall = _each(random.uniform(0.045, 0.085, num_cases).clip(thinnest))
        open_side = random.uniform(0, 2 * np.pi, num_cases)
        closed = 0.65 + 0.35 * np.cos(direction - _each(open_side))
        arc = closed * np.exp(-(((distance - _each(ring)) / wall) ** 2))
        dark = np.maximum(dark, _each(faint) * arc)
        dot = place + ring[:, None] * np.stack([np.sin(angle), np.cos(angle)], 1)
        depth = random.uniform(0.3, 0.65, num_cases) * present
        spread = random.uniform(0.07, 0.11, num_cases).clip(thinnest)
        dark = np.maximum(dark, _blob(dot, spread, depth, size))
    return np.where((dark > _SHALLOW) & (cells.cover > 0.5), dark, 0).astype(np.float32)


def _outline(random: np.random.Generator, radius: NDArray, direction: Field) -> Field:
    """Radius of the cell in every direction: harmonics 2 to 11, ragged in some cells."""
    ragged = random.lognormal(-4.2, 0.6, len(radius))
    outline = np.ones_like(direction)
    for harmonic in range(2, 12):
        amplitude = ragged * random.normal(0, 3 / harmonic, len(radius))
        phase = random.uniform(0, 2 * np.pi, len(radius))
        outline += _each(amplitude) * np.cos(np.float32(harmonic) * direction + _each(phase))
    return np.minimum(_each(radius) * outline.clip(0.55), np.float32(0.97))


def _light(random: np.random.Generator, num_cases: int, size: int) -> Field:
    """Uneven illumination: a plane, up to about 20 grey levels from side to side."""
    axis, slope = _axis(size), random.normal(0, 5, (2, num_cases))
    return _each(slope[0]) * axis[:, None] + _each(slope[1]) * axis


def _texture(random: np.random.Generator, num_cases: int, size: int) -> Field:
    """Uneven stain: white noise on a coarse grid, interpolated by Gaussian weights."""
    knots, axis = np.linspace(-1.1, 1.1, 9, dtype=np.float32), _axis(size)
    weights = np.exp(-(((axis[:, None] - knots) / 0.22) ** 2))
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    coarse = random.standard_normal((num_cases, 9, 9), np.float32)
    strength = random.gamma(2, 1.5, num_cases)
    return _each(strength) * (weights @ coarse @ weights.T)


def _smudges(random: np.random.Generator, centre: NDArray, radius: NDArray, size: int) -> Field:
    """Stain precipitate: up to three soft streaks, as a relative darkening."""
    num_cases = len(radius)
    dark = np.zeros((num_cases, size, size), np.float32)
    count = random.poisson(0.7, num_cases)
    for slot in range(3):
        place = _inside(random, centre, radius * 0.95)
        long, short = random.uniform(0.07, 0.28, num_cases), random.uniform(0.06, 0.11, num_cases)
        depth = random.uniform(0.08, 0.45, num_cases) * (count > slot)
        angle = random.uniform(0, np.pi, num_cases)
        dark = np.maximum(dark, _blob(place, short, depth, size, long=long, angle=angle))
    return dark


def _pale_spots(random: np.random.Generator, centre: NDArray, radius: NDArray, size: int) -> Field:
    """Refractile spots: up to two, in grey levels."""
    num_cases = len(radius)
    light = np.zeros((num_cases, size, size), np.float32)
    count = random.poisson(0.25, num_cases)
    for slot in range(2):
        place = _inside(random, centre, radius * 0.7)
        height = random.uniform(12, 45, num_cases) * (count > slot)
        light += _blob(place, random.uniform(0.07, 0.16, num_cases), height, size)
    return light


def _platelets(
    random: np.random.Generator, centre: NDArray, radius: NDArray, grey: Field, cover: Field
) -> tuple[Field, Field]:
    """Lay up to two platelets across the rim; return the image and what is not background."""
    num_cases, size = len(radius), grey.shape[1]
    image, cover_all = grey * cover, cover
    count = random.poisson(0.4, num_cases)
    for slot in range(2):
        angle = random.uniform(0, 2 * np.pi, num_cases)
        reach = (radius * random.uniform(0.95, 1.1, num_cases)).clip(max=0.92)
        place = centre + reach[:, None] * np.stack([np.sin(angle), np.cos(angle)], 1)
        extent = _each(random.uniform(0.08, 0.16, num_cases))
        distance, _ = _polar(random, place, size, 1 + random.exponential(0.2, num_cases))
        alpha = 1 / (1 + np.exp(np.clip((distance - extent) / np.float32(0.03), -60, 60)))
        alpha *= _each(count > slot)
        level = _each(random.uniform(95, 165, num_cases)) - 25 * np.exp(-((distance / 0.07) ** 2))
        image = image * (1 - alpha) + level * alpha
        cover_all = np.maximum(cover_all, alpha)
    return image, cover_all


def _axis(size: int) -> NDArray[np.float32]:
    """Coordinates of the pixel centres along a side, from -1 to 1."""
    return ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)


def _each(values: NDArray) -> NDArray[np.float32]:
    """One number per case, shaped to meet (case, row, col)."""
    return values.astype(np.float32)[:, None, None]


def _inside(random: np.random.Generator, centre: NDArray, radius: NDArray) -> NDArray[np.float64]:
    """Points uniform on discs, dims (case, 2)."""
    angle = random.uniform(0, 2 * np.pi, len(radius))
    reach = radius * np.sqrt(random.random(len(radius)))
    return centre + reach[:, None] * np.stack([np.sin(angle), np.cos(angle)], 1)


def _polar(
    random: np.random.Generator, place: NDArray, size: int, stretch: NDArray
) -> tuple[Field, Field]:
    """Distance from and direction about a point, along a random axis shortened by ``stretch``."""
    first, second = _turned(place, size, random.uniform(0, np.pi, len(place)))
    second = second * _each(stretch)
    return np.hypot(first, second), np.arctan2(second, first)


def _turned(place: NDArray, size: int, angle: NDArray) -> tuple[Field, Field]:
    """Coordinates about a point, along an axis at an angle and across it."""
    axis = _axis(size)
    across, along = axis[:, None] - _each(place[:, 0]), axis - _each(place[:, 1])
    sine, cosine = _each(np.sin(angle)), _each(np.cos(angle))
    return cosine * along + sine * across, cosine * across - sine * along


def _blob(
    place: NDArray,
    short: NDArray,
    height: NDArray,
    size: int,
    *,
    long: NDArray | None = None,
    angle: NDArray | None = None,
) -> Field:
    """Gaussian bumps; only cases of non-zero height are computed."""
    out = np.zeros((len(place), size, size), np.float32)
    active = np.flatnonzero(height)
    place, short, height = place[active], short[active], height[active]
    long = short if long is None else long[active]
    angle = np.zeros(len(active)) if angle is None else angle[active]
    first, second = _turned(place, size, angle)
    first, second = first / _each(long), second / _each(short)
    out[active] = _each(height) * np.exp(-(first**2) - second**2)
    return out
