"""Synthetic chest films with boxes of readers, of which the law is known.

Each film shows two dark lungs, ribs, a heart on the image's right, and opacities of two classes,
nodules (ellipses) and consolidations (larger, nearly rectangular), none to three of them with equal
probability, each class with probability 1/2, of contrast c uniform on 0..1. A reader marks an
opacity or misses it, and where it is marked draws a box:

    P(marked | c)        = sigmoid(10 (c - 0.3))
    edge | true edge     = true edge + Normal(0, sd of the class and edge), in pixels

Readers, opacities and edges are independent. An opacity is 0.05 + 0.30 c brighter than what lies
below it, over a noise of 0.03, and falls to half of that at its true edges. So the probability of a
mark and the class can be read off the image; what is left unknown is what the readers toss.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import choice, positive, reject, whole
from ppl_med.data.random_streams import random_stream

CHEST_CLASSES = ("nodule", "consolidation")
MOST = 3  # opacities of a film
FILM_NOISE = 0.03
_BLOCK = 256  # films rendered at a time, which bounds the memory
_OPACITIES, _READERS, _FILMS = range(3)  # streams of random numbers
# Lengths on a film of 96 pixels: half widths, then half heights, of each class.
_HALF = np.array([[[5, 8], [5, 8]], [[8, 12], [9, 15]]], float)
_MIDDLE = np.array([[29.0, 67.0], [45.0, 45.0]])  # of the two lungs: columns, rows
_LUNG = np.array([15.0, 31.0])  # half width and height
_REACH = np.array([8.5, 20.0])  # of the centres of opacities, about the middle of a lung
_MOST_SD = np.array([10 / 7, 8 / 5])  # of each class: no box turns inside out or leaves the film


def chest_films(
    num_cases: int,
    *,
    size: int = 96,
    num_graders: int | None = None,
    edge_noise: float | Sequence[float] | Sequence[Sequence[float]] = (0.7, 1.4),
    anatomy: Literal["usual", "unseen"] = "usual",
    pairs: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Generate films, the boxes that readers drew, and the truth they were drawn from.

    With one ``seed`` and ``size`` the opacities are the same whatever ``anatomy`` and
    ``edge_noise`` are, and the films whatever ``num_graders`` is.

    Args:
        num_cases: Number of films.
        size: Rows and columns, pixels, at least 64.
        num_graders: Readers of every film; None for one, without an axis of graders.
        edge_noise: Standard deviation of the edges, pixels: one number, one for each class of
            ``CHEST_CLASSES``, or for each class four, in the order x_min, y_min, x_max, y_max.
        anatomy: "usual", or "unseen": the heart on the other side, ribs that are more and steeper,
            and a device with its lead.
        pairs: Centres' distance, pixels, of two nodules of one size and contrast; every film then
            shows one such pair, in any direction, and nothing else.
        seed: Seed of everything drawn at random.

    Returns:
        "image" float32 (case, channel=1, row, col), about 0..1; "box" float32 (case, [grader,] box,
        4), x_min, y_min, x_max, y_max in pixels, NaN after the last; "box_label" int64 (case,
        [grader,] box), -1 after the last; "num_boxes" int64 (case, [grader]). The truth, which has
        a place for each opacity: "true_box" float64 (case, box, 4), "true_label" int64 and
        "num_true" int64 (case); "true_sd" float64 (case, box, 4), of the readers' edges;
        "contrast" and "mark_probability" float64 (case, box); "box_of" int64 (case, [grader,] box),
        the place of the opacity that a box was drawn around, or -1. "id" str (case), "film-000000"
        and on.

    Raises:
        ValueError: An argument is out of its range, or noise so large that boxes would turn inside
            out.
    """
    whole("num_cases", num_cases)
    whole("size", size, 64, fix="in fewer pixels a nodule is hardly seen")
    if num_graders is not None:
        whole("num_graders", num_graders, fix="give None for one without an axis of graders")
    choice("anatomy", anatomy, ("usual", "unseen"))
    unit = size / 96
    noise = _edge_noise(edge_noise, unit)
    if pairs is not None and positive("pairs", pairs) > 20 * unit:
        reject("pairs", f"at most {20 * unit:g} pixels, lest a nodule leave the film", pairs)
    truth = _opacities(random_stream(seed, _OPACITIES), num_cases, unit, pairs)
    truth["true_sd"] = np.where(
        truth["true_label"][..., None] < 0, np.nan, noise[truth["true_label"]]
    )
    marks = _read(random_stream(seed, _READERS), truth, num_graders or 1, size)
    image = np.empty((num_cases, 1, size, size), np.float32)
    for block, start in enumerate(range(0, num_cases, _BLOCK)):
        rows = slice(start, start + _BLOCK)
        random = random_stream(seed, _FILMS, block)
        film = _film(random, len(image[rows]), size, anatomy)
        film += _opacity(truth["true_box"][rows], truth["true_label"][rows],
                         0.05 + 0.30 * truth["contrast"][rows], size)  # fmt: skip
        image[rows, 0] = film + FILM_NOISE * random.standard_normal(film.shape, np.float32)
    if num_graders is None:
        marks = {name: values[:, 0] for name, values in marks.items()}
    ids = np.array([f"film-{case:06d}" for case in range(num_cases)])
    return {"image": image, **marks, **truth, "id": ids}


