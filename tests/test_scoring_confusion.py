"""Counts of classes and intersection over union against scikit-learn; -1 is not counted."""

import numpy as np
import pytest
import xarray as xr
from sklearn.metrics import confusion_matrix, jaccard_score

from ppl_med.analysis import scoring

RNG = np.random.default_rng(0)
CLASSES = 4


def pixel_tree(truth: np.ndarray) -> tuple[xr.DataTree, np.ndarray]:
    """Random probabilities of three draws, and the class that their mean is largest for."""
    probs = RNG.dirichlet(np.ones(CLASSES), (1, 3, *truth.shape))
    dims = ("chain", "draw", "case", "row", "col", "class")
    tree = xr.DataTree.from_dict(
        {
            "/posterior": xr.Dataset({"probs": (dims, probs)}),
            "/observed_data": xr.Dataset({"mask": (dims[2:5], truth)}),
        }
    )
    return tree, probs.mean((0, 1)).argmax(-1)


def test_counts_and_iou_are_those_of_scikit_learn() -> None:
    truth = RNG.integers(-1, CLASSES, (3, 9, 8))
    tree, guess = pixel_tree(truth)
    found = scoring.confusion(tree)
    known = truth >= 0
    expected = confusion_matrix(truth[known], guess[known], labels=range(CLASSES))
    np.testing.assert_array_equal(found["confusion"].sum("case"), expected)
    per_class = jaccard_score(truth[known], guess[known], average=None, labels=range(CLASSES))
    np.testing.assert_allclose(found["iou_per_class"], per_class)
    assert float(found["iou"]) == pytest.approx(per_class.mean())
    assert found.attrs["left_out"] == int((~known).sum())
    parts = [scoring.confusion(tree.isel(case=[a, b]))["iou"] for a, b in ((1, 2), (0, 2), (0, 1))]
    assert float(found["iou_se"]) == pytest.approx((2 * np.var(parts)) ** 0.5)


def test_a_class_that_never_occurs_does_not_count() -> None:
    counts = np.zeros((3, 3))
    counts[:2, :2] = [[3, 1], [0, 4]]
    assert float(scoring.mean_iou(counts)) == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert np.isnan(scoring.mean_iou(np.zeros((3, 3))))


def test_scores_of_entries_average_to_the_scores_of_all() -> None:
    truth = RNG.integers(-1, CLASSES, (3, 9, 8))
    truth[1] = -1
    tree, guess = pixel_tree(truth)
    found, scores = scoring.entry_scores(tree), scoring.score(tree)
    np.testing.assert_array_equal(found["predicted"], guess)
    assert np.isfinite(found["confidence"]).all()
    for name, of in (("correct", "accuracy"), ("nll", "nll"), ("brier", "brier")):
        assert float(found[name].mean()) == pytest.approx(float(scores[of]))
        np.testing.assert_array_equal(np.isnan(found[name]), truth < 0)
    assert scores.attrs["left_out_cases"] == found.attrs["left_out_cases"] == 1
