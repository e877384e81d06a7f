"""Thresholds within groups, coverage by group, and set sizes."""

import numpy as np
import pytest
import xarray as xr
from conformal_trees import (
    REPEATS,
    Z,
    check_beta_law,
    probs_tree,
    split,
    vague_labels,
    with_column,
)
from posterior_trees import array, classification_tree
from scipy import stats

from ppl_med.analysis import conformal
from ppl_med.analysis.conformal import order_statistics, thresholds


@pytest.mark.parametrize(
    "size", [40, *(pytest.param(size, marks=pytest.mark.slow) for size in (100, 400, 2000))]
)
def test_every_group_follows_its_own_law(size: int) -> None:
    """Groups with other laws of the score: Beta(k_g, n_g + 1 - k_g) in each, KS at 1e-3."""
    rng = np.random.default_rng(size)
    found: dict[str, list[tuple[float, int, int]]] = {"a": [], "b": []}
    for _ in range(REPEATS // 2 if size == 40 else REPEATS):
        group = np.where(rng.random(size) < 0.4, "a", "b")
        group[:2] = "a", "b"
        uniform = rng.random(size)
        score = np.where(group == "a", uniform, 5 * uniform**2)
        learnt = thresholds.learn(
            xr.DataArray(score, dims="case"), 0.2, groups=xr.DataArray(group, dims="case")
        )
        for name, inverse in (("a", lambda t: t), ("b", lambda t: (t / 5) ** 0.5)):
            one = learnt.sel(group=name)
            if np.isfinite(float(one["threshold"])):
                n, k = int(one["n"]), int(one["k"])
                assert k == order_statistics.coverage_rank(n, 0.2)
                found[name].append((inverse(float(one["threshold"])), k, n))
    for triples in found.values():
        coverage, rank, number = np.array(triples).T
        check_beta_law(coverage, rank, number)


def hard_classes(rng: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Class 2 is rare and mostly missed by the model."""
    label = rng.choice(3, number, p=[0.5, 0.35, 0.15])
    logits = rng.normal(size=(number, 3))
    logits[np.arange(number), label] += np.where(label == 2, 0.3, 2.5)
    probs = np.exp(logits)
    return probs / probs.sum(1, keepdims=True), label


def test_class_conditional_sets_cover_every_class() -> None:
    """Totals per class over 60 calibrations, z at 1e-6; one threshold fails the rare class."""
    rng = np.random.default_rng(0)
    hits = {"class": np.zeros(3), "": np.zeros(3)}
    mean, var = np.zeros(3), np.zeros(3)
    total = np.zeros(3)
    for _ in range(60):
        probs, label = hard_classes(rng, 300)
        first = probs_tree(probs[:150], label[:150])
        test = probs_tree(probs[150:], label[150:], prefix="t")
        for within in ("class", ""):
            learnt = conformal.calibrate(first, 0.2, within=within or None)
            covered = conformal.predict_sets(learnt, test, shift_alarm=0)["covered"].values
            hits[within] += np.bincount(label[150:], covered, minlength=3)
            if within:
                count = np.bincount(label[150:], minlength=3)
                law = stats.betabinom(count, learnt["k"], learnt["n"] + 1 - learnt["k"])
                mean, var, total = mean + law.mean(), var + law.var(), total + count
    assert (np.abs(hits["class"] - mean) < Z * var**0.5).all()
    assert hits[""][2] / total[2] < 0.7


def test_sets_within_class_follow_the_definition() -> None:
    rng = np.random.default_rng(1)
    probs, label = hard_classes(rng, 200)
    first = probs_tree(probs[:100], label[:100])
    second = probs_tree(probs[100:], label[100:], prefix="t")
    learnt = conformal.calibrate(first, 0.1, within="class")
    expected = np.empty((100, 3), bool)
    for number in range(3):
        own = np.sort(1 - probs[:100][label[:100] == number, number])
        rank = conformal.coverage_rank(own.size, 0.1)
        limit = own[rank - 1] if rank <= own.size else np.inf
        expected[:, number] = 1 - probs[100:, number] <= limit
    result = conformal.predict_sets(learnt, second)
    np.testing.assert_array_equal(result["prediction_set"], expected)
    bare = conformal.predict_sets(learnt, array(second, "posterior/probs"))
    np.testing.assert_array_equal(bare["prediction_set"], expected)
    assert np.isnan(bare["shift_pvalue"])


def sites(rng: np.random.Generator, number: int, prefix: str) -> xr.DataTree:
    """Site B's labels are mostly noise."""
    probs, label = vague_labels(rng, (number,), 3)
    site = np.where(rng.random(number) < 0.5, "A", "B")
    label = np.where(site == "A", probs.argmax(1), label)
    return with_column(probs_tree(probs, label, prefix=prefix), "site", site)


def test_site_conditional_sets_and_their_bands() -> None:
    """Outside the 99 % band of its site in at most 1 % of 100, binomial at 1e-6."""
    rng = np.random.default_rng(2)
    outside = {"site": 0, "": 0}
    for _ in range(50):
        first, second = sites(rng, 80, "c"), sites(rng, 60, "t")
        for within in ("site", ""):
            learnt = conformal.calibrate(first, 0.2, within=within or None)
            sets = conformal.predict_sets(learnt, second, shift_alarm=0)
            by = conformal.coverage(sets, second, "site")
            assert by.attrs["promised"] == int(within == "site")
            bad = (by["coverage"] < by["lower"]) | (by["coverage"] > by["upper"])
            outside[within] += int(bad.sum())
            assert int(by["count"].sum()) == 60
            total = float((by["coverage"] * by["count"]).sum() / 60)
            assert total == pytest.approx(float(sets["coverage"]))
    assert stats.binomtest(outside["site"], 100, 0.01, alternative="greater").pvalue > 1e-6
    assert outside[""] > 10


def test_the_groups_may_be_an_array() -> None:
    rng = np.random.default_rng(3)
    first, second = sites(rng, 80, "c"), sites(rng, 60, "t")
    column = [array(tree, "constant_data/site") for tree in (first, second)]
    learnt = conformal.calibrate(first, within=column[0])
    by_array = conformal.predict_sets(learnt, second, within=column[1])
    by_name = conformal.predict_sets(conformal.calibrate(first, within="site"), second)
    np.testing.assert_array_equal(by_array["prediction_set"], by_name["prediction_set"])
    with pytest.raises(ValueError, match="within must be given here exactly where"):
        conformal.predict_sets(learnt, second)
    one = conformal.coverage(by_name, by=column[1])
    np.testing.assert_allclose(one["lower"], conformal.coverage(by_name, second, "site")["lower"])


def test_the_band_over_groups_is_the_convolution() -> None:
    """Simulated totals of two groups: mean exact, the share outside 99 % at most 1 %."""
    rng = np.random.default_rng(4)
    groups = [(12, 20, 18), (30, 50, 46), (5, 3, 4)]
    parts = [
        rng.binomial(m, rng.beta(k, n + 1 - k, 20_000)) if k <= n else np.full(20_000, m)
        for m, n, k in groups
    ]
    share = np.sum(parts, 0) / 47
    lower, upper = order_statistics.joint_band(groups)
    outside = int(((share < lower - 1e-9) | (share > upper + 1e-9)).sum())
    assert stats.binomtest(outside, share.size, 0.01, alternative="greater").pvalue > 1e-6
    assert stats.binomtest(outside, share.size, 0.002, alternative="less").pvalue > 1e-6
    z = (share.mean() - order_statistics.expected_coverage(groups)) / share.std() * share.size**0.5
    assert abs(z) < Z


def test_coverage_by_class_and_size_counts() -> None:
    first, second = split(classification_tree(cases=200), 120)
    sets = conformal.predict_sets(conformal.calibrate(first), second)
    label = array(second, "observed_data/label").values
    by = conformal.coverage(sets, second, "class")
    for number in range(3):
        one = by.sel(group=f"class {number}")
        hit = sets["covered"].values[label == number]
        assert float(one["coverage"]) == hit.mean()
        assert int(one["count"]) == hit.size
        own = stats.binomtest(int(hit.sum()), hit.size).proportion_ci(0.95, "exact")
        np.testing.assert_allclose(
            [one["interval_lower"], one["interval_upper"]], [own.low, own.high]
        )
        band = conformal.coverage_band(hit.size, 120, int(sets["k"]))
        np.testing.assert_allclose([one["lower"], one["upper"]], band)
    sizes = conformal.set_sizes(sets)
    np.testing.assert_array_equal(sizes["count"], np.bincount(sets["set_size"], minlength=4))
    assert float(sizes["mean"]) == sets["set_size"].values.mean()
    by_size = conformal.coverage(sets, by="set_size")
    seen = by_size["group"].values.astype(int)
    np.testing.assert_allclose(by_size["coverage"], sizes["coverage"].values[seen])


def test_groups_that_cannot_hold_are_refused() -> None:
    rng = np.random.default_rng(5)
    first, second = sites(rng, 80, "c"), sites(rng, 60, "t")
    learnt = conformal.calibrate(first, within="site")
    strange = with_column(second, "site", np.repeat(["A", "C"], 30))
    with pytest.raises(ValueError, match=r"test cases have the group\(s\) \['C'\]"):
        conformal.predict_sets(learnt, strange)
    with pytest.raises(ValueError, match="no column of constant_data"):
        conformal.calibrate(first, within="scanner")
    with pytest.raises(ValueError, match=r"missing .* in 40 of 80 entries"):
        conformal.calibrate(with_column(first, "site", np.repeat(["A", ""], 40)), within="site")
    label = np.zeros(40, int)
    with pytest.raises(ValueError, match=r"No calibration case in the group\(s\) \['class 1'"):
        conformal.calibrate(probs_tree(vague_labels(rng, (40,), 3)[0], label), within="class")
    weights = xr.DataArray(np.ones(80), dims="case")
    with pytest.raises(ValueError, match="within or weights, not both"):
        conformal.calibrate(first, within="site", weights=weights)
    sets = conformal.predict_sets(conformal.calibrate(first), second)
    with pytest.raises(TypeError, match="needs the tree"):
        conformal.coverage(sets, by="site")
    with pytest.raises(TypeError, match="predict_sets for cases with labels"):
        conformal.coverage(sets.drop_vars("covered"), second)
    with pytest.raises(TypeError, match="which only a DataTree has"):
        conformal.predict_sets(learnt, array(second, "posterior/probs"))


def test_other_shares_of_the_sites_are_no_shift_within_them() -> None:
    """The model is surer at site A; more of A alarms one threshold, not one per site."""
    rng = np.random.default_rng(6)

    def sample(share: float, prefix: str) -> xr.DataTree:
        site = np.where(rng.random(400) < share, "A", "B")
        logits = rng.normal(size=(400, 3)) * np.where(site == "A", 4.0, 0.5)[:, None]
        probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        label = (probs.cumsum(1) < rng.random((400, 1))).sum(1).clip(max=2)
        return with_column(probs_tree(probs, label, prefix=prefix), "site", site)

    first, second = sample(0.2, "c"), sample(0.8, "t")
    with pytest.warns(RuntimeWarning, match="look different"):
        conformal.predict_sets(conformal.calibrate(first), second)
    sets = conformal.predict_sets(conformal.calibrate(first, within="site"), second)
    assert float(sets["shift_pvalue"]) > 1e-3
    assert "within groups" in sets["shift_pvalue"].attrs["test"]
