"""Shift seen in features, patients who count once, and weights that cannot carry the level."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import xarray as xr
from conformal_trees import probs_tree, regression_tree, with_column
from ood_trees import feature_tree
from scipy import stats

from ppl_med import storage
from ppl_med.analysis import conformal
from ppl_med.analysis.conformal import achieved
from ppl_med.analysis.statistics.principal_shift import principal_coordinates, principal_shift
from ppl_med.analysis.statistics.unit_permutations import memberships

Pair = tuple[np.ndarray, np.ndarray]


def at_most(pvalues: list[float], rates: tuple[float, ...] = (0.05, 0.2, 0.5)) -> bool:
    """Whether p-values are below each rate no more often; binomial, wrong 1e-5 each."""
    below = [sum(one <= rate for one in pvalues) for rate in rates]
    tests = [
        stats.binomtest(count, len(pvalues), rate, alternative="greater").pvalue
        for count, rate in zip(below, rates, strict=True)
    ]
    return min(tests) > 1e-5


def patients(rng: np.random.Generator, number: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features of 3 to 12 cases of every patient, who differ more than their cases; names."""
    sizes = rng.integers(3, 12, number)
    own = rng.normal(size=(number, 5)).repeat(sizes, 0)
    names = np.repeat([f"{name}{index}" for index in range(number)], sizes)
    return own + 0.3 * rng.normal(size=own.shape), names


def test_false_alarms_by_features_are_as_stated() -> None:
    """300 pairs of dependent features, dead ones and ties; all p-values, and some power."""
    rng = np.random.default_rng(0)
    found, power = [], []
    for seed in range(300):
        values = np.maximum(rng.normal(size=(60, 4)) @ rng.normal(size=(4, 12)), 0)
        values[:, -1] = 0.0
        found.append(principal_shift([values[:25]], [values[25:]], permutations=99, seed=seed))
        values[25:] += 0.7 * values.std(0)
        power.append(principal_shift([values[:25]], [values[25:]], permutations=99, seed=seed))
    assert at_most([one.pvalue for one in found])
    assert sum(one.pvalue <= 0.05 for one in found) > 3
    assert sum(one.pvalue <= 0.05 for one in power) > 200


