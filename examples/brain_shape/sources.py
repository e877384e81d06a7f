"""Two sources of subjects whose outline goes with the label at one site, and not at an honest one.

Each gives arrays of three parts: "train" and "site", where nine of ten diseased subjects have the
second outline and one of ten healthy ones, and "honest", the subjects of "site" with outlines or
labels that do not know each other. Arrays are "image" (case, channel, [depth,] row,
col), "mask" (the foreground, outside which the image is 0), "label", "shape" and "id".
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.morphology import convex_hull_image

from ppl_med.data import load_hippocampus
from ppl_med.data.synthetic.brain_generator import brains
from ppl_med.explain.confounding import swap_shape

Parts = dict[str, dict[str, NDArray[Any]]]
SITE, HONEST = (0.1, 0.9), (0.5, 0.5)  # P(second outline), of label 0 and 1

SLICES, LEVEL = (12, 28, 24), 4  # slices of 12 mm; the one through the hippocampi
EASY: dict[str, Any] = {"atrophy": 0.8, "steepness": 20.0, "noise": 0.04, "num_scanners": 1}

SIZE = (40, 56, 32)  # voxels of 1 mm, averaged by two
PLACE, WIDTH, DEPTH = (0.0, 0.4, 0.0), 0.35, 1.5  # of the planted loss: half axes, sd of intensity
GREY = 3.0  # mean intensity of the foreground, whose sd is 1


def phantoms(train: int, test: int, seed: int) -> Parts:
    """Axial slices of brain phantoms; the disease is atrophy of the hippocampi.

    The round and the long outline have one volume.
    """
    given = {
        "train": (train, seed, SITE),
        "site": (test, seed + 1000, SITE),
        "honest": (test, seed + 1000, HONEST),
    }
    parts = {}
    for name, (number, start, chance) in given.items():
        cases = brains(number, size=SLICES, shape_given_label=chance, seed=start, **EASY)
        mask = cases["brain_mask"][:, LEVEL]
        image = np.where(mask, cases["image"][:, 0, LEVEL], 0.0)
        image /= (image.sum((1, 2)) / mask.sum((1, 2)))[:, None, None]  # the scan's own scale
        ceiling = np.maximum(cases["label_probability"], 1 - cases["label_probability"])
        parts[name] = {
            "image": image[:, None].astype(np.float32),
            "mask": mask,
            "best": ceiling,
            **{key: cases[key] for key in ("label", "shape", "id")},
        }
    return parts


def hippocampi(folder: Path, train: int, test: int, seed: int) -> Parts:
    """Real outlines and real textures of MR volumes; the disease is a planted loss of intensity.

    The outline is the convex hull of the hippocampus. Subjects whose hull is longer, for its
    height, than the median have the second outline. The texture of every subject is that of
    another, warped into the hull, so that no texture knows its outline. In the diseased the
    anterior part is darker, by 1 to 2 sd of the intensity.
    """
    random = np.random.default_rng(seed)
    splits = load_hippocampus(folder, size=SIZE)
    image, mask = (
        np.concatenate([one[key] for one in splits.values()]) for key in ("image", "mask")
    )
    ids = np.concatenate([one["id"] for one in splits.values()])
    chosen = random.permutation(len(ids))[: train + test]
    image, ids = _halved(image[chosen, 0]), ids[chosen]
    hull = np.stack([convex_hull_image(one) for one in _halved(mask[chosen] > 0) >= 0.5])
    sides = np.array([np.ptp(np.argwhere(one), axis=0) + 1 for one in hull])
    ratio = sides[:, 1] / sides[:, 0]
    shape = (ratio > np.median(ratio)).astype(np.int64)
    inside = [one[own] for one, own in zip(image, hull, strict=True)]
    loc, scale = (np.reshape([f(one) for one in inside], (-1, 1, 1, 1)) for f in (np.mean, np.std))
    texture = (image - loc) / scale
    rows = np.split(np.arange(len(ids)), [min(train, len(ids) - 1)])
    parts = {}
    both = {"site": SITE, "honest": HONEST}
    for chances, own in zip(({"train": SITE}, both), rows, strict=True):
        given, outline, donor = swap_shape(
            texture[own, None], hull[own], hull[own],
            patient=ids[own], donor_patient=ids[own], seed=seed,
        )  # fmt: skip
        long = shape[own][donor]
        loss = DEPTH * random.uniform(2 / 3, 4 / 3, len(own))
        for name, chance in chances.items():
            label = (random.random(len(own)) < np.take(chance, long)).astype(np.int64)
            planted = given[:, 0] - (label * loss)[:, None, None, None] * _bumps(outline)
            parts[name] = {
                "image": np.where(outline, planted + GREY, 0.0)[:, None].astype(np.float32),
                "mask": outline,
                "label": label,
                "shape": long,
                "id": ids[own],
            }
    return parts


def _halved(values: NDArray[Any]) -> NDArray[np.float64]:
    """Means of blocks of 2 x 2 x 2 voxels."""
    cases, depth, row, col = values.shape
    blocks = values.reshape(cases, depth // 2, 2, row // 2, 2, col // 2, 2)
    return blocks.mean((2, 4, 6), dtype=float)


def _bumps(outline: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Where the disease shows, relative to the sides of every outline."""
    found = np.empty(outline.shape)
    for case, one in enumerate(outline):
        where = np.argwhere(one)
        half = (np.ptp(where, axis=0) + 1) / 2
        middle = (where.max(0) + where.min(0)) / 2
        place = (np.indices(one.shape) - middle[:, None, None, None]) / half[:, None, None, None]
        away = ((place - np.reshape(PLACE, (3, 1, 1, 1))) ** 2).sum(0)
        found[case] = np.exp(-away / (2 * WIDTH**2))
    return found
