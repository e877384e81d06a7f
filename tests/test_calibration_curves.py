"""Reliability curves against scikit-learn and scipy; bands against calibrated labels."""

import numpy as np
import pytest
import sklearn.calibration
import sklearn.isotonic
from labelled_trees import calibrated_labels, labelled_tree, tempered
from posterior_trees import array, classification_tree, random_probs
from scipy import stats

from ppl_med.analysis import calibration, scoring


def test_classwise_bins_match_sklearn_and_scipy() -> None:
    tree = classification_tree(cases=400)
    result = calibration.reliability_classwise(tree, bins=10)
    probs = array(tree, "posterior/probs").mean(("chain", "draw")).values
    label = array(tree, "observed_data/label").values
    ece = calibration.errors(tree, bins=10, replicates=0)["ece_per_class"]
    np.testing.assert_allclose(result["ece"], ece)
    for index, name in enumerate(("class 0", "class 1", "class 2")):
        row = result.sel({"class": name})
        filled = row.isel(bin=row["count"].values > 0)
        curve = sklearn.calibration.calibration_curve(label == index, probs[:, index], n_bins=10)
        np.testing.assert_allclose(filled["frequency"], curve[0])
        np.testing.assert_allclose(filled["probability"], curve[1])
        for bin_index in range(filled.sizes["bin"]):
            part = filled.isel(bin=bin_index)
            count = int(part["count"])
            exact = stats.binomtest(round(float(part["frequency"]) * count), count).proportion_ci()
            np.testing.assert_allclose([part["lower"], part["upper"]], [exact.low, exact.high])


def test_equal_mass_bins_hold_equally_many_cases() -> None:
    tree = classification_tree(cases=400)
    result = calibration.reliability_classwise(tree, bins=8, binning_by="equal_mass")
    assert (result["count"] == 50).all()
    probs = array(tree, "posterior/probs").mean(("chain", "draw")).values[:, 1]
    label = array(tree, "observed_data/label").values[probs.argsort()] == 1
    np.testing.assert_allclose(result["frequency"][1], label.reshape(8, 50).mean(1))
    parts = np.sort(probs).reshape(8, 50)
    np.testing.assert_allclose(result["probability"][1], parts.mean(1))
    assert (parts[:, -1] <= result["edge_upper"][1].values + 1e-12).all()
    assert (parts[:, 0] > result["edge_lower"][1].values + 1e-12).all()


def test_empty_bins_are_nan() -> None:
    tree = labelled_tree(np.array([[0.9, 0.1], [0.85, 0.15]]), np.array([0, 1]))
    result = calibration.reliability_classwise(tree, bins=5)
    assert result["count"].values.tolist() == [[0, 0, 0, 0, 2], [2, 0, 0, 0, 0]]
    assert np.isnan(result["frequency"].values).sum() == 8
    assert np.isnan(result["upper"].values).sum() == 8
    tied = labelled_tree(np.array([[0.5, 0.5]] * 9), np.array([0, 1, 1] * 3))
    mass = calibration.reliability_classwise(tied, bins=4, binning_by="equal_mass")
    assert mass["count"].sum("bin").values.tolist() == [9, 9]
    assert mass["count"].max("bin").values.tolist() == [9, 9]


@pytest.mark.parametrize("classwise", [False, True])
def test_pava_matches_sklearn_and_the_decomposition(classwise: bool) -> None:
    tree = classification_tree(cases=200)
    result = calibration.pava(tree, classwise=classwise, replicates=0)
    probs = array(tree, "posterior/probs").mean(("chain", "draw")).values
    label = array(tree, "observed_data/label").values
    given, happened = (
        (probs[:, 1], label == 1) if classwise else (probs.max(1), probs.argmax(1) == label)
    )
    curve = result.sel({"class": "class 1"}) if classwise else result
    order = given.argsort()
    fit = sklearn.isotonic.IsotonicRegression().fit_transform(given, happened.astype(float))
    np.testing.assert_allclose(curve["probability"], given[order])
    np.testing.assert_allclose(curve["frequency"], fit[order], atol=1e-12)
    brier = ((given - happened) ** 2).mean()
    assert float(curve["brier"]) == pytest.approx(brier)
    parts = curve["miscalibration"] - curve["discrimination"] + curve["uncertainty"]
    assert float(parts) == pytest.approx(brier, rel=1e-12)
    if classwise:
        table = scoring.brier_decomposition(tree)["miscalibration_per_class"]
        np.testing.assert_allclose(result["miscalibration"], table)