def test_one_feature_is_student_s_test() -> None:
    """The statistic of a single direction is a function of t^2, so the permutations agree."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(40, 1))
    values[15:] += 0.8
    coordinates, rest = principal_coordinates(values)
    np.testing.assert_allclose(np.abs(coordinates), np.abs(stats.zscore(values)), rtol=1e-12)
    np.testing.assert_array_equal(rest, 0.0)
    same = stats.permutation_test(
        (values[:15, 0], values[15:, 0]), lambda a, b: abs(a.mean() - b.mean()), n_resamples=4000,
        rng=rng,
    )  # fmt: skip
    ours = principal_shift([values], [np.zeros((0, 1))])
    assert ours.pvalue == 1.0
    found = principal_shift([values[:15]], [values[15:]], permutations=3999).pvalue
    assert found <= 3 * same.pvalue + 0.01  # the distances are a second test


@pytest.mark.parametrize("wide", [False, True])
def test_coordinates_are_those_of_a_singular_value_decomposition(wide: bool) -> None:
    """Distances of all pairs agree, in either way of computing; units of any scale are alike."""
    rng = np.random.default_rng(2)
    values = (
        rng.normal(size=(40, 90 if wide else 20))
        * 10.0 ** rng.integers(-3, 4, 90)[: 90 if wide else 20]
    )
    standard = stats.zscore(values)
    left, lengths, _ = np.linalg.svd(standard, full_matrices=False)
    coordinates, rest = principal_coordinates(values, 6)
    np.testing.assert_allclose(
        coordinates @ coordinates.T, 40 * left[:, :6] @ left[:, :6].T, atol=1e-9
    )
    outside = ((left[:, 6:] * lengths[6:]) ** 2).sum(1) ** 0.5
    np.testing.assert_allclose(rest, outside, rtol=1e-9)


def test_cases_of_patients_are_permuted_together() -> None:
    """150 pairs of 8 and 9 patients: right by patients; by cases most would alarm."""
    rng = np.random.default_rng(3)
    by_patient, by_case = [], []
    for seed in range(150):
        (one, first), (two, second) = patients(rng, 8, "a"), patients(rng, 9, "b")
        options: dict[str, Any] = {"permutations": 99, "seed": seed}
        by_patient.append(principal_shift([one], [two], units=(first, second), **options).pvalue)
        by_case.append(principal_shift([one], [two], **options).pvalue)
    assert at_most(by_patient)
    assert np.mean(np.array(by_case) <= 0.05) > 0.8


def test_strata_may_have_other_shares() -> None:
    """Groups lie apart and their shares differ: no shift within them; one group moves: shift."""
    rng = np.random.default_rng(4)

    def sample(number: int, share: float, move: float = 0.0) -> Pair:
        group = (rng.random(number) < share).astype(int)
        return rng.normal(size=(number, 3)) + np.where(group == 1, 3.0, move)[:, None], group

    found, plain = [], []
    for seed in range(150):
        (one, first), (two, second) = sample(50, 0.3), sample(60, 0.7)
        options: dict[str, Any] = {"permutations": 99, "seed": seed}
        strata = first, second
        found.append(principal_shift([one], [two], strata=strata, **options).pvalue)
        plain.append(principal_shift([one], [two], **options).pvalue)
    assert at_most(found) and np.mean(np.array(plain) <= 0.05) > 0.7
    (one, first), (two, second) = sample(100, 0.3), sample(100, 0.7, 0.8)
    assert principal_shift([one], [two], strata=(first, second)).pvalue < 0.01


def test_a_shift_that_only_features_show_is_told(tmp_path) -> None:
    """Three sd along an axis that holds no class: probabilities stay, features move."""
    learnt = conformal.calibrate(feature_tree(150, "c"))
    assert learnt["feature:head"].shape == (150, 6)
    again = storage.load(storage.save(learnt, tmp_path / "calibration.nc"))
    assert isinstance(again, xr.Dataset)
    shifted = feature_tree(120, "t", shift=3.0)
    bare = shifted.copy()
    del bare["observed_data"]
    with pytest.warns(RuntimeWarning, match="look different in their features"):
        found = conformal.predict_sets(again, bare)
    assert found["shift_pvalue"].attrs["features"] == 1 / 2000
    assert found["shift_pvalue"].attrs["outputs"] > 0.01
    assert float(found["shift_pvalue"]) == 2 / 2000
    quiet = conformal.predict_sets(learnt, feature_tree(120, "q"))
    assert float(quiet["shift_pvalue"]) > 0.01 and "head" in quiet["shift_pvalue"].attrs["test"]
    probs = bare["posterior"].to_dataset()["probs"]
    silent = conformal.predict_sets(learnt, probs)
    assert "not compared" in silent["shift_pvalue"].attrs["test"]


def test_false_alarms_of_all_tests_together_are_at_most_as_stated() -> None:
    """60 pairs of trees without a shift, of outputs, features and coverage, at 5 % and more."""
    found = []
    for seed in range(60):
        tree = feature_tree(90, "c", seed=seed, samples=(1, 2))
        first, second = (tree.isel(case=part) for part in (slice(50), slice(50, None)))
        sets = conformal.predict_sets(conformal.calibrate(first, 0.2), second, shift_alarm=0)
        found.append(float(sets["shift_pvalue"]))
    assert at_most(found)


def test_intervals_look_at_features_too() -> None:
    rng = np.random.default_rng(5)
    trees = []
    for prefix, move in (("c", 0.0), ("t", 2.0), ("q", 0.0)):
        tree = regression_tree(rng.normal(size=(2, 100)), rng.normal(size=100), prefix=prefix)
        posterior = tree["posterior"].to_dataset()
        feature = rng.normal(size=(1, 2, 100, 4)) + move
        posterior["feature:body"] = (("chain", "draw", "case", "unit"), feature)
        tree["posterior"] = xr.DataTree(posterior)
        trees.append(tree)
    learnt = conformal.calibrate_intervals(trees[0], method="absolute")
    with pytest.warns(RuntimeWarning, match="features"):
        conformal.predict_intervals(learnt, trees[1])
    assert float(conformal.predict_intervals(learnt, trees[2])["shift_pvalue"]) > 0.01


def test_features_of_other_functions_are_refused() -> None:
    learnt = conformal.calibrate(feature_tree(40, "c"))
    other = feature_tree(40, "t")
    other.attrs["parameters_sha256"] = "two"
    with pytest.raises(ValueError, match="another parameters_sha256"):
        conformal.predict_sets(learnt, other)
    posterior = feature_tree(40, "t")["posterior"].to_dataset()
    renamed = feature_tree(40, "t")
    renamed["posterior"] = xr.DataTree(posterior.rename({"feature:head": "feature:tail"}))
    with pytest.raises(ValueError, match="features of 'head'"):
        conformal.predict_sets(learnt, renamed)
    posterior["feature:head"] = posterior["feature:head"].where(posterior["feature:head"] < 2)
    renamed["posterior"] = xr.DataTree(posterior)
    with pytest.raises(ValueError, match="NaN or infinite"):
        conformal.predict_sets(learnt, renamed)


def clustered(rng: np.random.Generator, number: int, prefix: str) -> xr.DataTree:
    """Cases of patients on whom the model is right or wrong as a whole."""
    sizes = rng.integers(5, 15, number)
    skill = rng.normal(1.0, 1.5, number).repeat(sizes)
    label = rng.integers(2, size=sizes.sum())
    logit = np.where(label == 1, skill, -skill) + 0.5 * rng.normal(size=sizes.sum())
    names = np.repeat([f"{prefix}{index}" for index in range(number)], sizes)
    positive = 1 / (1 + np.exp(-logit))
    tree = probs_tree(np.stack([1 - positive, positive], 1), label, prefix=prefix)
    return with_column(tree, "patient", names)


def naive_coverages(
    score: np.ndarray, is_test: np.ndarray, group: np.ndarray, alpha: float
) -> list[float]:
    found = []
    for test in is_test:
        covered = 0
        for name in np.unique(group):
            own, others = (np.sort(score[(group == name) & kept]) for kept in (~test, test))
            rank = conformal.coverage_rank(own.size, alpha)
            covered += (others <= (own[rank - 1] if rank <= own.size else np.inf)).sum()
        found.append(covered / test.sum())
    return found


def test_permuted_coverages_follow_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties, groups that all patients of which leave the calibration, a threshold at infinity."""
    rng = np.random.default_rng(9)
    monkeypatch.setattr(achieved, "PERMUTATIONS", 200)
    score, group = rng.integers(8, size=40).astype(float), np.repeat(["x", "y", "z"], [30, 6, 4])
    names = np.repeat(np.arange(20), 2).astype(str)
    units = names[:20], names[20:]
    strata = group[:20], group[20:]
    tests = np.concatenate(list(memberships(units, 200, 0, strata=strata)))
    found = np.concatenate(list(achieved._coverages(score, units, strata, 0.2)))
    np.testing.assert_allclose(found, naive_coverages(score, tests, group, 0.2))
    assert tests[0].tolist() == [False] * 20 + [True] * 20


