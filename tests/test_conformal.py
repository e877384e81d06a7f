"""Prediction sets against the exact law of their coverage, MAPIE, and bad input."""

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from posterior_trees import array, classification_tree
from scipy import stats

from ppl_med import storage
from ppl_med.analysis import conformal


def split(tree: xr.DataTree, num_first: int) -> tuple[xr.DataTree, xr.DataTree]:
    first, second = (tree.isel(case=part) for part in (slice(num_first), slice(num_first, None)))
    return first, second


def binary_tree(score: np.ndarray, prefix: str) -> xr.DataTree:
    """A tree whose non-conformity scores are ``score``: label 0 has probability 1 - score."""
    ids = [f"{prefix}{index}" for index in range(score.size)]
    probs = xr.DataArray(
        np.stack([1 - score, score], -1)[None, None],
        {"case": ids},
        ("chain", "draw", "case", "class"),
    )
    label = xr.DataArray(np.zeros(score.size, int), {"case": ids}, ("case",))
    return xr.DataTree.from_dict(
        {
            "/posterior": probs.to_dataset(name="probs"),
            "/observed_data": label.to_dataset(name="label"),
        }
    )


@pytest.mark.parametrize(("num_cases", "alpha"), [(100, 0.1), (37, 0.2), (19, 0.05)])
def test_coverage_follows_the_beta_binomial_law(num_cases: int, alpha: float) -> None:
    """4000 data sets: chi-square of the covered count, 1e-6.

    The first test shows that the threshold is the k-th order statistic; here that order
    statistic of uniform scores is applied to fresh ones, all repeats at once.
    """
    repeats, num_test = 4000, 30
    rng = np.random.default_rng(num_cases)
    scores = rng.random((repeats, num_cases))
    rank = conformal.coverage_rank(num_cases, alpha)
    threshold = np.sort(scores, axis=1)[:, rank - 1]
    for index in range(5):
        learnt = conformal.calibrate(binary_tree(scores[index], "c"), alpha)
        assert float(learnt["threshold"]) == pytest.approx(threshold[index], abs=1e-15)
        assert (int(learnt["n"]), int(learnt["k"])) == (num_cases, rank)
    uniform = stats.kstest(threshold, stats.beta(rank, num_cases + 1 - rank).cdf)
    assert uniform.pvalue > 1e-6
    covered = (rng.random((repeats, num_test)) <= threshold[:, None]).sum(1)
    law = stats.betabinom(num_test, rank, num_cases + 1 - rank)
    expected = repeats * law.pmf(np.arange(num_test + 1))
    seen = np.bincount(covered, minlength=num_test + 1)
    keep = expected >= 5
    pooled = [np.append(counts[keep], counts[~keep].sum()) for counts in (seen, expected)]
    assert stats.chisquare(*pooled).pvalue > 1e-6
    lower, upper = conformal.coverage_band(num_test, num_cases, rank)
    outside = ((covered / num_test < lower) | (covered / num_test > upper)).sum()
    assert stats.binomtest(int(outside), repeats, 0.01, alternative="greater").pvalue > 1e-6


def test_coverage_band_matches_scipy() -> None:
    for num_test, num_cases, alpha in [(30, 100, 0.1), (500, 37, 0.2), (1, 19, 0.05), (77, 9, 0.1)]:
        rank = conformal.coverage_rank(num_cases, alpha)
        law = stats.betabinom(num_test, rank, num_cases + 1 - rank)
        expected = [law.ppf(0.005) / num_test, law.ppf(0.995) / num_test]
        assert conformal.coverage_band(num_test, num_cases, rank) == pytest.approx(expected)


def test_coverage_from_end_to_end_follows_the_law() -> None:
    """100 splits of trees with three classes: sum of the counts, 1e-6."""
    covered = []
    for seed in range(100):
        tree = classification_tree(seed=seed, cases=60, chains=1, draws=2)
        first, second = split(tree, 39)
        result = conformal.predict_sets(conformal.calibrate(first, 0.1), second)
        covered.append(int(result["covered"].sum()))
        assert float(result["coverage"]) == covered[-1] / 21
        assert float(result["coverage_expected"]) == 36 / 40
    law = stats.betabinom(21, 36, 4)
    z = (np.mean(covered) - law.mean()) / (law.std() / 100**0.5)
    assert abs(z) < stats.norm.isf(1e-6 / 2)


