"""Shift diagnosis: shares of known shifts, verdicts of a known generator, misuse that raises."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from posterior_trees import array
from scipy import stats
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from shift_trees import SHARES, shifted_tree

from ppl_med import storage
from ppl_med.analysis import shift
from ppl_med.analysis.shift import class_mixtures
from ppl_med.analysis.shift.label_hypothesis import Sample, fit_label_shift
from ppl_med.analysis.shift.label_shares import em_shares

Estimate = Callable[..., xr.Dataset]
ESTIMATES: list[Estimate] = [shift.shares_by_confusion, shift.shares_by_em]
QUICK: dict[str, Any] = {"permutations": 199, "resamples": 99}


def reference_of(seed: int, number: int = 150, **settings: Any) -> xr.Dataset:
    """A reference, its directions learnt on other cases."""
    tree = shifted_tree("none", 2 * number, "t", seed, **settings)
    return shift.fit_reference(tree, held_out=shifted_tree("none", number, "h", seed, **settings))


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_shares_of_a_known_label_shift_are_found(estimate: Estimate) -> None:
    """40 pairs: mean within 5 standard errors (bias 0.01 allowed), errors right to a third."""
    found, errors, inside = [], [], []
    for seed in range(40):
        new = shifted_tree("label", 200, "x", seed)
        result = estimate(new, shifted_tree("none", 200, "h", seed), resamples=40)
        found.append(result["share"].values)
        errors.append(result["share_se"].values)
        truth = SHARES["label"]
        inside.append(abs(result["share"].values - truth) < 3 * result["share_se"].values)
    spread = np.std(found, axis=0, ddof=1)
    assert (abs(np.mean(found, 0) - SHARES["label"]) < 5 * spread / 40**0.5 + 0.01).all()
    np.testing.assert_allclose(np.mean(errors, 0), spread, rtol=0.4)
    assert np.mean(inside) > 0.95
    assert np.allclose(np.sum(found, 1), 1)


def test_em_is_the_maximum_of_the_likelihood() -> None:
    """Against a general optimizer of the mixture likelihood."""
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([0.5, 0.5, 0.5], 80)
    label = rng.integers(0, 3, 40)
    prior = np.bincount(label) / 40
    once = np.ones(80), probs[:40], label, np.ones(40)
    share = em_shares(probs, *once)

    def minus(free: np.ndarray) -> float:
        part = np.exp(np.append(free, 0.0))
        return -float(np.log(probs @ (part / part.sum() / prior)).sum())

    best = minimize(minus, np.zeros(2), method="BFGS")
    expected = np.exp(np.append(best.x, 0.0))
    np.testing.assert_allclose(share, expected / expected.sum(), atol=1e-4)


def test_shares_by_confusion_follow_the_definition() -> None:
    """C w = m, exactly."""
    new, old = shifted_tree("label", 300, "x", 1), shifted_tree("none", 300, "h", 1)
    result = shift.shares_by_confusion(new, old, resamples=0)
    called = array(old, "posterior/probs").values[0, 0].argmax(1)
    label = array(old, "observed_data/label").values
    joint = np.array([[np.mean((called == i) & (label == j)) for j in range(3)] for i in range(3)])
    calls = array(new, "posterior/probs").values[0, 0].argmax(1)
    expected = np.linalg.solve(joint, [np.mean(calls == i) for i in range(3)])
    np.testing.assert_allclose(result["weight"], expected, rtol=1e-10)
    assert np.isnan(result["share_se"]).all()


def test_a_singular_confusion_matrix_is_refused() -> None:
    new, old = shifted_tree("label", 100, "x", 2), shifted_tree("none", 100, "h", 2)
    for tree in (new, old):
        group = tree["posterior"].to_dataset()
        alike = group["probs"].values.copy()
        alike[..., 1] = alike[..., 2] = 0.5 * (1 - alike[..., 0])  # b is never told from c
        tree["posterior"] = xr.DataTree(group.assign(probs=(group["probs"].dims, alike)))
    with pytest.raises(ValueError, match="singular"):
        shift.shares_by_confusion(new, old)
    blind = old.copy()
    group = blind["observed_data"].to_dataset()
    blind["observed_data"] = xr.DataTree(
        group.assign(label=group["label"].where(group["label"], 1))
    )
    for estimate in ESTIMATES:
        with pytest.raises(ValueError, match="no case of class 'a'"):
            estimate(new, blind)
        with pytest.raises(ValueError, match="share 100 case"):
            estimate(old, old)


def test_a_label_shift_alone_is_rejected_at_the_stated_rate() -> None:
    """100 label shifts, of cases and of patients: p-values uniform or larger, KS at 1e-6."""
    by_case: list[float] = []
    by_patient: list[float] = []
    moved: list[float] = []
    for seed in range(100):
        rng = np.random.default_rng(seed)

        def sample(number: int, share: list[float], size: int) -> tuple[Sample, np.ndarray]:
            label = rng.choice(3, number, p=share)  # noqa: B023
            centre = 2.0 * np.eye(3)[label] + rng.normal(size=(number, 3))  # noqa: B023
            points = np.repeat(centre, size, 0)
            points += 0.2 * rng.normal(size=points.shape)  # noqa: B023
            return Sample(points, np.repeat(np.arange(number), size)), np.repeat(label, size)

        for size, found in ((1, by_case), (3, by_patient)):
            old, label = sample(60, [0.4, 0.3, 0.3], size)
            new, _ = sample(60, [0.1, 0.2, 0.7], size)
            fit = fit_label_shift(old, label, new, 3, 59, seed)
            found.append(fit.pvalue)
            if seed < 30 and size == 1:
                away = Sample(new.points + np.array([0.0, 0.0, 2.0]), new.units)
                moved.append(fit_label_shift(old, label, away, 3, 59, seed).pvalue)
    for pvalues in (by_case, by_patient):
        assert stats.kstest(pvalues, "uniform", alternative="greater").pvalue > 1e-6
    assert np.mean(np.array(moved) < 0.05) > 0.8


def test_fitted_mixtures_are_densities() -> None:
    """They integrate to 1 on a grid; the classes are those of scipy."""
    rng = np.random.default_rng(3)
    label = np.repeat([0, 1], 60)
    points = rng.normal(size=(120, 2)) + 3 * label[:, None]
    classes = class_mixtures.fit_classes(points, label, 2)
    expected = multivariate_normal(classes.mean[1], classes.covariance[1]).logpdf(points)
    np.testing.assert_allclose(classes.log_density(points)[:, 1], expected)
    axis = np.linspace(-12, 16, 281)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    new = np.concatenate([points[:70], rng.normal([6, -4], 0.5, (30, 2))])
    for fit in (class_mixtures.fit_added, class_mixtures.fit_moved):
        found = fit(classes, new)
        assert np.exp(found.log_density(grid)).sum() * 0.1**2 == pytest.approx(1, abs=2e-3)
    added = class_mixtures.fit_added(classes, new)
    assert 1 - added.share.sum() == pytest.approx(0.3, abs=0.06)
    assert (added.added(new)[70:] > 0.9).all() and added.added(new)[:70].mean() < 0.1
    moved = class_mixtures.fit_moved(classes, points + np.array([0.0, 2.0]))
    np.testing.assert_allclose(moved.moves, [[0, 2], [0, 2]], atol=0.35)


@pytest.mark.parametrize("kind", shift.VERDICTS)
def test_the_planted_shift_is_named(kind: str) -> None:
    """15 repeats of each: 10 or more right; of nothing at most 4 alarms (chance 6e-4 at 5 %)."""
    named = [
        shift.diagnose(shifted_tree(kind, 150, "x", seed), reference_of(seed), **QUICK)
        for seed in range(15)
    ]
    right = [str(found["verdict"].item()) == kind for found in named]
    assert sum(right) >= (11 if kind == "none" else 10)


def test_patients_are_the_units_of_a_diagnosis() -> None:
    """12 repeats of 30 patients of 5 alike cases: few alarms by patient, many by case."""
    alarms = {"patient": 0, "case": 0}
    for seed in range(12):
        settings = {"patients": 30}
        new = shifted_tree("none", 150, "x", seed, **settings)
        for group in alarms:
            reference = shift.fit_reference(
                shifted_tree("none", 150, "t", seed, **settings),
                held_out=shifted_tree("none", 150, "h", seed, **settings),
                group=group,
            )
            found = shift.diagnose(new, reference, **QUICK)
            assert found.attrs["units"] == group
            alarms[group] += found["verdict"].item() != "none"
    assert alarms["patient"] <= 4 < alarms["case"]


def test_patients_who_teach_do_not_judge() -> None:
    """Halves are of patients; units of new cases are what those of the reference are."""
    tree = shifted_tree("none", 240, "t", 0, patients=40)
    reference = shift.fit_reference(tree)
    held_out = {str(one) for one in reference["unit_name"].values}
    people = tree["constant_data"].to_dataset()["patient"]
    learnt = set(people.sel(case=reference["learnt_case"].values).values)
    assert len(held_out) == len(learnt) == 20 and not held_out & learnt
    new = shifted_tree("none", 60, "x", 0, patients=20)
    with pytest.raises(ValueError, match="group must be 'patient' or None, as the units of the"):
        shift.diagnose(new, reference, group="case")
    by_array = shift.fit_reference(tree, group=people)
    with pytest.raises(ValueError, match="group must be an array of groups, as the units of the"):
        shift.diagnose(new, by_array)
    found = shift.diagnose(
        new, by_array, group=new["constant_data"].to_dataset()["patient"], **QUICK
    )
    xr.testing.assert_identical(
        found.drop_attrs(), shift.diagnose(new, reference, **QUICK).drop_attrs()
    )


def test_a_reference_is_kept_and_read_again(tmp_path: Any) -> None:
    """Also of two chains, whose features stand side by side; labels of new cases say nothing."""
    reference = reference_of(0, 60, chains=2)
    storage.save(reference, tmp_path / "reference.nc")
    again = storage.load(tmp_path / "reference.nc")
    assert isinstance(again, xr.Dataset)
    new = shifted_tree("label", 60, "x", 0, chains=2)
    found = shift.diagnose(new, reference, **QUICK)
    blind = xr.DataTree.from_dict({"/posterior": new["posterior"].to_dataset()})
    blind.attrs = new.attrs
    xr.testing.assert_identical(shift.diagnose(blind, again, **QUICK), found)
    assert found["share"].sum() == pytest.approx(1)


def test_misuse_raises() -> None:
    reference, new = reference_of(0, 60), shifted_tree("none", 60, "x", 0)
    with pytest.raises(TypeError, match=r"what shift\.fit_reference gave"):
        shift.diagnose(new, xr.Dataset())
    with pytest.raises(ValueError, match="share 60 case"):
        shift.diagnose(shifted_tree("none", 60, "h", 0), reference)
    with pytest.raises(ValueError, match="10 units"):
        shift.diagnose(new.isel(case=slice(9)), reference)
    other = new.copy()
    other.attrs["parameters_sha256"] = "two"
    with pytest.raises(ValueError, match="another parameters_sha256"):
        shift.diagnose(other, reference)
    with pytest.raises(ValueError, match="alarm must be"):
        shift.diagnose(new, reference, alarm=0)
    bare = xr.DataTree.from_dict({"/posterior": new["posterior"].to_dataset()[["probs"]]})
    bare.attrs = new.attrs
    with pytest.raises(ValueError, match="holds no features"):
        shift.diagnose(bare, reference)
    known = new.copy()
    known.attrs["log_likelihood_of"] = "training"
    with pytest.raises(ValueError, match="held_out is of training cases"):
        shift.fit_reference(shifted_tree("none", 60, "t", 0), held_out=known)
    with pytest.raises(ValueError, match="tree is of training cases"):
        shift.fit_reference(known)
    with pytest.raises(ValueError, match="layer must be one of"):
        shift.fit_reference(new, layer="heat")
    with pytest.raises(ValueError, match="layer must be"):
        shift.fit_reference(new, layer=["head", "head"])
    rare = shifted_tree("none", 60, "h", 0)
    label = array(rare, "observed_data/label").values
    keep = np.flatnonzero((label != 0) | (np.cumsum(label == 0) == 1))
    with pytest.raises(ValueError, match="class 'a' in 1 unit"):
        shift.fit_reference(new, held_out=rare.isel(case=keep))
