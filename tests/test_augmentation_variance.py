"""Variance over draws and augmentations: identities, unbiasedness and errors by simulation."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from ppl_med.analysis import (
    augmentation,
    calibration,
    conformal,
    exports,
    ood,
    scoring,
    selective,
    uncertainty,
)
from ppl_med.analysis.statistics import two_way
from ppl_med.analysis.tree import blocks

FALSE_ALARM = 1e-6
TRUTH = {"rows": 1.0, "columns": 0.5, "interaction": 0.25, "total": 1.75}


def effects(random: np.random.Generator, kind: str, size: tuple[int, ...]) -> np.ndarray:
    """Effects of mean 0 and variance 1."""
    if kind == "normal":
        return random.normal(size=size)
    if kind == "uniform":
        return np.sqrt(3) * random.uniform(-1, 1, size)
    return random.exponential(size=size) - 1


def crossed(rows: int, columns: int, number: int, kind: str = "normal", seed: int = 0) -> Any:
    """Tables (row, column, entry) of known components."""
    random = np.random.default_rng(seed)
    part = {name: np.sqrt(value) for name, value in TRUTH.items()}
    return (
        0.7
        + part["rows"] * effects(random, kind, (rows, 1, number))
        + part["columns"] * effects(random, kind, (1, columns, number))
        + part["interaction"] * effects(random, kind, (rows, columns, number))
    )


def tree_of(values: np.ndarray) -> xr.DataTree:
    """A tree of numbers (draw, augmentation, case)."""
    dims = ("chain", "draw", "augmentation", "case")
    loc = xr.Dataset({"loc": (dims, values[None]), "scale": (dims, np.ones_like(values)[None])})
    return xr.DataTree.from_dict({"/posterior": loc})


# --- identities


def test_parts_add_up_to_the_variance_of_one_cell() -> None:
    """Half the mean squared difference of cells of other rows and columns, by all pairs."""
    values = crossed(4, 3, 5)
    pairs = [
        (values[s, a] - values[t, b]) ** 2 / 2
        for s in range(4)
        for t in range(4)
        for a in range(3)
        for b in range(3)
        if s != t and a != b
    ]
    estimate, _ = two_way.components(values)
    np.testing.assert_allclose(estimate[:3].sum(0), np.mean(pairs, 0), rtol=1e-12)
    np.testing.assert_allclose(estimate[3], np.mean(pairs, 0), rtol=1e-12)


def test_mean_squares_are_those_of_an_analysis_of_variance() -> None:
    """Of ordinary least squares with dummies for rows and columns."""
    values = crossed(5, 4, 1)[..., 0]
    row, column = np.divmod(np.arange(20), 4)
    dummies = [np.eye(5)[row], np.eye(4)[column]]

    def left(*parts: np.ndarray) -> float:
        design = np.concatenate([np.ones((20, 1)), *parts], 1)
        fitted = design @ np.linalg.lstsq(design, values.ravel(), rcond=None)[0]
        return float(((values.ravel() - fitted) ** 2).sum())

    both = left(*dummies)
    square = (left(dummies[1]) - both) / 4, (left(dummies[0]) - both) / 3, both / 12
    expected = (square[0] - square[2]) / 4, (square[1] - square[2]) / 5, square[2]
    estimate, _ = two_way.components(values[..., None])
    np.testing.assert_allclose(estimate[:3, 0], expected, rtol=1e-10)


def test_columns_that_are_not_known_are_left_out() -> None:
    values = crossed(4, 5, 3)
    holes = values.copy()
    holes[:, 2, 1] = np.nan
    holes[:, 1:, 2] = np.nan
    estimate, error = two_way.components(holes)
    for part, whole in zip((estimate, error), two_way.components(values), strict=True):
        np.testing.assert_allclose(part[:, 0], whole[:, 0])
    shorter = np.delete(values[..., 1:2], 2, 1)
    for part, whole in zip((estimate, error), two_way.components(shorter), strict=True):
        np.testing.assert_allclose(part[:, 1], whole[:, 0])
    assert np.isnan(estimate[:, 2]).all() and np.isnan(error[:, 2]).all()


def test_additive_tables_have_no_interaction_and_equal_rows_no_model() -> None:
    random = np.random.default_rng(1)
    row, column = random.normal(size=(6, 1, 1)), random.normal(size=(1, 5, 1))
    estimate, _ = two_way.components(row + column)
    expected = row.var(ddof=1), column.var(ddof=1), 0.0
    np.testing.assert_allclose(estimate[:3, 0], expected, atol=1e-12)
    estimate, _ = two_way.components(column + np.zeros((6, 5, 1)))
    np.testing.assert_allclose(estimate[:3, 0], (0.0, column.var(ddof=1), 0.0), atol=1e-12)


# --- simulation with known parts


@pytest.mark.parametrize("kind", ["normal", "uniform", "exponential"])
def test_estimates_are_unbiased_whatever_the_distribution(kind: str) -> None:
    estimate, _ = two_way.components(crossed(5, 3, 40_000, kind))
    for name, one in zip(two_way.NAMES, estimate, strict=True):
        z = (one.mean() - TRUTH[name]) / (one.std() / np.sqrt(one.size))
        assert 2 * stats.norm.sf(abs(z)) > FALSE_ALARM / 12, name


@pytest.mark.parametrize("rows, columns", [(32, 8), (4, 3)])
def test_standard_errors_of_normal_effects_are_right(rows: int, columns: int) -> None:
    """Their squares are unbiased: within 4 % of the variance over 40,000 tables."""
    estimate, error = two_way.components(crossed(rows, columns, 40_000))
    ratio = (error**2).mean(1) / estimate.var(1)
    assert (abs(ratio - 1) < 0.04).all(), ratio


@pytest.mark.parametrize("kind", ["normal", "exponential"])
def test_the_jackknife_of_a_mean_over_cases_errs_on_the_large_side(kind: str) -> None:
    """Squared errors against the variance over 300 studies: from 0.75 to 2.2 times.

    Cases share the draws and augmentations and are alike, as in a tree: effects are those of the
    draw, scaled by the case.
    """
    random = np.random.default_rng(2)
    size = 1 + random.uniform(size=8)
    found, errors = [], []
    for values in np.moveaxis(crossed(16, 8, 300, kind), -1, 0):
        table = values[..., None] * size
        estimate = two_way.components(table)[0].mean(-1)
        left_out = two_way.left_out(table).mean(-1)
        found.append(estimate)
        errors.append(two_way.jackknife(left_out, 16))
    ratio = (np.array(errors) ** 2).mean(0) / np.array(found).var(0)
    assert (ratio > 0.75).all() and (ratio < 2.2).all(), ratio


# --- from a tree


def test_parts_of_a_tree_and_their_mean() -> None:
    values = crossed(6, 4, 7)
    tree = tree_of(values)
    found, mean = augmentation.variance(tree), augmentation.summary(tree)
    estimate, error = two_way.components(values)
    for index, name in enumerate(("model", "augmentation", "interaction", "total")):
        np.testing.assert_allclose(found[name], estimate[index])
        np.testing.assert_allclose(found[f"{name}_mcse"], error[index])
        np.testing.assert_allclose(mean[name], estimate[index].mean())
        np.testing.assert_allclose(mean[f"{name}_se"], estimate[index].std(ddof=1) / np.sqrt(7))
    by_hand = [two_way.components(np.delete(values, s, 0))[0][0].mean() for s in range(6)]
    others = [two_way.components(np.delete(values, a, 1))[0][0].mean() for a in range(4)]
    expected = 5 * np.var(by_hand) + 3 * np.var(others)
    np.testing.assert_allclose(mean["model_mcse"] ** 2, expected)
    assert mean.attrs["num_functions"] == 6 and mean.attrs["num_augmentations"] == 4


def test_negative_estimates_are_kept_and_flagged() -> None:
    random = np.random.default_rng(0)
    found = augmentation.variance(tree_of(random.normal(size=(4, 4, 200))))  # interaction alone
    assert found["model_negative"].any() and not found["model_negative"].all()
    np.testing.assert_array_equal(found["model_negative"], found["model"] < 0)
    assert abs(float(found["model"].mean())) < 6 * 0.2 / np.sqrt(200)


def test_an_ensemble_has_as_many_functions_as_members() -> None:
    values = crossed(3, 4, 2)
    dims = ("chain", "draw", "augmentation", "case")
    members = np.repeat(values[:, None], 5, 1)  # five copies of each of three members
    ensemble = xr.Dataset({"loc": (dims, members), "scale": (dims, np.ones_like(members))})
    found, expected = augmentation.variance(ensemble), augmentation.variance(tree_of(values))
    xr.testing.assert_allclose(found, expected)
    assert found.attrs["num_functions"] == 3


def test_small_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    odds = random.normal(size=(2, 3, 4, 5, 2, 6, 7))
    probs = np.exp(odds) / np.exp(odds).sum(4, keepdims=True)
    probs[:, :, 1:, 2, :, :2] = np.nan
    dims = ("chain", "draw", "augmentation", "case", "class", "row", "col")
    tree = xr.DataTree.from_dict({"/posterior": xr.Dataset({"probs": (dims, probs)})})
    expected = augmentation.variance(tree), augmentation.summary(tree)
    assert np.isnan(expected[0]["model"][2, :, :2]).all()
    for limit in (2**14, 2**10):
        monkeypatch.setattr(blocks, "BLOCK_BYTES", limit)
        for one, other in zip(
            (augmentation.variance(tree), augmentation.summary(tree)), expected, strict=True
        ):
            xr.testing.assert_allclose(one, other)


# --- what knows nothing of augmentations says so


def test_other_analyses_refuse_an_axis_of_augmentations() -> None:
    random = np.random.default_rng(0)
    probs = random.dirichlet([1, 1], size=(1, 4, 3, 6))
    dims = ("chain", "draw", "augmentation", "case", "class")
    ids = {"case": list("abcdef")}
    tree = xr.DataTree.from_dict(
        {
            "/posterior": xr.Dataset({"probs": (dims, probs)}, ids),
            "/observed_data": xr.Dataset({"label": ("case", [0, 1] * 3)}, ids),
        }
    )
    for analysis in (
        uncertainty.entropy,
        uncertainty.variance,
        uncertainty.summary,
        scoring.score,
        calibration.fit,
        conformal.calibrate,
        exports.to_frame,
        lambda tree: ood.fit_reference("mcp", tree),
        lambda tree: selective.risk_coverage(tree, "total"),
        lambda tree: uncertainty.entropy(tree["posterior"].to_dataset()),
        lambda tree: uncertainty.entropy(tree["posterior/probs"]),
    ):
        with pytest.raises(ValueError, match="axis of augmentations"):
            analysis(tree)


def test_malformed_predictions_are_refused() -> None:
    values = crossed(4, 3, 5)
    values[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="not finite in some draws"):
        augmentation.variance(tree_of(values))
    with pytest.raises(ValueError, match="holds none of"):
        augmentation.variance(xr.Dataset({"z": ("case", [0.0])}))
    with pytest.raises(TypeError, match="predict_augmented"):
        augmentation.variance(xr.DataTree())
