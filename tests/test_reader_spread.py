"""How far readers lie apart: by hand, and on films whose edge noise is known."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from detection_trees import graded_tree
from scipy import stats

from ppl_med.analysis.detection import reader_spread
from ppl_med.data import CHEST_CLASSES, chest_films

FALSE_ALARM = 1e-6
NOISE = ((0.5, 0.7, 0.9, 1.1), (1.0, 1.2, 1.4, 1.6))
NONE = [np.nan] * 4


def by_hand() -> dict[str, Any]:
    """Case 0: an object of three readers and one of two; case 1: one of two, and a lone box."""
    box = [
        [
            [[10, 10, 30, 30], [60, 60, 80, 80]],
            [[12, 10, 30, 33], [61, 60, 80, 80]],
            [[11, 13, 30, 30], NONE],
        ],
        [[[10, 10, 30, 30], NONE], [[10, 10, 34, 30], [50, 50, 60, 60]], [NONE, NONE]],
    ]
    label = [[[0, 0], [0, 0], [0, -1]], [[0, -1], [0, 1], [-1, -1]]]
    return {"box": np.array(box, np.float32), "box_label": np.array(label)}


def test_boxes_by_hand() -> None:
    """x_min: squares 1 + 0 + 1 of three, 1/2 of two, 0 of two, over 2 + 1 + 1 degrees of freedom"""
    found = reader_spread(by_hand())
    square = np.array([2 + 0.5 + 0, 6, 8, 6]) / 4
    np.testing.assert_allclose(found["spread"][0], np.sqrt(square), rtol=1e-6)
    assert np.isnan(found["spread"][1]).all(), "a box that nobody shares has no spread"
    assert found["num_objects"].values.tolist() == [3, 0]
    assert found["num_alone"].values.tolist() == [0, 1]
    assert found.attrs | {"num_graders": 3, "num_cases": 2, "left_out": 0} == found.attrs
    # Over images: residuals of the sums of squares, (2.5 - 3 v) and (0 - v), with G / (G - 1).
    v = square[0]
    error = np.sqrt(2 * ((2.5 - 3 * v) ** 2 + v**2)) / 4 / (2 * np.sqrt(v))
    assert float(found["spread_se"][0, 0]) == pytest.approx(error)
    named = reader_spread(by_hand(), classes=["a", "b", "c"])
    assert named["class"].values.tolist() == ["a", "b", "c"]


def test_spacing_gives_mm() -> None:
    """The sums of squares of each film count in its own mm."""
    spacing = np.array([[2.0, 0.5], [2.0, 1.0]])  # row, col
    found = reader_spread(by_hand() | {"spacing": spacing})
    square = np.array([2.5 * 0.25, 6 * 4, 8, 6 * 4]) / 4
    np.testing.assert_allclose(found["spread_mm"][0], np.sqrt(square), rtol=1e-6)
    assert found["spread_mm"].attrs["units"] == "mm"


@pytest.mark.parametrize("graders", [2, 3, 5])
def test_the_noise_of_the_films_is_found(graders: int) -> None:
    """Variances are scaled chi squares; each of 8 edges is off by 15 % with probability below .01,

    and a divisor of m in place of m - 1 would be 12 % to 41 % off.
    """
    films = chest_films(1500, size=64, num_graders=graders, edge_noise=0.35, seed=graders)
    found = reader_spread(films, classes=CHEST_CLASSES)
    expected = np.full((2, 4), 0.35)
    z = (found["spread"] - expected) / found["spread_se"]
    assert (2 * stats.norm.sf(np.abs(z)) > FALSE_ALARM).all()
    assert (found["spread_se"] < 0.045 * found["spread"]).all()
    marked = np.stack([(films["box_of"] == k).any(-1).sum(1) for k in range(3)], -1)
    for kind in range(2):
        of_kind = marked[films["true_label"] == kind]
        assert int(found["num_objects"][kind]) == (of_kind > 1).sum()
        assert int(found["num_alone"][kind]) == (of_kind == 1).sum()


def test_every_edge_of_every_class_has_its_own_noise() -> None:
    films = chest_films(1200, num_graders=3, edge_noise=NOISE, seed=4)
    found = reader_spread(films)
    z = (found["spread"] - np.array(NOISE)) / found["spread_se"]
    assert (2 * stats.norm.sf(np.abs(z)) > FALSE_ALARM).all()


def test_patients_with_many_films_have_a_wider_error() -> None:
    """The same film twenty times says no more than once; as films it would say a fifth of that."""
    films = chest_films(100, num_graders=2, seed=1)
    many = {name: np.repeat(films[name], 20, 0) for name in ("box", "box_label")}
    patient = np.repeat(np.arange(100), 20).astype(str)
    once, naive = reader_spread(films), reader_spread(many)
    clustered = reader_spread(many | {"patient": patient})
    np.testing.assert_allclose(clustered["spread_se"], once["spread_se"], rtol=1e-6)
    np.testing.assert_allclose(naive["spread_se"], once["spread_se"] / 20**0.5, rtol=0.02)
    assert clustered.attrs["unit"] == "patient" and clustered.attrs["num_units"] == 100


def test_predicted_noise_stands_beside_that_of_readers() -> None:
    tree = graded_tree(60)
    objects = tree["objects"].to_dataset()
    tree["objects"] = xr.DataTree(objects.assign(
        edge_aleatoric=objects["edge_mean"] * 0 + 0.36
    ))  # fmt: skip
    found = reader_spread(tree)
    np.testing.assert_allclose(found["predicted"], 0.6)
    np.testing.assert_allclose(found["predicted_se"], 0, atol=1e-9)
    np.testing.assert_allclose(found["ratio"], 0.6 / found["spread"])
    np.testing.assert_allclose(
        found["ratio_se"] / found["ratio"], found["spread_se"] / found["spread"]
    )
    assert (np.abs(found["spread"] - 0.5) < 5 * found["spread_se"]).all()
    assert "predicted" not in reader_spread(xr.DataTree.from_dict(
        {"observed_data": tree["observed_data"].to_dataset()}))  # fmt: skip


@pytest.mark.parametrize(
    ("boxes", "error", "message"),
    [
        ([1, 2], TypeError, "DataTree"),
        ({"box": np.zeros((1, 2, 1, 4))}, ValueError, r"lacks \['box_label'\]"),
        ({"box": np.zeros((3, 1, 4)), "box_label": np.zeros((3, 1), int)}, ValueError,
         "two readers or more"),
        ({"box": np.zeros((3, 1, 1, 4)), "box_label": np.zeros((3, 1, 1), int)}, ValueError,
         "two readers or more"),
        ({"box": np.full((1, 2, 1, 4), np.nan), "box_label": np.zeros((1, 2, 1), int)}, ValueError,
         "finite where box_label"),
    ],
)  # fmt: skip
def test_what_is_no_set_of_readers_is_refused(
    boxes: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        reader_spread(boxes)
    with pytest.raises(ValueError, match="iou"):
        reader_spread(by_hand(), iou=0.0)
    with pytest.raises(ValueError, match="classes"):
        reader_spread(graded_tree(), classes=["a", "b", "c"])
