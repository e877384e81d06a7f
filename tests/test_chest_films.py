"""Chest phantoms: opacities, marks and edges follow the law that comes with them."""

from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ppl_med.data import CHEST_CLASSES, Batches, FreshBatches, check_boxes, chest_films
from ppl_med.data.synthetic.chest_generator import FILM_NOISE, _film, _opacity

FALSE_ALARM = 1e-6  # of every statistical check
NOISE = ((0.5, 0.7, 0.9, 1.1), (1.0, 1.2, 1.4, 1.6))


@pytest.fixture(scope="module")
def many() -> dict[str, Any]:
    return chest_films(1500, size=96, num_graders=3, edge_noise=NOISE, seed=1)


def off(films: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """How far readers' edges are from the true ones, dims (box, 4), and the boxes' classes."""
    case, grader, place = np.nonzero(films["box_label"] >= 0)
    true = films["true_box"][case, films["box_of"][case, grader, place]]
    return films["box"][case, grader, place] - true, films["box_label"][case, grader, place]


def test_names_shapes_and_types(many: dict[str, Any]) -> None:
    assert many["image"].shape == (1500, 1, 96, 96) and many["image"].dtype == np.float32
    assert many["box"].shape == (1500, 3, 3, 4) and many["box"].dtype == np.float32
    assert many["box_label"].dtype == many["num_boxes"].dtype == many["box_of"].dtype == np.int64
    check_boxes(many, len(CHEST_CLASSES))
    true = {"box": many["true_box"], "box_label": many["true_label"]}
    check_boxes(true | {"num_boxes": many["num_true"], "image": many["image"]}, 2)
    absent = many["true_label"] < 0
    for name in ("contrast", "mark_probability", "true_box", "true_sd"):
        values = np.isnan(many[name]).reshape(1500, 3, -1)
        assert (values == absent[..., None]).all(), name
    assert next(iter(Batches(many, batch_size=4)))["box"].shape == (4, 3, 3, 4)


@pytest.mark.parametrize(("kind", "edge"), list(product(range(2), range(4))))
def test_edges_are_normal_about_the_true_ones(many: dict[str, Any], kind: int, edge: int) -> None:
    """Over 1000 edges: a standard deviation that is 15 % off is found with probability above .99"""
    gap, label = off(many)
    scaled = gap[label == kind, edge] / NOISE[kind][edge]
    assert len(scaled) > 1000
    assert stats.kstest(scaled, "norm").pvalue > FALSE_ALARM
    z = (scaled.var() - 1) * np.sqrt(len(scaled) / 2)
    assert 2 * stats.norm.sf(abs(z)) > FALSE_ALARM
    np.testing.assert_array_equal(
        many["true_sd"][many["true_label"] == kind], np.broadcast_to(NOISE[kind], (
            (many["true_label"] == kind).sum(), 4))
    )  # fmt: skip


def test_edges_and_readers_are_independent(many: dict[str, Any]) -> None:
    gap, _ = off(many)
    np.testing.assert_array_less(
        np.abs(np.corrcoef(gap.T) - np.eye(4)), stats.norm.isf(FALSE_ALARM / 2) / len(gap) ** 0.5
    )
    marked = np.stack([(many["box_of"] == place).any(-1) for place in range(3)], -1)
    there, p = many["true_label"] >= 0, many["mark_probability"]
    for first, second in ((0, 1), (1, 2)):
        both, chance = (marked[:, first] & marked[:, second])[there], p[there] ** 2
        z = (both.sum() - chance.sum()) / np.sqrt((chance * (1 - chance)).sum())
        assert 2 * stats.norm.sf(abs(z)) > FALSE_ALARM
    assert not marked[~np.broadcast_to(there[:, None], marked.shape)].any()


def test_readers_mark_as_often_as_stated_at_every_contrast(many: dict[str, Any]) -> None:
    there = many["true_label"] >= 0
    contrast, p = many["contrast"][there], many["mark_probability"][there]
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-10 * (contrast - 0.3))), rtol=1e-12)
    marked = np.stack([(many["box_of"] == place).any(-1).sum(1) for place in range(3)], -1)[there]
    for rows in np.array_split(np.argsort(contrast), 6):
        z = (marked[rows].sum() - 3 * p[rows].sum()) / np.sqrt(3 * (p[rows] * (1 - p[rows])).sum())
        assert 2 * stats.norm.sf(abs(z)) > FALSE_ALARM
    assert stats.kstest(contrast, "uniform").pvalue > FALSE_ALARM


def test_opacities_are_as_many_of_each_class_as_stated_and_apart(many: dict[str, Any]) -> None:
    counts = np.bincount(many["num_true"], minlength=4)
    assert stats.chisquare(counts).pvalue > FALSE_ALARM
    kinds = np.bincount(many["true_label"][many["true_label"] >= 0])
    assert stats.binomtest(int(kinds[0]), int(kinds.sum())).pvalue > FALSE_ALARM
    box = many["true_box"]
    size = (box[..., 2:] - box[..., :2])[many["true_label"] == 1]
    assert (size >= [16, 18]).all() and (size <= [24, 30]).all()
    size = (box[..., 2:] - box[..., :2])[many["true_label"] == 0]
    assert (size >= 10).all() and (size <= 16).all()
    for a, b in ((0, 1), (0, 2), (1, 2)):
        low = np.maximum(box[:, a, :2], box[:, b, :2])
        high = np.minimum(box[:, a, 2:], box[:, b, 2:])
        assert not (low < high).all(-1).any(), "no two touch"