def mark_probability(contrast: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability that a reader marks an opacity, dims as ``contrast``."""
    return 1 / (1 + np.exp(-10 * (contrast - 0.3)))


def _edge_noise(given: Any, unit: float) -> NDArray[np.float64]:
    """Standard deviations, dims (class, edge)."""
    try:
        noise = np.asarray(given, float)
        noise = np.broadcast_to(noise[:, None] if noise.ndim == 1 else noise, (2, 4))
    except (TypeError, ValueError):
        reject("edge_noise", "a number, one for each of 2 classes, or 2 x 4 numbers", given)
    most = _MOST_SD * unit
    if not ((noise >= 0) & (noise <= most[:, None])).all():
        reject(
            "edge_noise",
            f"from 0 to {most[0]:.3g} pixels for nodules and {most[1]:.3g} for consolidations",
            given,
            "larger noise turns boxes inside out: give a larger size",
        )
    return noise


def _opacities(
    random: np.random.Generator, num_cases: int, unit: float, pairs: float | None
) -> dict[str, NDArray[Any]]:
    """Where the opacities are, of what class and contrast; what is not there is NaN or -1."""
    count = random.integers(0, MOST + 1, num_cases)
    label = random.integers(0, 2, (num_cases, MOST))
    contrast, draw = random.random((num_cases, MOST)), random.random((num_cases, MOST, 2))
    if pairs is not None:
        count[:], label[:] = 2, 0
        contrast[:, 1], draw[:, 1] = contrast[:, 0], draw[:, 0]
    there = np.arange(MOST) < count[:, None]
    low, high = np.moveaxis(_HALF[label], -1, 0)
    half = unit * (low + (high - low) * draw)
    if pairs is None:
        centre = _apart(random, half, there, unit)
    else:
        centre = np.repeat(_centres(random, (num_cases, 1), unit, 0.5), MOST, 1)
        angle = random.uniform(0, 2 * np.pi, num_cases)
        away = pairs / 2 * np.stack([np.cos(angle), np.sin(angle)], 1)
        centre[:, 0] -= away
        centre[:, 1] += away
    box = np.concatenate([centre - half, centre + half], -1)
    return {
        "true_box": np.where(there[..., None], box, np.nan),
        "true_label": np.where(there, label, -1),
        "num_true": count.astype(np.int64),
        "contrast": np.where(there, contrast, np.nan),
        "mark_probability": np.where(there, mark_probability(contrast), np.nan),
    }


def _centres(
    random: np.random.Generator, shape: tuple[int, ...], unit: float, share: float = 1.0
) -> NDArray[np.float64]:
    """Places uniform on an ellipse within either lung, dims (..., 2): column, row."""
    side = random.integers(0, 2, shape)
    angle, reach = random.uniform(0, 2 * np.pi, shape), share * np.sqrt(random.random(shape))
    away = np.stack([np.cos(angle), np.sin(angle)], -1) * reach[..., None] * _REACH
    return unit * (np.moveaxis(_MIDDLE[:, side], 0, -1) + away)


def _apart(
    random: np.random.Generator, half: NDArray, there: NDArray[np.bool_], unit: float
) -> NDArray[np.float64]:
    """Centres at which no two boxes of a film touch: drawn again, all of a film, until none do."""
    centre = _centres(random, there.shape, unit)
    again = np.arange(len(there))
    while len(again):
        gap = np.abs(centre[again, :, None] - centre[again, None])
        touch = (gap < half[again, :, None] + half[again, None] + 3 * unit).all(-1)
        touch &= there[again, :, None] & there[again, None] & ~np.eye(MOST, dtype=bool)
        again = again[touch.any((1, 2))]
        centre[again] = _centres(random, (len(again), MOST), unit)
    return centre


def _read(
    random: np.random.Generator, truth: dict[str, NDArray[Any]], num_graders: int, size: int
) -> dict[str, NDArray[Any]]:
    """The readers' boxes, dims (case, grader, box), those of the film first."""
    label = truth["true_label"]
    shape = (len(label), num_graders, MOST)
    chance = np.nan_to_num(truth["mark_probability"])  # none where nothing is
    marked = random.random(shape) < chance[:, None]
    true, sd = truth["true_box"], truth["true_sd"]
    box = true[:, None] + sd[:, None] * random.standard_normal((*shape, 4))
    while True:  # less than one in a million
        wrong = (box[..., 2:] <= box[..., :2]).any(-1) | ((box < 0) | (box > size)).any(-1)
        case, _, place = np.nonzero(wrong & marked)
        if not len(case):
            break
        fresh = random.standard_normal((len(case), 4))
        box[wrong & marked] = true[case, place] + sd[case, place] * fresh
    order = np.argsort(~marked, -1, kind="stable")
    stays = np.take_along_axis(marked, order, -1)
    drawn = np.take_along_axis(box, order[..., None], -2)
    kind = np.take_along_axis(np.broadcast_to(label[:, None], shape), order, -1)
    return {
        "box": np.where(stays[..., None], drawn, np.nan).astype(np.float32),
        "box_label": np.where(stays, kind, -1),
        "num_boxes": stays.sum(-1),
        "box_of": np.where(stays, order, -1),
    }


def _opacity(box: NDArray, label: NDArray, height: NDArray, size: int) -> NDArray[np.float32]:
    """What opacities add to the films, dims (case, row, col): half of it at their edges."""
    axis = np.arange(size) + 0.5
    out = np.zeros((len(box), size, size), np.float32)
    for place in range(MOST):
        rows = np.flatnonzero(label[:, place] >= 0)
        low, high = np.split(box[rows, place], 2, -1)
        half, power = (high - low) / 2, np.where(label[rows, place] == 0, 2.0, 6.0)[:, None, None]
        across, down = (
            np.abs(axis - (low + half)[:, None, k]) / half[:, None, k] for k in range(2)
        )
        distance = (across[:, None, :] ** power + down[:, :, None] ** power) ** (1 / power)
        soft = (0.5 / half.mean(1))[:, None, None]
        shape = 1 / (1 + np.exp(np.clip((distance - 1) / soft, -60, 60)))
        out[rows] = np.maximum(out[rows], height[rows, place][:, None, None] * shape)
    return out


def _film(
    random: np.random.Generator, num_cases: int, size: int, anatomy: str
) -> NDArray[np.float32]:
    """Chests without opacities and noise."""
    unseen, unit = anatomy == "unseen", size / 96
    axis = ((np.arange(size) + 0.5) / unit).astype(np.float32)
    row, col = axis[None, :, None], axis[None, None, :]

    def each(low: float, high: float) -> NDArray[np.float32]:
        return random.uniform(low, high, (num_cases, 1, 1)).astype(np.float32)

    def ellipse(middle: Any, half: Any, soft: float = 0.12) -> NDArray[np.float32]:
        distance = np.hypot((col - middle[0]) / half[0], (row - middle[1]) / half[1])
        return 1 / (1 + np.exp(np.clip((distance - 1) / soft, -60, 60)))

    lungs = sum(
        ellipse(
            (across + each(-1, 1), down + each(-1, 1)),
            (float(_LUNG[0]) * each(0.95, 1.1), float(_LUNG[1]) * each(0.95, 1.1)),
        )
        for across, down in _MIDDLE.T.tolist()
    )
    number, slope = (11, -0.55) if unseen else (8, 0.25)
    bent = row - slope * np.abs(col - 48) + each(0, 96 / number)
    ribs = 0.05 * np.clip(np.cos(2 * np.pi * number * bent / 96) - 0.3, 0, None) / 0.7
    heart = (38 if unseen else 58) + each(-2, 2)
    film = each(0.58, 0.66) - each(0.34, 0.40) * np.clip(lungs, 0, 1) + ribs
    film += 0.18 * ellipse((heart, 66 + each(-3, 3)), (each(11, 14), each(13, 16)))
    film += 0.10 * ellipse((48, 48), (5, 60), 0.3)  # spine
    film += 0.02 * (col - 48) / 48 * each(-1, 1) + 0.02 * (row - 48) / 48 * each(-1, 1)
    if unseen:
        left, top = 18 + each(-3, 3), 18 + each(-3, 3)
        device = (np.abs(col - left) < 6) & (np.abs(row - top) < 4.5)
        lead = (np.abs(row - top - 1.3 * (col - left)) < 1.6) & (col > left) & (row < 70)
        film += 0.35 * (device | lead)
    return film.astype(np.float32)
