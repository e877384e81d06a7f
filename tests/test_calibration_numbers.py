"""Calibration of numbers: laws whose transforms, coverages and errors are known."""

from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr
from number_trees import number_tree
from posterior_trees import array
from scipy import stats

from ppl_med.analysis import calibration, scoring
from ppl_med.testing import assert_mean, assert_uniform

FALSE_ALARM = 1e-3
LAWS = {
    "normal": (stats.norm, 1.0),
    "laplace": (stats.laplace, 2.0),
    "student_t": (stats.t(df=6), 1.5),
}


def standard(law: str, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return LAWS[law][0].rvs(size=shape, random_state=rng)


def planted(
    law: str = "normal",
    cases: int = 1500,
    draws: int = 6,
    width: float = 1.0,
    seed: int = 0,
    variance: bool | None = None,
) -> xr.DataTree:
    """What comes is of the mixture of the draws; ``width`` times the scale is predicted."""
    rng = np.random.default_rng(seed)
    shape = (1, draws, cases)
    loc, scale = rng.normal(0, 2, shape), rng.gamma(3, size=shape)
    which = rng.integers(draws, size=cases), np.arange(cases)
    value = loc[0][which] + scale[0][which] * standard(law, rng, (cases,))
    drawn = loc + width * scale * standard(law, rng, shape)
    posterior = {"loc": loc, "scale": width * scale}
    if variance if variance is not None else law != "normal":
        posterior["variance"] = LAWS[law][1] * (width * scale) ** 2
    return number_tree(value, drawn, posterior)


def map_tree(cases: int = 5, rows: int = 6, cols: int = 7, draws: int = 4) -> xr.DataTree:
    rng = np.random.default_rng(0)
    shape = (1, draws, cases, rows, cols)
    loc, scale = rng.normal(size=shape), rng.gamma(3, size=shape)
    drawn = loc + scale * rng.normal(size=shape)
    value = loc[0, 0] + scale[0, 0] * rng.normal(size=shape[2:])
    value[1, 2:4] = np.nan
    return number_tree(value, drawn, {"loc": loc, "scale": scale}, ("row", "col"))


def observed(tree: xr.DataTree) -> np.ndarray:
    return array(tree, "observed_data/value").values


@pytest.mark.parametrize("law", ["normal", "laplace", "student_t", "samples"])
def test_transforms_of_calibrated_predictions_are_uniform(law: str) -> None:
    tree = planted("normal" if law == "samples" else law)
    found = calibration.pit(tree, distribution=law)
    assert_uniform(found["pit"].values, FALSE_ALARM)
    test = stats.kstest(found["pit"].values, "uniform")
    assert float(found["ks"]) == pytest.approx(test.statistic)
    assert float(found["ks_pvalue"]) == pytest.approx(test.pvalue)
    assert found.attrs["distribution"] == law
    wide = planted("normal" if law == "samples" else law, width=2)
    assert calibration.pit(wide, distribution=law)["ks_pvalue"] < 1e-6


@pytest.mark.parametrize("law", ["normal", "laplace", "student_t"])
def test_transforms_are_the_mean_of_the_distribution_functions(law: str) -> None:
    tree = planted(law, cases=20)
    loc, scale = (array(tree, f"posterior/{name}").values for name in ("loc", "scale"))
    expected = LAWS[law][0].cdf((observed(tree) - loc) / scale).mean((0, 1))
    found = calibration.pit(tree, distribution=law)["pit"]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    usual = "normal" if law == "normal" else "samples"
    assert calibration.pit(tree).attrs["distribution"] == usual
    with pytest.warns(DeprecationWarning, match="law= is now distribution="):
        old = calibration.pit(tree, law=law)  # type: ignore[call-arg]
    np.testing.assert_array_equal(old["pit"], found)


def test_transforms_from_draws_rank_what_came_and_spread_ties() -> None:
    value = np.array([2.5, -9, 9, 3])
    drawn = np.array([1.0, 2, 3, 3, 5])[None, :, None] * np.ones(4)
    low, high = np.array([2, 0, 5, 2]) / 6, np.array([3, 1, 6, 5]) / 6
    many = [calibration.pit(number_tree(value, drawn), seed=s)["pit"].values for s in range(150)]
    assert ((many >= low) & (many <= high)).all()
    for index in range(4):
        scaled = (np.array(many)[:, index] - low[index]) / (high - low)[index]
        assert_uniform(scaled, FALSE_ALARM)


def test_transforms_of_counts_are_uniform_and_need_no_many_draws() -> None:
    rng = np.random.default_rng(1)
    rate = rng.gamma(2, size=3000)
    tree = number_tree(
        rng.poisson(rate).astype(float), rng.poisson(rate, (1, 3, 3000)).astype(float)
    )
    assert_uniform(calibration.pit(tree)["pit"].values, FALSE_ALARM)


@pytest.mark.parametrize("width", [1.0, 0.5, 1.5])
def test_coverage_is_that_of_intervals_too_narrow_or_wide_by_a_known_factor(width: float) -> None:
    """One normal a case, its sd wrong by a factor c: coverage 2 Phi(c z) - 1."""
    number = 4000
    tree = planted(cases=number, draws=1, width=width)
    found = calibration.coverage(tree)
    z = stats.norm.isf((1 - found["level"]) / 2)
    loc, scale = (array(tree, f"posterior/{name}").values[0, 0] for name in ("loc", "scale"))
    inside = np.abs(observed(tree) - loc) <= z[:, None] * scale
    np.testing.assert_array_equal(found["coverage"], inside.mean(1))
    np.testing.assert_allclose(found["coverage_se"], stats.sem(inside, axis=1))
    assert_mean(inside.T.astype(float), 2 * stats.norm.cdf(width * z) - 1)
    for index in (0, 9, 18):
        test = stats.binomtest(int(inside[index].sum()), number).proportion_ci(0.95, "exact")
        assert float(found["lower"][index]) == pytest.approx(test.low)
        assert float(found["upper"][index]) == pytest.approx(test.high)
    below = observed(tree) <= loc + stats.norm.ppf(found["level"].values)[:, None] * scale
    np.testing.assert_allclose(found["below"], below.mean(1))
    gap = below.mean(1) - found["level"]
    assert float(found["calibration_error"]) == pytest.approx(float((gap**2).mean()))
    apart = np.abs(inside.mean(1) - found["level"]).mean()
    assert float(found["interval_error"]) == pytest.approx(float(apart))
    if width != 1:
        assert found["interval_error"] > 5 * found["interval_error_null"]


def test_what_chance_gives_is_the_mean_over_calibrated_data() -> None:
    errors = []
    for seed in range(120):
        found = calibration.coverage(planted(cases=40, draws=2, seed=seed))
        errors.append([float(found[name]) for name in ("interval_error", "calibration_error")])
    null = [float(found[f"{name}_null"]) for name in ("interval_error", "calibration_error")]
    assert_mean(np.array(errors), np.array(null))
    share = np.arange(41) / 40
    levels = found["level"].values[:, None]
    weight = stats.binom.pmf(np.arange(41), 40, levels)
    assert null[0] == pytest.approx((weight * np.abs(share - levels)).sum(1).mean())
    assert null[1] == pytest.approx((weight * (share - levels) ** 2).sum(1).mean())


def brute_dispersion(variance: np.ndarray, square: np.ndarray, bins: int) -> tuple[float, float]:
    """ENCE and UCE over equal parts of the sorted entries."""
    order = np.argsort(variance)
    relative, weighted = [], 0.0
    for rows in np.array_split(order, bins):
        v, e = variance[rows].mean(), square[rows].mean()
        relative.append(abs(v**0.5 - e**0.5) / v**0.5)
        weighted += len(rows) * abs(v - e) / len(order)
    return float(np.mean(relative)), float(weighted)


def test_dispersion_is_the_sum_over_sorted_parts() -> None:
    tree = planted(cases=500)
    loc, scale = (array(tree, f"posterior/{name}").values[0] for name in ("loc", "scale"))
    variance = (scale**2).mean(0) + loc.var(0, ddof=1)
    square = (observed(tree) - loc.mean(0)) ** 2
    found = calibration.dispersion(tree, bins=5)
    ence, uce = brute_dispersion(variance, square, 5)
    assert float(found["ence"]) == pytest.approx(ence)
    assert float(found["uce"]) == pytest.approx(uce)
    assert float(found["sharpness"]) == pytest.approx(variance.mean() ** 0.5)
    assert float(found["rmse_total"]) == pytest.approx(square.mean() ** 0.5)
    assert list(found["count"].values) == [100] * 5
    assert (found["upper"][:-1].values <= found["lower"][1:].values).all()
    drawn = array(tree, "posterior_predictive/value").values[0]
    null = [brute_dispersion(variance, (row - loc.mean(0)) ** 2, 5) for row in drawn]
    assert float(found["ence_null"]) == pytest.approx(np.mean(null, 0)[0])
    assert float(found["uce_null"]) == pytest.approx(np.mean(null, 0)[1])
    expected = stats.sem(square) / (2 * square.mean() ** 0.5)  # delta method
    assert float(found["rmse_total_se"]) == pytest.approx(expected, rel=0.25)


def test_dispersion_finds_a_known_factor_and_chance_alone() -> None:
    """Predicted sd twice the truth: |2 - 1| / 2 in every bin."""
    found = calibration.dispersion(planted(draws=1, cases=20_000, width=2), replicates=0)
    assert float(found["ence"]) == pytest.approx(0.5, abs=0.02)
    errors = [calibration.dispersion(planted(cases=60, draws=20, seed=s), replicates=0)
              for s in range(60)]  # fmt: skip
    gap = [float(found["ence"] - found["ence_null"]) for found in errors]
    assert_mean(np.array(gap), 0.0)
    assert np.mean([float(found["ence"]) for found in errors]) > 0.05


def test_one_variance_for_all_is_one_bin() -> None:
    rng = np.random.default_rng(0)
    loc = np.zeros((1, 3, 50))
    tree = number_tree(rng.normal(size=50), loc + rng.normal(size=loc.shape),
                       {"loc": loc, "scale": loc + 2})  # fmt: skip
    found = calibration.dispersion(tree)
    assert found.sizes["bin"] == 1
    rmse = np.mean(observed(tree) ** 2) ** 0.5
    assert float(found["ence"]) == pytest.approx(abs(2 - rmse) / 2)


def test_maps_count_cases_and_leave_out_what_was_not_observed() -> None:
    tree = map_tree()
    found = calibration.pit(tree)
    loc, scale = (array(tree, f"posterior/{name}").values for name in ("loc", "scale"))
    expected = stats.norm.cdf((observed(tree) - loc) / scale).mean((0, 1))
    np.testing.assert_allclose(found["pit"], expected)
    assert found.attrs["num_tested"] == 5
    assert found.attrs["num_observed"] == 5 * 42 - 14
    curve = calibration.coverage(tree, levels=[0.5, 0.9])
    inside = np.abs(2 * expected - 1) <= np.array([0.5, 0.9])[:, None, None, None]
    known = ~np.isnan(expected)
    np.testing.assert_allclose(curve["coverage"], inside[:, known].mean(1))
    assert "interval_error_null" not in curve
    # sum over cases of (hits - share x entries)^2, for the ratio of two sums
    hits, count = inside.sum((2, 3)), known.sum((1, 2))
    residual = hits - curve["coverage"].values[:, None] * count
    error = np.sqrt((residual**2).sum(1) * 5 / 4) / known.sum()
    np.testing.assert_allclose(curve["coverage_se"], error)
    reach = stats.t.ppf(0.975, 4) * error
    np.testing.assert_allclose(curve["upper"], np.minimum(curve["coverage"] + reach, 1))


@pytest.mark.parametrize("limit", [20_000, 3_000])
@pytest.mark.parametrize("posterior", [True, False])
def test_lazy_trees_read_in_parts_give_equal_results(
    limit: int, posterior: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts are of some cases (8 kB each), and of some rows of one case."""
    tree = map_tree()
    if not posterior:
        tree = tree.drop_nodes("posterior")
    analyses: list[Callable] = [calibration.pit, calibration.coverage, calibration.dispersion]
    whole = [analysis(tree) for analysis in analyses]
    monkeypatch.setattr("ppl_med.analysis.tree.blocks.BLOCK_BYTES", limit)
    lazy = tree.chunk({"case": 2, "row": 4})
    for analysis, expected in zip(analyses, whole, strict=True):
        xr.testing.assert_allclose(analysis(lazy), expected, rtol=1e-10)


def test_one_row_holds_what_the_others_found() -> None:
    tree = planted(cases=100)
    found = calibration.number_errors(tree)
    assert float(found["crps"]) == float(scoring.crps(tree)["crps_mean"])
    assert float(found["ks"]) == float(calibration.pit(tree)["ks"])
    coverage, dispersion = calibration.coverage(tree), calibration.dispersion(tree)
    assert float(found["interval_error"]) == float(coverage["interval_error"])
    assert float(found["ence_null"]) == float(dispersion["ence_null"])
    assert not found.dims


def test_bad_input_is_named() -> None:
    tree = planted(cases=20)
    with pytest.raises(ValueError, match="distribution must be 'normal'"):
        calibration.pit(tree, distribution="cauchy")
    with pytest.raises(ValueError, match="needs \\['variance'\\]"):
        calibration.pit(tree, distribution="student_t")
    with pytest.raises(ValueError, match="contradicts the variance"):
        calibration.pit(planted("laplace", cases=20), distribution="normal")
    with pytest.raises(ValueError, match="contradicts a variance"):
        calibration.pit(planted(cases=20, variance=True), distribution="student_t")
    with pytest.raises(ValueError, match="levels must be"):
        calibration.coverage(tree, levels=[1.0])
    with pytest.raises(ValueError, match="site is 'depth'"):
        calibration.coverage(tree, "depth")
    nothing = number_tree(np.full(3, np.nan), np.zeros((1, 2, 3)))
    for analysis in (calibration.pit, calibration.dispersion):
        with pytest.raises(ValueError, match="NaN everywhere"):
            analysis(nothing)
    with pytest.raises(ValueError, match="predicted variance is 0"):
        calibration.dispersion(number_tree(np.zeros(3), np.zeros((1, 2, 3))))
    broken = number_tree(np.zeros(3), np.full((1, 2, 3), np.nan))
    with pytest.raises(ValueError, match="draws of value hold NaN"):
        calibration.pit(broken)
    with pytest.raises(ValueError, match="infinite somewhere"):
        calibration.pit(number_tree(np.array([np.inf, 0]), np.zeros((1, 2, 2))))