@pytest.mark.parametrize("within", [None, "class"])
def test_coverage_of_patients_has_a_band_that_holds(within: str | None) -> None:
    """60 pairs of 14 and 12 patients, binomial at 1e-5; by cases there are many false alarms."""
    rng = np.random.default_rng(6)
    missed, by_case, pvalues = 0, 0, []
    for _ in range(60):
        first, second = clustered(rng, 14, "a"), clustered(rng, 12, "b")
        learnt = conformal.calibrate(first, 0.2, within=within)
        found = conformal.predict_sets(learnt, second, shift_alarm=0)
        lower, upper = float(found["coverage_lower"]), float(found["coverage_upper"])
        missed += not lower <= float(found["coverage"]) <= upper
        pvalues.append(float(found["shift_pvalue"]))
        if float(found["coverage"]) < lower:
            assert pvalues[-1] < 0.01
        alone = conformal.calibrate(first, 0.2, within=within, group="case")
        apart = conformal.predict_sets(alone, second, shift_alarm=0)
        by_case += float(apart["shift_pvalue"]) < 0.05
    assert stats.binomtest(missed, 60, 0.01, alternative="greater").pvalue > 1e-5
    assert at_most(pvalues)
    assert by_case > 20


def test_patients_are_asked_for_and_kept_apart() -> None:
    rng = np.random.default_rng(7)
    first, second = clustered(rng, 10, "a"), clustered(rng, 10, "b")
    learnt = conformal.calibrate(first)
    assert learnt.attrs["unit"] == "patient" and learnt["case_unit"].values[0] == "a0"
    probs = second["posterior"].to_dataset()["probs"]
    with pytest.raises(TypeError, match="patient"):
        conformal.predict_sets(learnt, probs)
    names = second["constant_data"].to_dataset()["patient"]
    whole = conformal.predict_sets(learnt, second, shift_alarm=0)
    same = conformal.predict_sets(learnt, probs, group=names, shift_alarm=0)
    np.testing.assert_array_equal(same["prediction_set"], whole["prediction_set"])
    by_array = conformal.calibrate(first, group=first["constant_data"].to_dataset()["patient"])
    with pytest.raises(ValueError, match="group must be given here"):
        conformal.predict_sets(by_array, second)
    with pytest.raises(ValueError, match="group must be given here"):
        conformal.predict_sets(conformal.calibrate(first, group="case"), second, group=names)
    shared = with_column(second, "patient", np.append(names.values[1:], "a0"))
    with pytest.raises(ValueError, match="stand in both samples"):
        conformal.predict_sets(learnt, shared)


