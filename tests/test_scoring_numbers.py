"""Scores of numbers against scoringrules, closed forms, exact laws; the truth scores best."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from number_trees import number_tree
from posterior_trees import array, classification_tree
from scipy import stats
from torch import nn

from ppl_med.analysis import scoring
from ppl_med.inference import MeanFieldNormal, PointEstimate, predict
from ppl_med.likelihoods import LaplaceNoise
from ppl_med.models import BayesianRegressor

Z = stats.norm.isf(1e-6 / 2)


def random_tree(chains: int = 2, draws: int = 15, cases: int = 12) -> xr.DataTree:
    rng = np.random.default_rng(5)
    value = rng.normal(3, 2, (cases, 4, 3))
    drawn = rng.normal(3, 1.5, (chains, draws, cases, 4, 3))
    return number_tree(value, drawn, extra=("row", "col"))


def values_of(tree: xr.DataTree) -> tuple[np.ndarray, np.ndarray]:
    value, drawn = array(tree, "observed_data/value"), array(tree, "posterior_predictive/value")
    return value.values, drawn.values.reshape(-1, *drawn.shape[2:])


@pytest.mark.parametrize(("estimator", "name"), [("fair", "fair"), ("empirical", "nrg")])
def test_crps_and_energy_match_scoringrules(estimator: str, name: str) -> None:
    oracle = pytest.importorskip("scoringrules", reason="oracle")
    tree = random_tree()
    value, drawn = values_of(tree)
    expected = oracle.crps_ensemble(value, drawn, m_axis=0, estimator=name)
    np.testing.assert_allclose(scoring.crps(tree, estimator=estimator)["crps"], expected, atol=1e-9)
    whole = scoring.energy(tree, over=("row", "col"), estimator=estimator)["energy"]
    flat = value.reshape(12, -1), drawn.reshape(30, 12, -1)
    expected = oracle.es_ensemble(*flat, m_axis=0, v_axis=-1, estimator=name)
    np.testing.assert_allclose(whole, expected, atol=1e-9)
    assert whole.dims == ("case",)
    rows = scoring.energy(tree, over=("col",), estimator=estimator)["energy"]
    assert rows.dims == ("case", "row")
    expected = oracle.es_ensemble(value, drawn, m_axis=0, v_axis=-1, estimator=name)
    np.testing.assert_allclose(rows, expected, atol=1e-9)


def test_quantile_and_interval_scores_match_scoringrules() -> None:
    oracle = pytest.importorskip("scoringrules", reason="oracle")
    tree = random_tree()
    value, drawn = values_of(tree)
    result = scoring.quantile_score(tree, levels=[0.1, 0.8])
    for index, level in enumerate((0.1, 0.8)):
        quantile = np.quantile(drawn, level, axis=0, method="weibull")
        np.testing.assert_allclose(result["quantile"][index], quantile, atol=1e-12)
        expected = oracle.quantile_score(value, quantile, level)
        np.testing.assert_allclose(result["quantile_score"][index], expected, atol=1e-12)
        assert float(result["quantile_score_mean"][index]) == pytest.approx(expected.mean())
        case_means = expected.mean((1, 2))
        error = result["quantile_score_mean_se"][index]
        assert float(error) == pytest.approx(stats.sem(case_means))
        assert float(result["below"][index]) == pytest.approx((value <= quantile).mean())
    result = scoring.interval_score(tree, levels=[0.8])
    ends = np.quantile(drawn, [0.1, 0.9], axis=0, method="weibull")
    expected = oracle.interval_score(value, *ends, 0.2)
    np.testing.assert_allclose(result["interval_score"][0], expected, atol=1e-9)
    inside = (value >= ends[0]) & (value <= ends[1])
    assert float(result["coverage"][0]) == pytest.approx(inside.mean())
    assert float(result["coverage_se"][0]) == pytest.approx(stats.sem(inside.mean((1, 2))))
    assert float(result["width_mean"][0]) == pytest.approx((ends[1] - ends[0]).mean())


@pytest.mark.parametrize("draws", [5, 19, 32])
def test_intervals_of_few_draws_cover_what_they_attain(draws: int) -> None:
    """Draws and observation of one law: coverage of 90 % needs 19 draws, and 5 reach 4 / 6."""
    rng = np.random.default_rng(0)
    tree = number_tree(rng.normal(size=20_000), rng.normal(size=(1, draws, 20_000)))
    found = scoring.interval_score(tree, levels=[0.9])
    attained = min(0.9, (draws - 1) / (draws + 1))
    assert float(found["attained"][0]) == pytest.approx(attained)
    # Between two draws the line is not the law's own: a part of a rank, here below 0.006.
    error = Z * float(found["coverage_se"][0]) + 0.006
    assert abs(float(found["coverage"][0]) - attained) < error
    below = scoring.quantile_score(tree, levels=[0.05, 0.95])
    reached = np.clip([0.05, 0.95], 1 / (draws + 1), draws / (draws + 1))
    np.testing.assert_allclose(below["attained"], reached)
    np.testing.assert_allclose(below["below"], reached, atol=Z * 0.5 / 20_000**0.5 + 0.006)


def test_empirical_crps_of_one_draw_is_the_absolute_error() -> None:
    tree = random_tree(chains=1, draws=1)
    value, drawn = values_of(tree)
    result = scoring.crps(tree, estimator="empirical")
    np.testing.assert_allclose(result["crps"], np.abs(value - drawn[0]))
    assert "crps_mcse" not in result
    for score in (scoring.crps, lambda t: scoring.energy(t, over=("row",))):
        with pytest.raises(ValueError, match="fair estimator needs two draws"):
            score(tree)


@pytest.mark.parametrize("law", ["normal", "laplace"])
def test_crps_per_draw_is_the_closed_form(law: str) -> None:
    """Against the integral of (F - 1[y <= x])^2 over x."""
    rng = np.random.default_rng(2)
    shape = (2, 3, 4)
    loc, scale = rng.normal(size=shape), rng.uniform(0.5, 2, shape)
    value = rng.normal(size=4)
    tree = number_tree(value, loc, {"loc": loc, "scale": scale})
    result = scoring.crps(tree, distribution=law)["crps_per_draw"]
    factor = {"normal": 1, "laplace": 2}
    for name, ratio in factor.items():
        own = {"loc": loc, "scale": scale, "variance": ratio * scale**2}
        known = number_tree(value, loc, own)
        if name == law:
            xr.testing.assert_allclose(
                scoring.crps(known, distribution=law)["crps_per_draw"], result
            )
        else:
            with pytest.raises(ValueError, match="contradicts the variance"):
                scoring.crps(known, distribution=law)
    x = np.linspace(-60, 60, 400_001)
    frozen = {"normal": stats.norm, "laplace": stats.laplace}[law](loc[1, 2], scale[1, 2])
    gap = frozen.cdf(x[:, None]) - (value <= x[:, None])
    expected = (gap**2).sum(0).mean() * (x[1] - x[0])
    assert float(result[1, 2]) == pytest.approx(expected, abs=1e-3)
    z = (value - loc) / scale
    if law == "normal":
        exact = scale * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - np.pi**-0.5)
        np.testing.assert_allclose(result, exact.mean(-1), rtol=1e-12)
    with pytest.raises(ValueError, match="distribution must be"):
        scoring.crps(tree, distribution="cauchy")
    with pytest.raises(ValueError, match="needs loc and scale"):
        scoring.crps(random_tree(), distribution=law)


def test_the_fair_estimator_is_unbiased_at_few_draws_and_the_other_is_not() -> None:
    """4000 cases, 3 draws of the law; the truth is the closed form at each observation."""
    rng = np.random.default_rng(0)
    value = rng.normal(size=4000)
    tree = number_tree(value, rng.normal(size=(1, 3, 4000)))
    exact = value * (2 * stats.norm.cdf(value) - 1) + 2 * stats.norm.pdf(value) - np.pi**-0.5
    gap = {
        name: scoring.crps(tree, estimator=name)["crps"] - exact for name in ("fair", "empirical")
    }
    error = float(gap["fair"].std(ddof=1)) / 4000**0.5
    assert abs(float(gap["fair"].mean())) < Z * error
    bias = np.pi**-0.5 / 3  # E|X - X'| / (2 draws)
    assert abs(float(gap["empirical"].mean()) - bias) < Z * error
    assert bias > 2 * Z * error


def test_mcse_is_the_spread_over_replicated_draws() -> None:
    rng = np.random.default_rng(1)
    value = rng.normal(size=(3, 2))
    for score in (scoring.crps, lambda tree: scoring.energy(tree, over=("row",))):
        figures, squares = [], []
        for _ in range(150):
            shift = rng.normal(size=(1, 40, 1, 1))  # draws shared by the cases
            drawn = shift + rng.normal(size=(1, 40, 3, 2))
            result = score(number_tree(value, drawn, extra=("row",)))
            name = next(iter(result.data_vars))
            figures.append(float(result[f"{name}_mean"]))
            squares.append(float(result[f"{name}_mean_mcse"]) ** 2)
        spread = np.var(figures, ddof=1)
        noise = np.hypot(np.std(squares), spread * (stats.kurtosis(figures) + 2) ** 0.5) / 150**0.5
        assert abs(np.mean(squares) - spread) < Z * noise + 0.05 * spread


SCORES: dict[str, Callable[[xr.DataTree], xr.DataArray]] = {
    "crps": lambda tree: scoring.crps(tree)["crps"],
    "energy": lambda tree: scoring.energy(tree, over=("row",))["energy"],
    "quantile": lambda tree: scoring.quantile_score(tree)["quantile_score"].mean("level"),
    "interval": lambda tree: scoring.interval_score(tree)["interval_score"].mean("level"),
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(("loc", "scale"), [(0.4, 1.0), (0.0, 0.6), (0.0, 1.6)])
def test_the_true_law_scores_best(name: str, loc: float, scale: float) -> None:
    """Paired over 1500 observations: the wrong law is worse by more than the z limit."""
    rng = np.random.default_rng(7)
    value, noise = rng.normal(size=(1500, 2)), rng.normal(size=(1, 60, 1500, 2))
    scores = [
        SCORES[name](number_tree(value, shift + width * noise, extra=("row",)))
        for shift, width in ((0.0, 1.0), (loc, scale))
    ]
    difference = (scores[1] - scores[0]).mean([d for d in scores[0].dims if d != "case"]).values
    assert difference.mean() / stats.sem(difference) > Z


def test_the_energy_score_sees_correlation() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(1, 60, 3000, 2))
    mixing = np.linalg.cholesky([[1, 0.8], [0.8, 1]])
    value = rng.normal(size=(3000, 2)) @ mixing.T
    right = SCORES["energy"](number_tree(value, noise @ mixing.T, extra=("row",)))
    wrong = SCORES["energy"](number_tree(value, noise, extra=("row",)))
    difference = (wrong - right).values
    assert difference.mean() / stats.sem(difference) > Z


def test_missing_observations_are_left_out() -> None:
    tree = random_tree()
    value, drawn = values_of(tree)
    holes = value.copy()
    holes[0, 0, 0] = holes[5] = np.nan
    partial = number_tree(holes, drawn.reshape(2, 15, *drawn.shape[1:]), extra=("row", "col"))
    result, whole = scoring.crps(partial), scoring.crps(tree)
    kept = whole["crps"].where(np.isfinite(holes))
    np.testing.assert_allclose(result["crps"], kept)
    per_case = kept.mean(("row", "col"))
    assert float(result["crps_mean"]) == pytest.approx(float(per_case.mean()))
    error = stats.sem(per_case.dropna("case"))
    assert float(result["crps_mean_se"]) == pytest.approx(error)
    for table in (scoring.quantile_score(partial), scoring.interval_score(partial)):
        assert bool(np.isfinite(table.drop_dims("row").to_array()).all())
    found = scoring.energy(partial, over=("row", "col"))
    assert np.isnan(found["energy"].values).tolist() == [case == 5 for case in range(len(value))]
    flat = value[:1].reshape(1, -1)[:, 1:], drawn[:, :1].reshape(2, 15, 1, -1)[..., 1:]
    without = scoring.energy(number_tree(*flat, extra=("pixel",)), over=("pixel",))
    assert float(found["energy"][0]) == pytest.approx(float(without["energy"][0]), rel=1e-12)
    assert (found.attrs["left_out"], found.attrs["left_out_cases"]) == (1 + value[5].size, 1)


def test_misuse_is_refused() -> None:
    tree = random_tree()
    value, drawn = values_of(tree)
    with pytest.raises(TypeError, match="holds classes"):
        scoring.crps(classification_tree())
    with pytest.raises(TypeError):
        scoring.crps(array(tree, "observed_data/value"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name one"):
        scoring.crps(tree, "dose")
    with pytest.raises(ValueError, match="no posterior_predictive"):
        scoring.crps(tree.filter(lambda node: node.name != "posterior_predictive"))
    with pytest.raises(ValueError, match="estimator must be"):
        scoring.crps(tree, estimator="nrg")
    with pytest.raises(ValueError, match="over must name"):
        scoring.energy(tree, over=("depth",))
    for levels in ([], [0.0], [1.2]):
        with pytest.raises(ValueError, match="levels must be"):
            scoring.quantile_score(tree, levels=levels)
        with pytest.raises(ValueError, match="levels must be"):
            scoring.interval_score(tree, levels=levels)
    bad = drawn.reshape(2, 15, *drawn.shape[1:]).copy()
    bad[0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="bad draw"):
        scoring.crps(number_tree(value, bad, extra=("row", "col")))
    other = tree.copy()
    other["observed_data"] = tree["observed_data"].dataset.isel(case=slice(None, None, -1))
    with pytest.raises(ValueError, match="same cases in the same order"):
        scoring.crps(other)


def test_elpd_of_numbers_is_the_log_of_the_mean_density() -> None:
    """Of a Laplace likelihood as SciPy has it, from ``predict`` to the score."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    model = BayesianRegressor(net, LaplaceNoise())
    batch = {"image": torch.randn(5, 1, 2, 2), "value": torch.randn(5)}
    settings: dict[str, Any] = {"draws": 6, "progress": False}
    tree = predict(model, MeanFieldNormal(model, init_scale=0.3), [batch], **settings)
    posterior: Any = tree["posterior"]
    density = stats.laplace.pdf(batch["value"], posterior["loc"], posterior["scale"])
    found = scoring.elpd_heldout(tree)
    np.testing.assert_allclose(found["elpd"], np.log(density.mean((0, 1))), rtol=1e-6)
    without = predict(model, PointEstimate(model), [{"image": batch["image"]}], **settings)
    with pytest.raises(ValueError, match="hold observations"):
        scoring.elpd_heldout(without)