@pytest.mark.parametrize("classwise", [False, True])
def test_curves_of_draws_are_those_of_a_mixture_of_one(classwise: bool) -> None:
    tree = classification_tree(cases=30, draws=3)
    result = calibration.pava(tree, classwise=classwise, per_draw=True, replicates=0)
    label = array(tree, "observed_data/label").values
    probs = array(tree, "posterior/probs")[1, 2].values
    one = calibration.pava(labelled_tree(probs, label), classwise=classwise, replicates=0)
    for name in ("probability", "frequency"):
        part = result[f"{name}_per_draw"].isel(chain=1, draw=2)
        assert part.dims == one[name].dims
        np.testing.assert_allclose(part, one[name], rtol=1e-12)


def test_the_band_holds_calibrated_curves() -> None:
    """300 calibrated data sets, one point each: 90 % inside, up to ties and 99 replicates."""
    rng = np.random.default_rng(5)
    outside = 0
    for seed in range(300):
        probs = random_probs(chains=1, draws=1, cases=40, classes=2, seed=seed).values[0, 0]
        tree = labelled_tree(probs, calibrated_labels(probs, rng))
        point = calibration.pava(tree, replicates=99, level=0.9, seed=seed).isel(rank=20)
        outside += not float(point["lower"]) <= float(point["frequency"]) <= float(point["upper"])
    assert stats.binomtest(outside, 300, 0.12, alternative="greater").pvalue > 1e-6
    assert stats.binomtest(outside, 300, 0.06, alternative="less").pvalue > 1e-6


def test_the_band_of_one_probability_is_binomial() -> None:
    """The fit is then the share of 200 cases; each end within the z limit of its tail, 1e-6."""
    tree = labelled_tree(np.tile([0.7, 0.3], (200, 1)), np.zeros(200, int))
    result = calibration.pava(tree, replicates=3000, level=0.9).isel(rank=0)
    law = stats.binom(200, 0.7)
    slack = stats.norm.isf(1e-6 / 2) * (0.05 * 0.95 / 3000) ** 0.5
    lower, upper = (round(200 * float(result[name])) for name in ("lower", "upper"))
    assert law.cdf(lower - 1) - slack < 0.05 < law.cdf(lower) + slack
    assert law.sf(upper) - slack < 0.05 < law.sf(upper - 1) + slack


def test_over_confidence_leaves_the_band() -> None:
    probs = random_probs(chains=1, draws=1, cases=600).values[0, 0]
    label = calibrated_labels(probs, np.random.default_rng(6))
    for power, expected in ((1.0, False), (3.0, True)):
        result = calibration.pava(labelled_tree(tempered(probs, power), label), replicates=100)
        below = (result["frequency"] < result["lower"]).mean()
        assert (float(below) > 0.5) == expected


def test_misuse_is_refused() -> None:
    tree = classification_tree(cases=8)
    with pytest.raises(ValueError, match="binning_by must be"):
        calibration.reliability_classwise(tree, binning_by="mass")
    with pytest.raises(ValueError, match="bins must be"):
        calibration.reliability_classwise(tree, bins=0)
    with pytest.raises(ValueError, match="level must be strictly between"):
        calibration.pava(tree, level=95)
    with pytest.raises(TypeError):
        calibration.pava(array(tree, "posterior/probs"))
    pixels = labelled_tree(np.full((3, 2, 4), 0.5), np.zeros((3, 4), int), extra=("row",))
    for curve in (calibration.pava, calibration.reliability_classwise):
        with pytest.raises(ValueError, match="pixel_reliability"):
            curve(pixels)