def test_weights_that_cannot_carry_the_level_give_all_classes() -> None:
    """Effective number 8 of 60 at 90 %, which needs 9; and one test case heavier than its share."""
    rng = np.random.default_rng(8)
    probs = rng.dirichlet(np.ones(3), 80)
    label = rng.integers(3, size=80)
    first, second = (
        probs_tree(probs[:60], label[:60]),
        probs_tree(probs[60:], label[60:], prefix="t"),
    )

    def weights(values: list[float], number: int) -> xr.DataArray:
        return xr.DataArray(np.resize(values, number), dims="case")

    light = weights([0.1], 20)  # so that their own thresholds would be finite
    for heavy, unbounded in ((8, 20), (9, 0)):
        few = weights([0.0], 60)
        few[:heavy] = 1.0
        learnt = conformal.calibrate(first, weights=few)
        assert float(learnt["effective_n"]) == pytest.approx(heavy)
        told = pytest.warns(RuntimeWarning, match="20 of 20") if unbounded else nullcontext()
        with told:
            found = conformal.predict_sets(learnt, second, weights=light, shift_alarm=0)
        assert found.attrs["unbounded"] == unbounded
        assert unbounded == 0 or (found["set_size"] == 3).all()
    learnt = conformal.calibrate(first, weights=weights([1.0], 60))
    own = weights([1.0], 20)
    own[3] = 7.0  # 7 / 67 is more than 0.1
    with pytest.warns(RuntimeWarning, match="1 of 20"):
        found = conformal.predict_sets(learnt, second, weights=own, shift_alarm=0)
    assert found.attrs["unbounded"] == 1 and int(found["set_size"][3]) == 3


def test_weights_come_from_the_features_of_two_trees() -> None:
    """One sd along one axis: AUC is Phi(1 / sqrt 2) within 4.5 standard errors, log w a line."""
    first, second = feature_tree(700, "c"), feature_tree(600, "t", shift=1.0)
    weights, own = conformal.density_ratio(first, second)
    assert abs(weights.attrs["auc"] - stats.norm.cdf(0.5**0.5)) < 4.5 * 0.014
    assert weights.sizes == {"case": 700} and own.sizes == {"case": 600}
    axis = np.random.default_rng([0, ord("c"), 700])
    axis.integers(3, size=700)
    moved = axis.normal(size=(700, 6))[:, -1]
    assert np.corrcoef(moved, np.log(weights))[0, 1] > 0.9
    learnt = conformal.calibrate(first, weights=weights)
    found = conformal.predict_sets(learnt, second, weights=own)
    assert found.attrs["unbounded"] == 0 and 0.85 < float(found["coverage"]) < 0.95
    again = conformal.density_ratio(first, second, layer="head")
    xr.testing.assert_identical(again[0], weights)
    far = feature_tree(600, "t", shift=4.0)
    weights, own = conformal.density_ratio(first, far)
    learnt = conformal.calibrate(first, weights=weights)
    with pytest.warns(RuntimeWarning, match="get the set of everything"):
        found = conformal.predict_sets(learnt, far, weights=own, shift_alarm=0)
    assert float(found["coverage"]) > 0.9
    with pytest.raises(ValueError, match="do not overlap"):
        conformal.density_ratio(first, feature_tree(600, "t", shift=30.0))


def test_patients_do_not_betray_the_set_they_are_in() -> None:
    """No shift but other patients: by patient AUC is about 0.5, by case they are recognised."""
    rng = np.random.default_rng(10)
    arrays = []
    for prefix in "ab":
        values, names = patients(rng, 40, prefix)
        columns = np.column_stack([np.sign(values), values, values**2, values[:, :1] * values])
        numbered = [f"{prefix}{index}" for index in range(len(names))]
        ids = {"case": ("case", numbered), "patient": ("case", names)}
        arrays.append(xr.DataArray(columns, ids, ("case", "feature")))
    by_patient = conformal.density_ratio(*arrays)[0].attrs["auc"]
    by_case = conformal.density_ratio(*arrays, group="case")[0].attrs["auc"]
    assert by_patient < 0.62 and by_case > 0.65


def test_trees_for_weights_are_checked() -> None:
    first, second = feature_tree(40, "c"), feature_tree(40, "t")
    array = xr.DataArray(np.zeros((40, 2)), dims=("case", "feature"))
    with pytest.raises(TypeError, match="two trees"):
        conformal.density_ratio(first, array)
    with pytest.raises(ValueError, match="layer must be 'head'"):
        conformal.density_ratio(first, second, layer="tail")
    with pytest.raises(ValueError, match="layer must be None"):
        conformal.density_ratio(array, array, layer="head")
    with pytest.raises(ValueError, match="share 40"):
        conformal.density_ratio(first, first)
    bare = second.copy()
    bare["posterior"] = xr.DataTree(second["posterior"].to_dataset().drop_vars("feature:head"))
    with pytest.raises(ValueError, match="holds no features"):
        conformal.density_ratio(first, bare)
    few = [array.assign_coords(patient=("case", np.repeat([f"{n}{i}" for i in range(4)], 10)))
           for n in "ab"]  # fmt: skip
    with pytest.raises(ValueError, match="5 patients or more"):
        conformal.density_ratio(*few)
