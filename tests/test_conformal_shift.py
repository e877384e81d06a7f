"""Shift: power, and weights that undo a known covariate shift."""

import numpy as np
import pytest
import xarray as xr
from conformal_trees import Z, probs_tree, regression_tree, split, vague_labels
from posterior_trees import array, classification_tree
from scipy import stats

from ppl_med.analysis import conformal
from ppl_med.analysis.conformal import exchangeability, order_statistics
from ppl_med.analysis.conformal.compared import Compared


def test_shift_is_seen_in_predictions_and_in_scores() -> None:
    first, second = split(classification_tree(cases=400), 200)
    learnt = conformal.calibrate(first)
    quiet = conformal.predict_sets(learnt, second)
    assert 1e-3 < float(quiet["shift_pvalue"]) <= 1
    probs = array(second, "posterior/probs")
    sharp = probs**6 / (probs**6).sum("class")
    with pytest.warns(RuntimeWarning, match="coverage may not hold"):
        conformal.predict_sets(learnt, sharp)
    assert float(conformal.predict_sets(learnt, sharp, shift_alarm=0)["shift_pvalue"]) < 1e-3
    wrong = second.copy()
    label = array(second, "observed_data/label")
    wrong["observed_data"] = xr.DataTree(((label + 1) % 3).to_dataset(name="label"))
    with pytest.warns(RuntimeWarning, match="look different"):
        conformal.predict_sets(learnt, wrong)
    with pytest.raises(ValueError, match="shift_alarm"):
        conformal.predict_sets(learnt, second, shift_alarm=1.0)


def test_groups_are_compared_one_by_one() -> None:
    """Other shares of the groups are no shift; another law inside one is."""
    rng = np.random.default_rng(1)

    def sample(number: int, share: float, move: float) -> tuple[np.ndarray, np.ndarray]:
        group = np.where(rng.random(number) < share, "a", "b")
        return rng.normal(np.where(group == "a", 3.0, move), 1.0)[:, None], group

    (one, first), (two, second) = sample(300, 0.2, 0), sample(300, 0.8, 0)
    assert float(exchangeability.compare(Compared(one), Compared(two), 0)) < 1e-6
    known, same = Compared(one, groups=first), Compared(two, groups=second)
    assert float(exchangeability.compare(known, same, 0)) > 1e-3
    three, third = sample(300, 0.8, 1.5)
    assert float(exchangeability.compare(known, Compared(three, groups=third), 0)) < 1e-3


def test_weighted_thresholds_follow_the_definition() -> None:
    """Smallest score whose weight below, as a share of all with the test case's, is 1 - alpha."""
    rng = np.random.default_rng(2)
    scores, weights, test = rng.random(30), rng.exponential(size=30), rng.exponential(size=50)
    found = order_statistics.weighted_threshold(scores, weights, test, 0.2)
    for value, own in zip(found, test, strict=True):
        share = [weights[scores <= t].sum() / (weights.sum() + own) for t in np.sort(scores)]
        allowed = np.sort(scores)[np.array(share) >= 0.8]
        assert value == (allowed[0] if allowed.size else np.inf)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.2, 0.3])
def test_equal_weights_change_nothing(alpha: float) -> None:
    rng = np.random.default_rng(3)
    for num_cases in range(1, 120):
        scores = rng.random(num_cases)
        rank = conformal.coverage_rank(num_cases, alpha)
        expected = order_statistics.kth_smallest(scores, rank)
        ones = np.full(num_cases, 0.1)
        found = order_statistics.weighted_threshold(scores, ones, np.array([0.1]), alpha)
        assert found[0] == expected


def shifted_cases(
    rng: np.random.Generator, shape: tuple[int, ...], test: bool
) -> tuple[np.ndarray, np.ndarray]:
    """x of density 1 (calibration) or 2x (test) on (0, 1), scores that grow with x."""
    x = rng.random(shape)
    x = x**0.5 if test else x
    return x, np.abs(rng.normal(0, 0.1 + x**2, shape))


def test_true_weights_undo_a_known_shift() -> None:
    """4000 calibrations of 100 cases: coverage in [0.9, 0.9 + E max share], z at 1e-6."""
    rng = np.random.default_rng(4)
    hits = {"weighted": 0, "plain": 0}
    for _ in range(4000):
        x, score = shifted_cases(rng, (100,), False)
        own, reached = shifted_cases(rng, (1,), True)
        limit = order_statistics.weighted_threshold(score, 2 * x, 2 * own, 0.1)
        hits["weighted"] += int(reached[0] <= limit[0])
        plain = order_statistics.kth_smallest(score, conformal.coverage_rank(100, 0.1))
        hits["plain"] += int(reached[0] <= plain)
    error = (0.9 * 0.1 / 4000) ** 0.5
    # A weight is at most 2 of a total of about 100, so the quantile overshoots by at most 0.02.
    assert 0.9 - Z * error < hits["weighted"] / 4000 < 0.92 + Z * error
    assert hits["plain"] / 4000 < 0.9 - 2 * Z * error


