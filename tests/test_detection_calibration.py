"""Calibration of confidence, of existence and of edges of boxes, and intervals over images."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import xarray as xr
from detection_trees import LEVEL, detection_tree, random_rows, shuffled, tree_by_hand
from posterior_trees import array
from scipy.stats import norm
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from ppl_med.analysis import case_groups, detection

CLASSES = ("red", "white", "platelet")
SQUARE = [0.0, 0, 10, 10]
Rows = list[list[list[float]]]


def grid_of_objects(
    number: int,
    per_image: int,
    seed: int,
    *,
    hit: Callable[[np.ndarray], np.ndarray] = lambda p: p,
    noise: float = 1.0,
) -> tuple[Rows, Rows]:
    """Objects far apart: each of probability p is there with probability hit(p).

    Edges of what is there differ from those of its object by a normal noise, in pixels.
    """
    rng = np.random.default_rng(seed)
    objects: Rows = []
    true: Rows = []
    for _ in range(number):
        p = np.sort(rng.uniform(size=per_image))[::-1]
        corner = 100.0 * np.arange(per_image)
        box = np.stack([corner, 0 * corner, corner + 40, 0 * corner + 40], 1)
        there = rng.uniform(size=per_image) < hit(p)
        objects.append([[p[i], 0, *box[i]] for i in range(per_image)])
        moved = box + noise * rng.normal(size=box.shape)
        true.append([[0, *moved[i]] for i in np.flatnonzero(there)])
    return objects, true


def test_errors_by_hand() -> None:
    """Two bins: 0.9 and 0.8 with one hit of IoU 0.8, and 0.3 without."""
    objects = [[[0.9, 0, 0, 0, 10, 8], [0.8, 0, 50, 50, 60, 60], [0.3, 0, 80, 80, 90, 90]]]
    tree = tree_by_hand(objects, [[[0, *SQUARE]]])
    found = detection.calibration_errors(tree, bins=2)
    assert float(found["dece"]) == pytest.approx(abs(1 - 1.7) / 3 + 0.3 / 3)
    assert float(found["laece"]) == pytest.approx(abs(0.8 - 1.7) / 3 + 0.3 / 3)
    assert float(found["laace"]) == pytest.approx((0.1 + 0.8 + 0.3) / 3)
    assert float(found["mean_iou"][0]) == pytest.approx(0.8)
    assert float(found["precision"][0]) == pytest.approx(1 / 3)
    assert np.isnan(found["laece_per_class"][1]) and found["count"].values.tolist() == [3, 0]
    strict = detection.calibration_errors(tree, bins=2, iou=0.9)
    assert float(strict["laece"]) == pytest.approx(2 / 3)


def test_errors_are_those_of_loops_over_bins_and_classes() -> None:
    """By the formulas of Küppers and of Oksuz, on hits that average precision agrees with."""
    objects, true = random_rows(30, 11)
    tree = tree_by_hand(objects, true, classes=CLASSES, class_share=0.9)
    bins = 25
    pooled = np.zeros((bins, 2))
    laece, number = [], 0
    for label in range(3):
        part = np.zeros((bins, 3))
        for rows, targets in zip(objects, true, strict=True):
            free = [np.array(row[1:]) for row in targets if row[0] == label]
            for row in rows:
                if row[1] != label:
                    continue
                box, confidence = np.array(row[2:]), 0.9 * row[0]
                shared = [area_share(box, one) for one in free]
                best = int(np.argmax(shared)) if shared else -1
                iou = shared[best] if shared and shared[best] >= 0.5 else 0.0
                if iou:
                    free.pop(best)
                place = max(int(np.ceil(confidence * bins)) - 1, 0)
                part[place] += (1, iou - confidence, bool(iou) - confidence)
        count = part[:, 0].sum()
        laece.append(np.abs(part[:, 1]).sum() / count)
        pooled += part[:, [0, 2]]
        number += count
    found = detection.calibration_errors(tree)
    np.testing.assert_allclose(found["laece_per_class"], laece)
    assert float(found["laece"]) == pytest.approx(np.mean(laece))
    assert float(found["dece"]) == pytest.approx(np.abs(pooled[:, 1]).sum() / number)


def area_share(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    width, height = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    shared = max(width, 0) * max(height, 0)
    total = np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2])
    return float(shared / (total - shared))


@pytest.mark.parametrize("target", ["precision", "localisation"])
def test_isotonic_and_platt_maps_are_those_of_scikit_learn(target: str) -> None:
    """Of one class; Platt with shares as outcomes is checked where its gradient is nothing."""
    tree = tree_by_hand(*grid_of_objects(40, 10, 1, hit=lambda p: p**2, noise=2.0))
    group = tree["objects"].to_dataset()
    score = group["p_exists"].values.ravel()
    outcome = np.zeros(score.size)
    edges = group["edge_mean"].values.reshape(-1, 4)
    true = array(tree, "observed_data/box_edge").values
    for case in range(40):
        for box in true[case][np.isfinite(true[case][:, 0])]:
            shared = [area_share(one, box) for one in edges[10 * case : 10 * case + 10]]
            best = int(np.argmax(shared))
            outcome[10 * case + best] = 1 if target == "precision" else shared[best]
    other = tree_by_hand(*grid_of_objects(20, 10, 2), prefix="other")
    given = array(other, "objects/p_exists").values.ravel()

    learnt = detection.fit_confidence(tree, target=target)
    mapped = array(detection.apply_confidence(learnt, other), "objects/confidence").values.ravel()
    theirs = IsotonicRegression(out_of_bounds="clip").fit(score, outcome).predict(given)
    np.testing.assert_allclose(mapped, theirs, atol=1e-9)
    assert learnt.attrs["too_few"] == "white" and int(learnt["count"][0]) == 400

    learnt = detection.fit_confidence(tree, method="platt", target=target)
    mapped = array(detection.apply_confidence(learnt, other), "objects/confidence").values.ravel()
    odds = np.log(score / (1 - score))
    slope, intercept = (float(learnt[name][0]) for name in ("slope", "intercept"))
    gap = 1 / (1 + np.exp(-slope * odds - intercept)) - outcome
    np.testing.assert_allclose([gap.mean(), (gap * odds).mean()], 0, atol=1e-6)
    if target == "precision":
        line = LogisticRegression(C=np.inf, tol=1e-10).fit(odds[:, None], outcome)
        theirs = line.predict_proba(np.log(given / (1 - given))[:, None])[:, 1]
        np.testing.assert_allclose(mapped, theirs, atol=1e-5)


def test_a_learnt_map_lowers_the_error_it_is_for_on_other_images() -> None:
    """Over-confident objects, hit with probability p^3; the fall is far beyond its chance."""
    build = partial(grid_of_objects, hit=lambda p: p**3, noise=1.5)
    validation = tree_by_hand(*build(60, 10, 3), prefix="v")
    test = tree_by_hand(*build(60, 10, 4), prefix="t")
    before = detection.calibration_errors(test)
    for target, name in (("precision", "dece"), ("localisation", "laece")):
        for method in ("isotonic", "platt"):
            learnt = detection.fit_confidence(validation, method=method, target=target)
            after = detection.calibration_errors(detection.apply_confidence(learnt, test))
            assert float(after[name]) < 0.5 * float(before[name]), (method, target)
    with pytest.raises(ValueError, match="learnt on 60 of these"):
        detection.apply_confidence(learnt, validation)


def test_confidence_is_read_by_all_figures_that_rank() -> None:
    """A map that rises strictly moves thresholds, and neither precision nor FROC."""
    learnt = detection.fit_confidence(detection_tree(40, "valid"), method="platt")
    tree = detection_tree(30)
    mapped = detection.apply_confidence(learnt.assign(slope=learnt["slope"].clip(0.1)), tree)
    for function in (detection.average_precision, detection.froc, detection.lrp):
        found, expected = function(mapped), function(tree)
        xr.testing.assert_allclose(found.drop_vars("threshold", errors="ignore"),
                                   expected.drop_vars("threshold", errors="ignore"))  # fmt: skip
    assert not np.allclose(detection.lrp(mapped)["threshold"], detection.lrp(tree)["threshold"])
    xr.testing.assert_allclose(detection.existence(mapped), detection.existence(tree))


def test_existence_of_calibrated_objects_lies_in_its_intervals() -> None:
    """Ten intervals of 99.9 %: a false alarm in one of a hundred seeds; and power beside it."""
    tree = tree_by_hand(*grid_of_objects(80, 12, 5))
    found = detection.existence(tree, level=0.999)
    inside = (found["lower"] <= found["probability"]) & (found["probability"] <= found["upper"])
    assert inside.all() and float(found["ece"]) < 0.06
    assert float(found["expected_objects"]) == pytest.approx(float(found["true_objects"]), abs=0.6)
    half = tree_by_hand(*grid_of_objects(80, 12, 6, hit=lambda p: p / 2))
    wrong = detection.existence(half, level=0.999)
    assert (wrong["upper"] < wrong["probability"]).sum() >= 6 and float(wrong["ece"]) > 0.2
    assert "over-confidence" in wrong.attrs["warning"]


def test_existence_by_hand() -> None:
    """Whatever the class; an empty bin is no number."""
    objects = [[[0.9, 1, *SQUARE], [0.8, 0, 50, 50, 60, 60]], [[0.2, 0, *SQUARE]]]
    found = detection.existence(tree_by_hand(objects, [[[0, *SQUARE]], []]), bins=5)
    assert found["count"].values.tolist() == [1, 0, 0, 1, 1]
    np.testing.assert_allclose(found["frequency"], [0, np.nan, np.nan, 0, 1])
    assert float(found["brier"]) == pytest.approx((0.01 + 0.64 + 0.04) / 3)
    assert float(found["ece"]) == pytest.approx((0.2 + 0.8 + 0.1) / 3)
    assert float(found["expected_objects"]) == pytest.approx(0.95)


def test_edges_of_known_noise_are_covered_as_often_as_they_say() -> None:
    """Over 1200 found objects a share lies within 4 of its errors: 6 in 100,000 fail an edge."""
    rows = grid_of_objects(100, 12, 7, hit=np.ones_like, noise=2.0)
    found = detection.edge_coverage(tree_by_hand(*rows, covariance=4.0))
    assert found.attrs["num_matched"] == 1200 and found.attrs["level"] == LEVEL
    assert (abs(found["coverage"] - LEVEL) < 4 * found["coverage_se"]).all()
    assert float(found["all_edges"]) == pytest.approx(
        LEVEL**4, abs=4 * float(found["all_edges_se"])
    )
    width = 2 * norm.ppf(0.95) * 2
    np.testing.assert_allclose(found["width"], width)
    # The score of the true interval of a normal: width + 2 / alpha E(distance outside), twice.
    z = norm.ppf(0.95)
    expected = width + 2 / 0.1 * 2 * 2 * (norm.pdf(z) - z * norm.sf(z))
    assert (abs(found["interval_score"] - expected) < 4 * found["interval_score_se"]).all()
    np.testing.assert_allclose(found["squared_error"], 4, rtol=0.2)
    np.testing.assert_allclose(found["variance"], 4)
    narrow = detection.edge_coverage(tree_by_hand(*rows, covariance=1.0))
    assert (narrow["coverage"] < 0.7).all()


def test_coverage_by_hand() -> None:
    """One edge outside by 1 pixel of an interval of half width 1.645 x 2."""
    reach = norm.ppf(0.95) * 2
    true = [reach + 1, 0, 40, 40]
    tree = tree_by_hand([[[0.9, 0, 0, 0, 40, 40], [0.1, 1, 0, 0, 40, 40]]], [[[1, *true]]])
    found = detection.edge_coverage(tree)
    np.testing.assert_allclose(found["coverage"], [0, 1, 1, 1])
    np.testing.assert_allclose(found["interval_score"], 2 * reach + np.array([20, 0, 0, 0]))
    assert float(found["all_edges"]) == 0 and found.attrs["num_matched"] == 1
    nothing = detection.edge_coverage(tree, threshold=0.95)
    assert np.isnan(nothing["coverage"]).all() and nothing.attrs["num_matched"] == 0


def moved_down(row: list[float], by: float) -> list[float]:
    """The row of a box elsewhere."""
    return [*row[:-4], *(np.array(row[-4:]) + np.array([0, by, 0, by]))]


def test_objects_that_are_alike_count_as_one_image() -> None:
    """Every object three times in its image: no error may shrink."""
    objects, true = grid_of_objects(30, 4, 8, hit=np.ones_like, noise=2.0)
    again = tuple(
        [[moved_down(row, 500 * k) for row in rows for k in range(3)] for rows in part]
        for part in (objects, true)
    )
    single, triple = (detection.edge_coverage(tree_by_hand(*rows))
                      for rows in ((objects, true), again))  # fmt: skip
    assert triple.attrs["num_matched"] == 3 * single.attrs["num_matched"]
    np.testing.assert_allclose(triple["coverage_se"], single["coverage_se"])
    curves = [detection.existence(tree_by_hand(*rows)) for rows in ((objects, true), again)]
    width = [(one["upper"] - one["lower"]).values for one in curves]
    assert np.nanmean(width[1] / width[0]) > 0.7  # as of independent ones it would be 0.58


FIGURES: dict[str, dict[str, Any]] = {
    "average_precision": {"thresholds": (0.5, 0.75)},
    "calibration_errors": {"bins": 5},
    "edge_coverage": {},
    "existence": {"bins": 4},
    "froc": {"hit": "iou"},
    "lrp": {},
    "pdq": {"threshold": 0.3},
}


@pytest.mark.parametrize("metric", FIGURES)
def test_weights_give_what_the_resampled_trees_give(metric: str) -> None:
    """Against the analysis itself, run anew on trees of the same images drawn again."""
    tree = detection_tree(8)
    options = FIGURES[metric]
    found = detection.bootstrap(metric, tree, resamples=20, seed=3, **options)
    cases = tree["observed_data/box_label"]["case"]
    groups = xr.DataArray(cases.values, {"case": cases.values}, "case")

    def function(part: xr.DataTree) -> xr.Dataset:
        return getattr(detection, metric)(part, **options).drop_vars("threshold", errors="ignore")

    expected = case_groups.bootstrap(function, tree, groups, resamples=20, seed=3)
    shared = [
        name
        for name in expected
        if str(name).endswith(("_se", "_lower", "_upper")) and name in found
    ]
    assert len(shared) >= 3 * (2 if metric == "froc" else 3)
    for name in shared:
        np.testing.assert_allclose(
            found[name], expected[name], rtol=1e-9, atol=1e-12, err_msg=str(name)
        )


def test_differences_are_paired() -> None:
    """A detector and itself differ by nothing; a worse one by an interval that excludes 0."""
    tree = detection_tree(40)
    same = detection.bootstrap("pdq", tree, shuffled(tree, 1), resamples=50)
    assert float(abs(same["pdq_difference_se"])) < 1e-9
    rng = np.random.default_rng(1)
    group = tree["objects"].to_dataset()
    worse = tree.copy()
    moved = group["edge_mean"] + rng.normal(scale=4, size=group["edge_mean"].shape)
    worse["objects"] = xr.DataTree(group.assign(edge_mean=moved))
    found = detection.bootstrap("pdq", tree, worse, resamples=200)
    assert float(found["pdq_difference_lower"]) > 0
    alone = float(detection.bootstrap("pdq", worse, resamples=200)["pdq_se"])
    both = np.hypot(float(found["pdq_se"]), alone)
    assert float(found["pdq_difference_se"]) < 0.8 * both
    gap = float(found["pdq"] - found["pdq_other"])
    assert float(found["pdq_difference"]) == pytest.approx(gap)
    assert found.attrs["unit"] == "case" and found.attrs["num_units"] == 40


def test_patients_are_drawn_whole_where_the_tree_knows_them() -> None:
    tree = detection_tree(20)
    patients = [f"p{index // 2}" for index in range(20)]
    constant = xr.Dataset(
        {"patient": ("case", patients)}, {"case": tree["objects/p_exists"]["case"]}
    )
    tree["constant_data"] = xr.DataTree(constant)
    found = detection.bootstrap("lrp", tree, resamples=20)
    assert (found.attrs["unit"], found.attrs["num_units"]) == ("patient", 10)
    assert detection.edge_coverage(tree).attrs["num_units"] == 10
    assert detection.existence(tree, group="case").attrs["unit"] == "case"


def test_what_a_bootstrap_refuses() -> None:
    tree = detection_tree(8)
    with pytest.raises(ValueError, match="metric must be"):
        detection.bootstrap("map", tree)
    with pytest.raises(ValueError, match="4 different case"):
        detection.bootstrap("pdq", tree.isel(case=slice(4), missing_dims="ignore"))
    with pytest.raises(ValueError, match="same cases"):
        detection.bootstrap("pdq", tree, detection_tree(8, "x"))
    other = tree_by_hand(*random_rows(8, 99), classes=CLASSES)
    with pytest.raises(ValueError, match="true boxes of tree"):
        detection.bootstrap("pdq", tree, other)
    with pytest.raises(ValueError, match="'level'"):
        bare = tree.copy()
        bare["objects"] = xr.DataTree(tree["objects"].to_dataset().assign_attrs(level=None))
        bare.attrs = {}
        detection.edge_coverage(bare)
