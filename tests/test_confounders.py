"""Planted confounders: frequencies by class, places, masks, and what is refused."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from ppl_med.data import Batches
from ppl_med.data.synthetic.confounders import Kind, plant

KINDS: tuple[Kind, ...] = ("tag", "pacemaker", "ruler", "border")
every_kind = pytest.mark.parametrize("kind", KINDS)


def arrays(cases: int = 40, size: int = 28, dtype: Any = np.uint8) -> dict[str, Any]:
    random = np.random.default_rng(1)
    image = random.integers(40, 200, (cases, 2, size, size + 3)).astype(dtype)
    return {"image": image, "label": np.arange(cases) % 2, "id": np.arange(cases)}


@every_kind
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("size", [20, 28, 50, 64, 200])
def test_the_mask_is_what_was_drawn(kind: Kind, dtype: Any, size: int) -> None:
    before = arrays(6, size, dtype)
    after = plant(before, kind, (0, 1))
    assert after["image"].dtype == dtype
    np.testing.assert_array_equal(after["confounder"], before["label"])
    mask = np.broadcast_to(after["confounder_mask"][:, None], before["image"].shape)
    np.testing.assert_array_equal(after["image"][~mask], before["image"][~mask])
    extremes = (0, 255) if dtype == np.uint8 else (before["image"].min(), before["image"].max())
    assert (after["image"][mask] == extremes[kind != "border"]).all()
    per_case = after["confounder_mask"].any((1, 2))
    np.testing.assert_array_equal(per_case, after["confounder"] == 1)
    share = after["confounder_mask"][1].mean()
    assert 0.003 < share < (0.4 if kind == "border" else 0.1)


@every_kind
def test_marks_lie_where_they_should(kind: Kind) -> None:
    mask = plant(arrays(100, 56), kind, (1, 1))["confounder_mask"]
    rows, cols = (np.flatnonzero(mask.any(axes)) for axes in ((0, 2), (0, 1)))
    height, width = mask.shape[1:]
    if kind == "tag":
        assert rows.max() < height / 4 and cols.max() < width / 3
    elif kind == "pacemaker":
        assert rows.max() < 0.6 * height and cols.min() > 0.45 * width
    elif kind == "ruler":
        assert rows.min() > 0.8 * height and (mask[:, -1].sum(1) >= 10).all()
    else:
        assert mask[:, [0, -1]].all() and mask[:, :, [0, -1]].all()
        assert not mask[:, height // 5 : -height // 5, width // 5 : -width // 5].any()
    assert len(np.unique(mask.reshape(len(mask), -1), axis=0)) > 1, "no displacement"


@pytest.mark.parametrize(
    ("association", "expected"),
    [("as_given", (0.1, 0.7, 0.3)), ("swapped", (0.7, 0.1, 0.3)), ("unconfounded", None)],
)
def test_frequencies(association: Any, expected: tuple[float, ...] | None) -> None:
    """Counts of each class lie within their binomial law's 1e-4 tails."""
    label = np.repeat([0, 1, 2], [1000, 500, 2500])
    expected = expected or (float((1000 * 0.1 + 500 * 0.7 + 2500 * 0.3) / 4000),) * 3
    given = {"image": np.zeros((4000, 1, 20, 20), np.uint8), "label": label}
    found = plant(given, "tag", (0.1, 0.7, 0.3), association=association, seed=5)["confounder"]
    for name, chance in enumerate(expected):
        size = int((label == name).sum())
        low, high = binom.ppf([1e-4, 1 - 1e-4], size, chance)
        assert low <= found[label == name].sum() <= high


def test_a_case_has_its_mark_in_one_place() -> None:
    """Whatever the probabilities; another seed gives other places and cases."""
    everywhere = plant(arrays(), "tag", (1, 1), seed=3)
    some = plant(arrays(), "tag", (0.2, 0.8), seed=3)
    chosen = some["confounder"] == 1
    assert 0 < chosen.sum() < len(chosen)
    np.testing.assert_array_equal(
        some["confounder_mask"][chosen], everywhere["confounder_mask"][chosen]
    )
    again = plant(arrays(), "tag", (0.2, 0.8), seed=3)
    np.testing.assert_array_equal(again["image"], some["image"])
    other = plant(arrays(), "tag", (0.2, 0.8), seed=4)
    assert (other["confounder"] != some["confounder"]).any()


def test_opacity_mixes_the_mark_with_what_is_under_it() -> None:
    before = arrays(4, dtype=np.float64)
    after = plant(before, "ruler", (1, 1), opacity=0.25)
    mask = np.broadcast_to(after["confounder_mask"][:, None], before["image"].shape)
    expected = 0.75 * before["image"][mask] + 0.25 * before["image"].max()
    np.testing.assert_allclose(after["image"][mask], expected)


def test_batches_take_the_arrays() -> None:
    batch = next(iter(Batches(plant(arrays(), "tag", (0.1, 0.9)), batch_size=8)))
    assert batch["confounder"].shape == (8,) and batch["confounder_mask"].shape == (8, 28, 31)
    assert batch["id"] == list(range(8))


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"kind": "stamp"}, "kind must be .* got 'stamp'"),
        ({}, {"association": "none"}, "association must be .* got 'none'"),
        ({"label": None}, {}, r"no \['label'\]"),
        ({"confounder": 1}, {}, "already"),
        ({"image": np.zeros((40, 1, 9, 30))}, {}, r"\(40, 1, 9, 30\)"),
        ({"image": np.zeros((40, 1, 30, 30, 30))}, {}, "expected .case, channel, row, col"),
        ({"image": np.zeros((40, 1, 30, 30), int)}, {}, "image is int64"),
        ({"label": np.zeros(39, int)}, {}, "expected 40 integers"),
        ({"label": np.zeros(40)}, {}, "label is float64"),
        ({}, {"probability_given_class": (0.1, 1.2)}, "from 0 to 1"),
        ({}, {"probability_given_class": (0.1,)}, "label runs from 0 to 1"),
        ({}, {"opacity": 0.0}, "opacity must be"),
    ],
)
def test_refuses(changes: dict[str, Any], options: dict[str, Any], message: str) -> None:
    given: Any = {"kind": "tag", "probability_given_class": (0.1, 0.9)} | options
    with pytest.raises((ValueError, TypeError), match=message):
        plant(arrays() | changes, **given)