def test_weights_from_end_to_end() -> None:
    """Intervals with weights from a classifier: total over 30 studies of 400 test cases."""
    rng = np.random.default_rng(5)
    shares: dict[str, list[float]] = {"weighted": [], "plain": []}
    told: list[bool] = []
    for _ in range(30):
        trees, features = [], []
        for number, prefix, test in ((400, "c", False), (400, "t", True)):
            x, noise = shifted_cases(rng, (number,), test)
            sign = rng.choice([-1, 1], number)
            tree = regression_tree(np.stack([x, x]), x + sign * noise, prefix=prefix)
            ids = tree["posterior"].to_dataset()["case"].values
            features.append(xr.DataArray(np.log(x)[:, None], {"case": ids}, ("case", "feature")))
            trees.append(tree)
        weights = conformal.density_ratio(*features, penalty=1e-3)
        assert 0.5 < weights[0].attrs["auc"] < 0.8
        learnt = conformal.calibrate_intervals(trees[0], method="absolute", weights=weights[0])
        assert float(learnt["effective_n"]) == pytest.approx(weights[0].attrs["effective_n"])
        result = conformal.predict_intervals(learnt, trees[1], weights=weights[1], shift_alarm=0)
        told.append(float(result["shift_pvalue"]) < 0.01)
        shares["weighted"].append(float(result["coverage"]))
        assert "coverage_lower" not in result
        plain = conformal.calibrate_intervals(trees[0], method="absolute")
        found = conformal.predict_intervals(plain, trees[1], shift_alarm=0)
        shares["plain"].append(float(found["coverage"]))
    assert stats.binomtest(sum(told), 30, 0.01, alternative="greater").pvalue > 1e-3
    error = np.std(shares["weighted"], ddof=1) / 30**0.5
    assert abs(np.mean(shares["weighted"]) - 0.9) < Z * error + 0.005
    assert np.mean(shares["plain"]) < 0.9 - 5 * error


def test_weights_that_do_not_undo_the_shift_are_told() -> None:
    """Equal weights where the ratio is 2x: without them, too, the alarm sounds."""
    rng = np.random.default_rng(9)
    trees = []
    for prefix, test in (("c", False), ("t", True)):
        x, noise = shifted_cases(rng, (400,), test)
        trees.append(regression_tree(np.stack([x, x]), x + noise, prefix=prefix))
    ones = xr.DataArray(np.ones(400), dims="case")
    learnt = conformal.calibrate_intervals(trees[0], method="absolute", weights=ones)
    with pytest.warns(RuntimeWarning, match="weighted as they are"):
        found = conformal.predict_intervals(learnt, trees[1], weights=ones)
    assert float(found["shift_pvalue"]) < 1e-3 and float(found["coverage_pvalue"]) < 0.1


def test_low_coverage_alone_is_told() -> None:
    """The p-value of the coverage is that of the Beta-binomial, and it warns by itself."""
    parts = [(600, 500, 451), (50, 80, 73)]
    rng = np.random.default_rng(10)
    hits = sum(
        rng.binomial(m, rng.beta(k, n + 1 - k, 200_000)) for m, n, k in parts
    )  # the coverage given the calibration follows a Beta
    for covered in (560, 575, 590):
        share = float(np.mean(hits <= covered))
        found = order_statistics.coverage_pvalue(parts, covered)
        assert abs(found - share) < 4.5 * (share * (1 - share) / 200_000) ** 0.5 + 1e-9
    same = Compared(rng.normal(size=(500, 1)))
    with pytest.warns(RuntimeWarning, match="fewer test cases are covered than chance"):
        result = exchangeability.compare(same, same, 0.01, coverage_pvalue=0.002)
    assert float(result) == pytest.approx(0.004)


def test_the_classifier_finds_the_likelihood_ratio() -> None:
    """Two normals a unit apart: the log ratio is a line of slope 1, found to 0.15."""
    rng = np.random.default_rng(6)
    values = [rng.normal(move, 1, (4000, 1)) for move in (0, 1)]
    first, second = (xr.DataArray(value, dims=("case", "feature")) for value in values)
    weights = conformal.density_ratio(first, second)
    slope = np.polyfit(values[0][:, 0], np.log(weights[0]), 1)[0]
    assert abs(slope - 1) < 0.15
    assert weights[0].attrs["auc"] == pytest.approx(stats.norm.cdf(0.5**0.5), abs=0.03)
    assert weights[1].sizes == {"case": 4000}


def test_bad_weights_and_features_are_refused() -> None:
    rng = np.random.default_rng(7)
    probs, label = vague_labels(rng, (60,), 3)
    first = probs_tree(probs[:30], label[:30])
    second = probs_tree(probs[30:], label[30:], prefix="t")
    ones = xr.DataArray(np.ones(30), dims="case")
    learnt = conformal.calibrate(first, weights=ones)
    with pytest.raises(ValueError, match="to both the calibration and the prediction"):
        conformal.predict_sets(learnt, second)
    with pytest.raises(ValueError, match="to both the calibration and the prediction"):
        conformal.predict_sets(conformal.calibrate(first), second, weights=ones)
    with pytest.raises(ValueError, match="same cases"):
        conformal.calibrate(first, weights=ones[:-1])
    for bad in (-ones, 0 * ones, ones * np.nan):
        with pytest.raises(ValueError, match="finite, not negative"):
            conformal.calibrate(first, weights=bad)
    same = conformal.predict_sets(learnt, second, weights=ones)
    plain = conformal.predict_sets(conformal.calibrate(first), second)
    np.testing.assert_array_equal(same["prediction_set"], plain["prediction_set"])
    features = [xr.DataArray(rng.normal(m, 1, (40, 2)), dims=("case", "feature")) for m in (0, 99)]
    with pytest.raises(ValueError, match="do not overlap"):
        conformal.density_ratio(*features)
    with pytest.raises(ValueError, match="give the same ones"):
        conformal.density_ratio(features[0], features[1][:, :1])
    with pytest.raises(ValueError, match="NaN or infinite"):
        conformal.density_ratio(features[0] * np.nan, features[1])
    with pytest.raises(ValueError, match="at least 10"):
        conformal.density_ratio(features[0][:5], features[1])