def test_sets_match_mapie() -> None:
    pytest.importorskip("mapie", reason="oracle")
    from mapie.classification import SplitConformalClassifier
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Table(ClassifierMixin, BaseEstimator):
        """Looks its prediction up: the feature is the row of the table."""

        classes_ = np.arange(3)
        fitted_ = True

        def fit(self, rows: np.ndarray, label: np.ndarray) -> "Table":
            return self

        def predict_proba(self, rows: np.ndarray) -> np.ndarray:
            return table[rows[:, 0].astype(int)]

        def predict(self, rows: np.ndarray) -> np.ndarray:
            return self.predict_proba(rows).argmax(1)

    tree = classification_tree(cases=300)
    table = array(tree, "posterior/probs").mean(("chain", "draw")).values
    label = array(tree, "observed_data/label").values
    first, second = split(tree, 120)
    rows = np.arange(300)[:, None]
    for alpha in (0.05, 0.1, 0.3):
        oracle = SplitConformalClassifier(
            Table(), confidence_level=1 - alpha, conformity_score="lac", prefit=True
        ).conformalize(rows[:120], label[:120])
        _, expected = oracle.predict_set(rows[120:])
        result = conformal.predict_sets(conformal.calibrate(first, alpha), second)
        np.testing.assert_array_equal(result["prediction_set"].values, expected[:, :, 0])
        np.testing.assert_array_equal(result["set_size"], expected[:, :, 0].sum(1))


