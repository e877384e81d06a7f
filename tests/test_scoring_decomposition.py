"""Parts of the Brier score: exact identities, scikit-learn's isotonic regression, known laws."""

import numpy as np
import pytest
import sklearn.isotonic
import xarray as xr
from posterior_trees import array, classification_tree, draw_labels, random_probs
from scipy import stats

from ppl_med.analysis import scoring
from ppl_med.analysis.statistics import isotonic

Z = stats.norm.isf(1e-6 / 2)


def labelled(probs: xr.DataArray, label: xr.DataArray) -> xr.DataTree:
    groups = {"/posterior": probs.to_dataset(name="probs")}
    return xr.DataTree.from_dict(groups | {"/observed_data": label.to_dataset(name="label")})


def rounded(decimals: int) -> xr.DataTree:
    """Two classes with few different probabilities, so that ties abound."""
    first = random_probs(chains=2, draws=3, cases=80, classes=2).isel({"class": [0]})
    probs = xr.concat([first.round(decimals), 1 - first.round(decimals)], "class")
    probs = probs.transpose("chain", "draw", "case", "class").assign_coords({"class": ["a", "b"]})
    label = draw_labels(probs.isel(chain=0, draw=0, drop=True), np.random.default_rng(1))
    return labelled(probs, label)


@pytest.mark.parametrize("tree", [classification_tree(), rounded(1), rounded(12)])
def test_identities_are_exact(tree: xr.DataTree) -> None:
    scores = scoring.score(tree)
    corp = scoring.brier_decomposition(tree)
    binned = scoring.brier_decomposition(tree, "binned", bins=7)
    for suffix, reference in (("", scores["brier"]), ("_per_draw", scores["brier_per_draw"])):
        part = {str(name): corp[f"{name}{suffix}"] for name in ("brier", "uncertainty")}
        mcb, dsc = corp[f"miscalibration{suffix}"], corp[f"discrimination{suffix}"]
        np.testing.assert_allclose(part["brier"], reference, rtol=1e-12)
        np.testing.assert_allclose(mcb - dsc + part["uncertainty"], reference, rtol=1e-12)
        assert bool((mcb > -1e-15).all()) and bool((dsc > -1e-15).all())
        names = ("reliability", "resolution", "uncertainty", "variance", "covariance")
        rel, res, unc, var, cov = (binned[f"{name}{suffix}"] for name in names)
        np.testing.assert_allclose(rel - res + unc + var - cov, reference, rtol=1e-12)
    for table in (corp, binned):
        for name in (n for n in table.data_vars if f"{n}_per_class" in table):
            total = float(table[f"{name}_per_class"].sum())
            assert float(table[name]) == pytest.approx(total, rel=1e-12)


def test_murphys_three_parts_suffice_where_bins_hold_one_value() -> None:
    """Eleven bins part the multiples of 0.1."""
    tree = rounded(1)
    probs = array(tree, "posterior/probs").isel(chain=[0], draw=[0])
    tree = labelled(probs, array(tree, "observed_data/label"))
    result = scoring.brier_decomposition(tree, "binned", bins=11)
    assert float(result["variance"]) == pytest.approx(0, abs=1e-15)
    assert float(result["covariance"]) == pytest.approx(0, abs=1e-15)
    three = result["reliability"] - result["resolution"] + result["uncertainty"]
    assert float(three) == pytest.approx(float(result["brier"]), rel=1e-12)


def test_isotonic_fit_matches_sklearn() -> None:
    rng = np.random.default_rng(0)
    for decimals in (1, 2, 15):
        probability = rng.random(200).round(decimals)
        outcome = (rng.random(200) < probability).astype(float)
        oracle = sklearn.isotonic.IsotonicRegression(out_of_bounds="clip")
        expected = oracle.fit_transform(probability, outcome)
        np.testing.assert_allclose(isotonic.fit(probability, outcome), expected, atol=1e-12)
        grid = np.linspace(-0.1, 1.1, 300)
        np.testing.assert_allclose(
            np.interp(grid, *isotonic.knots(probability, outcome)), oracle.predict(grid), atol=1e-12
        )


def test_parts_of_known_cases() -> None:
    """Perfect, constant at the base rate, and exactly reversed probabilities."""
    label = xr.DataArray([0, 0, 1, 1], dims="case")

    def parts(second: list[float]) -> list[float]:
        values = np.array([[1 - p, p] for p in second])[None, None]
        probs = xr.DataArray(values, dims=("chain", "draw", "case", "class"))
        table = scoring.brier_decomposition(labelled(probs, label))
        return [float(table[n]) for n in ("miscalibration", "discrimination", "uncertainty")]

    assert parts([0, 0, 1, 1]) == pytest.approx([0, 0.5, 0.5])
    assert parts([0.5] * 4) == pytest.approx([0, 0, 0.5])
    assert parts([0.9, 0.9, 0.1, 0.1]) == pytest.approx([2 * (0.81 - 0.25), 0, 0.5])


def test_miscalibration_finds_a_known_distortion() -> None:
    """p is 0.1 or 0.9 where the truth is 0.3 or 0.7: twice 0.2^2 over the two classes."""
    rng = np.random.default_rng(4)
    high = rng.random(20_000) < 0.5
    label = (rng.random(20_000) < np.where(high, 0.7, 0.3)).astype(int)
    second = np.where(high, 0.9, 0.1)
    probs = np.stack([1 - second, second], -1)[None, None]
    tree = labelled(
        xr.DataArray(probs, dims=("chain", "draw", "case", "class")),
        xr.DataArray(label, dims="case"),
    )
    result = scoring.brier_decomposition(tree)
    gaps = [second[high == side].mean() - label[high == side].mean() for side in (False, True)]
    exact = 2 * sum(gap**2 * (high == side).mean() for gap, side in zip(gaps, (0, 1), strict=True))
    assert float(result["miscalibration"]) == pytest.approx(exact, rel=1e-10)
    error = 4 * 0.2 * (0.21 / 20_000) ** 0.5
    assert abs(float(result["miscalibration"]) - 2 * 0.04) < Z * error


def test_proper_scores_are_least_at_the_truth() -> None:
    """NLL and Brier score, paired over 4000 cases; the Brier score is worse by miscalibration."""
    truth = random_probs(chains=1, draws=1, cases=4000, seed=2)
    label = draw_labels(truth.isel(chain=0, draw=0, drop=True), np.random.default_rng(6))
    indicator = label == xr.DataArray(np.arange(3), {"class": truth["class"]}, ["class"])
    for power in (0.5, 2.0):
        wrong = truth**power / (truth**power).sum("class")
        results = [scoring.score(labelled(probs, label)) for probs in (truth, wrong)]
        for name, term in (
            ("nll", lambda p: -np.log((p * indicator).sum("class"))),
            ("brier", lambda p: ((p - indicator) ** 2).sum("class")),
        ):
            difference = (term(wrong) - term(truth)).values.ravel()
            assert float(results[1][name] - results[0][name]) == pytest.approx(difference.mean())
            assert difference.mean() / stats.sem(difference) > Z


def test_misuse_is_refused() -> None:
    tree = classification_tree()
    with pytest.raises(ValueError, match="method must be 'corp'"):
        scoring.brier_decomposition(tree, "murphy")
    with pytest.raises(ValueError, match="bins must be"):
        scoring.brier_decomposition(tree, "binned", bins=0)
    halved = tree.copy()
    halved["posterior"] = xr.Dataset({"probs": array(tree, "posterior/probs") / 2})
    with pytest.raises(ValueError, match="sum to one"):
        scoring.brier_decomposition(halved)