def test_the_film_is_half_bright_at_the_true_edges(many: dict[str, Any]) -> None:
    rows = np.flatnonzero(many["num_true"] == 1)[:40]
    added = _opacity(many["true_box"][rows], many["true_label"][rows], np.ones((40, 3)), 96)
    for one, edges in zip(added, many["true_box"][rows, 0], strict=True):
        row, col = np.nonzero(one > 0.5)
        found = np.array([col.min(), row.min(), col.max() + 1, row.max() + 1])
        assert np.abs(found - edges).max() < 1  # between the middles of two pixels
    noise = (
        many["image"][many["num_true"] == 0, 0, :4, :4]
        - many["image"][many["num_true"] == 0, 0, 1:5, :4]
    )  # neighbours share what lies below the noise, but for a slow change
    assert noise.std() == pytest.approx(2**0.5 * FILM_NOISE, rel=0.05)


def test_an_opacity_is_as_much_brighter_as_its_contrast_says(many: dict[str, Any]) -> None:
    """Middle against a ring around it, within one rib's brightness; on average it cancels."""
    gaps = []
    for case in np.flatnonzero(many["num_true"] == 1):
        left, top, right, bottom = np.rint(many["true_box"][case, 0]).astype(int)
        image = many["image"][case, 0]
        inner = image[top + 4 : bottom - 4, left + 4 : right - 4].mean()
        gaps.append(inner - (0.05 + 0.30 * many["contrast"][case, 0]))
    contrast = many["contrast"][many["num_true"] == 1, 0]
    fit = stats.linregress(contrast, gaps)
    assert abs(fit.slope) < stats.norm.isf(FALSE_ALARM / 2) * fit.stderr and fit.stderr < 0.02


def test_what_is_asked_changes_alone() -> None:
    first = chest_films(40, seed=7)
    assert first["box"].shape == (40, 3, 4) and first["num_boxes"].shape == (40,)
    again = chest_films(40, seed=7)
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
    changes: list[dict[str, Any]] = [{"num_graders": 2}, {"edge_noise": 0.0}, {"anatomy": "unseen"}]
    for change in changes:
        other = chest_films(40, seed=7, **change)
        same = ("true_box", "true_label", "contrast")
        for name in same if change.keys() == {"anatomy"} else (*same, "image"):
            np.testing.assert_array_equal(first[name], other[name])
        if change.keys() == {"anatomy"}:
            np.testing.assert_array_equal(first["box"], other["box"])
            assert np.abs(first["image"] - other["image"]).mean() > 0.03
    exact = chest_films(40, seed=7, edge_noise=0.0)
    assert np.abs(off({name: values[:, None] if name in ("box", "box_label", "box_of") else values
                       for name, values in exact.items()})[0]).max() < 1e-5  # fmt: skip
    assert (first["image"] != chest_films(40, seed=8)["image"]).any((1, 2, 3)).all()
    large = chest_films(4, size=192, seed=7)
    np.testing.assert_allclose(large["true_box"], 2 * chest_films(4, seed=7)["true_box"])


def test_unseen_anatomy_has_the_heart_on_the_other_side() -> None:
    """The usual heart is brighter on the image's right, the unseen one on its left."""
    for anatomy, sign in (("usual", 1), ("unseen", -1)):
        film = _film(np.random.default_rng(0), 50, 96, anatomy)[:, 58:76]
        gap = film[..., 58:68].mean((1, 2)) - film[..., 28:38].mean((1, 2))
        assert (sign * gap > 0.05).mean() > 0.9


@pytest.mark.parametrize("distance", [4.0, 12.5, 20.0])
def test_pairs_lie_at_their_distance(distance: float) -> None:
    films = chest_films(200, pairs=distance, edge_noise=10 / 7, seed=3)
    check_boxes(films, 2)
    box = films["true_box"]
    middle = (box[..., :2] + box[..., 2:]) / 2
    gap = middle[:, 1] - middle[:, 0]
    np.testing.assert_allclose(np.hypot(*gap.T), distance)
    assert (films["num_true"] == 2).all() and (films["true_label"][:, :2] == 0).all()
    np.testing.assert_allclose(*np.moveaxis((box[..., 2:] - box[..., :2])[:, :2], 1, 0))
    np.testing.assert_array_equal(films["contrast"][:, 0], films["contrast"][:, 1])
    angle = np.arctan2(gap[:, 1], gap[:, 0]) / (2 * np.pi) + 0.5
    assert stats.kstest(angle, "uniform").pvalue > FALSE_ALARM


def test_fresh_films_for_training() -> None:
    batches = FreshBatches(chest_films, batch_size=3, keep=("image", "box", "box_label"))
    first, second = next(batches.iterate(0)), next(batches.iterate(1))
    assert first["box"].shape == (3, 3, 4) and (first["image"] != second["image"]).any()
    graded = FreshBatches(partial(chest_films, num_graders=2), batch_size=3, keep=("image", "box"))
    assert next(graded.iterate(0))["box"].shape == (3, 2, 3, 4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_cases": 0}, "num_cases must be"),
        ({"size": 32}, "size must be .*a nodule is hardly seen"),
        ({"num_graders": 0}, "num_graders must be .*give None"),
        ({"edge_noise": 1.5}, r"edge_noise must be from 0 to 1.43 pixels .*larger size"),
        ({"edge_noise": (0.5, -1.0)}, "edge_noise must be from 0"),
        ({"edge_noise": (0.5, 1.0, 1.0)}, "edge_noise must be a number, one for each of 2"),
        ({"edge_noise": (float("nan"), 1.0)}, "edge_noise must be from 0"),
        ({"pairs": 21.0}, "pairs must be at most 20 pixels"),
        ({"pairs": 0.0}, "pairs must be a finite number above 0"),
    ],
)
def test_bad_arguments_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chest_films(**({"num_cases": 3} | wrong))