def test_rank_is_exact_for_every_size() -> None:
    for text in ("0.1", "0.05", "0.2", "0.3", "0.01", "0.176", "0.18"):
        for num_cases in range(1, 2000):
            exact = -((num_cases + 1) * (Fraction(text) - 1) // 1)
            assert conformal.coverage_rank(num_cases, float(text)) == exact


def test_ties_are_inside_the_set() -> None:
    learnt = conformal.calibrate(binary_tree(np.full(20, 0.25), "c"))
    result = conformal.predict_sets(learnt, binary_tree(np.full(5, 0.25), "t"))
    assert result["prediction_set"].values.tolist() == [[True, False]] * 5


def test_too_few_cases_give_full_sets() -> None:
    first, second = split(classification_tree(cases=20), 5)
    learnt = conformal.calibrate(first, 0.1)
    assert np.isposinf(float(learnt["threshold"]))
    result = conformal.predict_sets(learnt, second)
    assert bool(result["prediction_set"].all())
    bounds = [float(result[f"coverage{name}"]) for name in ("", "_lower", "_upper", "_expected")]
    assert bounds == [1, 1, 1, 1]


def test_sets_grow_as_alpha_falls() -> None:
    first, second = split(classification_tree(cases=200), 100)
    sets = [
        conformal.predict_sets(conformal.calibrate(first, alpha), second)["prediction_set"]
        for alpha in (0.5, 0.2, 0.05, 0.001)
    ]
    for small, large in itertools.pairwise(sets):
        assert bool((large | ~small).all())


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_calibration_saves_and_applies_to_another_tree(suffix: str, tmp_path: Path) -> None:
    first, second = split(classification_tree(cases=60), 30)
    learnt = conformal.calibrate(first)
    path = tmp_path / f"calibration{suffix}"
    storage.save(learnt, path)
    loaded = storage.load(path)
    assert isinstance(loaded, xr.Dataset)
    xr.testing.assert_identical(
        conformal.predict_sets(loaded, second), conformal.predict_sets(learnt, second)
    )
    result = conformal.predict_sets(loaded, second)
    storage.save(result, tmp_path / f"sets{suffix}")
    xr.testing.assert_identical(storage.load(tmp_path / f"sets{suffix}"), result)
    with pytest.raises(ValueError, match="share 30 case"):
        conformal.predict_sets(loaded, first)


def test_sets_need_no_labels() -> None:
    first, second = split(classification_tree(cases=60), 30)
    result = conformal.predict_sets(conformal.calibrate(first), array(second, "posterior/probs"))
    assert {"prediction_set", "set_size"} <= set(result.data_vars)
    assert not {"covered", "coverage", "coverage_lower"} & set(result.data_vars)
    assert result["prediction_set"].dtype == bool
    assert result["prediction_set"].dims == ("case", "class")


def test_shared_and_repeated_cases_are_refused() -> None:
    tree = classification_tree(cases=40)
    learnt = conformal.calibrate(tree.isel(case=slice(25)))
    with pytest.raises(ValueError, match=r"share 5 case\(s\), e.g. 'patient-20'"):
        conformal.predict_sets(learnt, tree.isel(case=slice(20, None)))
    with pytest.raises(ValueError, match="'patient-1' appears 2 times"):
        conformal.calibrate(tree.isel(case=[1, 2, 3, 1]))
    with pytest.raises(ValueError, match="appears 3 times"):
        conformal.predict_sets(learnt, tree.isel(case=[30, 30, 31, 30]))
    nameless = array(tree, "posterior/probs").drop_vars("case")
    with pytest.raises(ValueError, match="no case ids"):
        conformal.predict_sets(learnt, nameless)


@pytest.mark.parametrize("within", [None, "class"])
def test_cases_without_a_label_neither_calibrate_nor_count(within: str | None) -> None:
    halves = split(classification_tree(cases=160), 80)
    missing = np.random.default_rng(5).random(80) < 0.3
    kept = [half.isel(case=np.flatnonzero(~missing)) for half in halves]
    for half in halves:
        label = array(half, "observed_data/label")
        half["observed_data"] = label.where(~missing, -1).astype(int).to_dataset(name="label")
    learnt = conformal.calibrate(halves[0], 0.2, within=within, method="aps")
    alone = conformal.calibrate(kept[0], 0.2, within=within, method="aps")
    xr.testing.assert_equal(learnt, alone)
    assert learnt.attrs["left_out"] == learnt.attrs["left_out_cases"] == missing.sum()
    found = conformal.predict_sets(learnt, halves[1])
    expected = conformal.predict_sets(alone, kept[1])
    for name in ("coverage", "coverage_lower", "coverage_upper"):
        xr.testing.assert_equal(found[name], expected[name])
    np.testing.assert_array_equal(np.isnan(found["covered"]), missing)
    np.testing.assert_array_equal(found["covered"][~missing], expected["covered"])
    of_groups = [
        conformal.coverage(result, tree)
        for result, tree in ((found, halves[1]), (expected, kept[1]))
    ]
    xr.testing.assert_equal(*of_groups)
    assert of_groups[0].attrs["left_out"] == missing.sum()
    sizes = conformal.set_sizes(found)
    assert int(sizes["count"].sum()) == 80
    xr.testing.assert_equal(sizes["coverage"], conformal.set_sizes(expected)["coverage"])
    halves[1]["observed_data"] = (0 * label - 1).to_dataset(name="label")
    unseen = conformal.predict_sets(learnt, halves[1])
    assert np.isnan(unseen["coverage"]) and np.isnan(unseen["covered"]).all()


def test_other_bad_input_is_refused() -> None:
    first, second = split(classification_tree(cases=60), 30)
    learnt = conformal.calibrate(first)
    for alpha in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="alpha"):
            conformal.calibrate(first, alpha)
    with pytest.raises(TypeError, match=r"conformal\.calibrate"):
        conformal.predict_sets(second["posterior"].to_dataset(), second)
    with pytest.raises(ValueError, match="method 'cqr' and is no calibration for classes"):
        conformal.predict_sets(learnt.assign_attrs(method="cqr"), second)
    renamed = array(second, "posterior/probs").assign_coords({"class": ["a", "b", "c"]})
    with pytest.raises(ValueError, match="knows the classes"):
        conformal.predict_sets(learnt, renamed)
    with pytest.raises(ValueError, match="no observed label"):
        conformal.calibrate(first.filter(lambda node: node.name != "observed_data"))


def test_malformed_probabilities_and_unknown_classes_are_refused() -> None:
    first, second = split(classification_tree(cases=60), 30)
    learnt = conformal.calibrate(first)
    for tree in (first, second):
        doubled, unknown = tree.copy(), tree.copy()
        doubled["posterior"] = (2 * tree["posterior"].to_dataset()).copy()
        unknown["observed_data"] = tree["observed_data"].to_dataset() + 3
        for bad, message in ((doubled, "sum to one"), (unknown, r"outside 0\.\.2")):
            with pytest.raises(ValueError, match=message):
                if tree is first:
                    conformal.calibrate(bad)
                else:
                    conformal.predict_sets(learnt, bad)
