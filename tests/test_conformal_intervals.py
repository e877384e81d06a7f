"""Intervals for real outcomes: the exact law, the definitions, MAPIE, and bad input."""

import numpy as np
import pytest
import torch
import xarray as xr
from conformal_trees import REPEATS, Z, check_beta_law, regression_tree, with_column
from scipy import stats

from ppl_med import storage
from ppl_med.analysis import conformal
from ppl_med.analysis.conformal import order_statistics, thresholds
from ppl_med.inference import MeanFieldNormal, predict
from ppl_med.likelihoods import Quantiles
from ppl_med.models import BayesianRegressor

LEVELS = [0.05, 0.95]


def study(
    rng: np.random.Generator, number: int, prefix: str, draws: int = 20
) -> tuple[xr.DataTree, dict[str, np.ndarray]]:
    """A biased model of a heteroscedastic outcome; draws differ by a slope and an offset."""
    x = rng.uniform(0, 1, number)
    outcome = 1.3 * x + (0.2 + x) * rng.standard_t(4, number)
    theta = rng.normal(0, [0.1, 0.2], (draws, 2))
    loc = x + theta[:, :1] + theta[:, 1:] * x
    scale = 0.5 + 0 * x
    ends = np.stack([loc - scale, loc + 1.2 * scale], -1)
    tree = regression_tree(
        loc, outcome, scale=scale, quantiles=(ends, LEVELS), prefix=prefix, seed=number
    )
    return tree, {"loc": loc, "outcome": outcome, "scale": scale, "ends": ends}


@pytest.mark.parametrize(
    "size", [20, 50, *(pytest.param(size, marks=pytest.mark.slow) for size in (200, 1000))]
)
def test_quantile_intervals_follow_the_exact_law(size: int) -> None:
    """The outcome is N(0, 1), the model says ±1: coverage 2 Phi(1 + q) - 1; KS at 1e-3."""
    rng = np.random.default_rng(size)
    outcome = rng.normal(size=(REPEATS, size))
    score = np.maximum(-1 - outcome, outcome - 1)
    rank = order_statistics.coverage_rank(size, 0.1)
    limit = order_statistics.kth_smallest(score, rank)
    check_beta_law(2 * stats.norm.cdf(1 + limit) - 1, rank, size)
    loc = np.zeros((2, size))
    ends = np.stack([loc - 1, loc + 1], -1)
    for repeat in range(3):
        tree = regression_tree(loc, outcome[repeat], quantiles=(ends, LEVELS))
        learnt = conformal.calibrate_intervals(tree, 0.1, method="cqr")
        assert float(learnt["threshold"]) == limit[repeat]
        assert (int(learnt["n"]), int(learnt["k"])) == (size, rank)


@pytest.mark.parametrize("method", ["absolute", "normalised", "epistemic", "cqr", "cqr_epistemic"])
def test_intervals_follow_the_definition(method: str) -> None:
    rng = np.random.default_rng(0)
    first, one = study(rng, 60, "c")
    second, two = study(rng, 80, "t")
    learnt = conformal.calibrate_intervals(first, 0.1, method=method)
    result = conformal.predict_intervals(learnt, second)
    ends = [by_hand(part, method) for part in (one, two)]
    low, high, below, above = ends[0]
    y = one["outcome"]
    limit = np.sort(np.maximum((low - y) / below, (y - high) / above))[55 - 1]
    assert float(learnt["threshold"]) == pytest.approx(limit, abs=1e-12)
    low, high, below, above = ends[1]
    np.testing.assert_allclose(result["interval"].sel(bound="lower"), low - limit * below)
    np.testing.assert_allclose(result["interval"].sel(bound="upper"), high + limit * above)
    inside = (low - limit * below <= two["outcome"]) & (two["outcome"] <= high + limit * above)
    np.testing.assert_array_equal(result["covered"], inside)
    assert result["interval"].dims == ("case", "bound")
    assert float(result["coverage"]) == inside.mean()
    band = conformal.coverage_band(80, 60, 55)
    assert (float(result["coverage_lower"]), float(result["coverage_upper"])) == band


def by_hand(parts: dict[str, np.ndarray], method: str) -> list[np.ndarray]:
    loc, ends = parts["loc"], parts["ends"]
    mean, one = loc.mean(0), np.ones(loc.shape[1])
    if method.startswith("cqr"):
        sd = ends.std(0, ddof=1) if method == "cqr_epistemic" else np.ones(ends.shape[1:])
        return [*ends.mean(0).T, *sd.T]
    total = (loc.var(0, ddof=1) + parts["scale"] ** 2) ** 0.5
    unit = {"absolute": one, "normalised": total, "epistemic": loc.std(0, ddof=1)}[method]
    return [mean, mean, unit, unit]


@pytest.mark.parametrize("parameters", ["loc scale variance", "mean variance"])
def test_normalised_divides_by_the_standard_deviation(parameters: str) -> None:
    """Of Laplace noise the variance is twice the squared scale; a count has no scale at all."""
    rng = np.random.default_rng(0)
    tree, parts = study(rng, 60, "c")
    names = parameters.split()
    values = {"loc": parts["loc"], "scale": np.broadcast_to(parts["scale"], parts["loc"].shape)}
    values |= {"mean": values["loc"], "variance": 2 * values["scale"] ** 2}
    group = {name: (("chain", "draw", "case"), values[name][None]) for name in names}
    tree["posterior"] = xr.DataTree(xr.Dataset(group, {"case": tree["posterior/loc"]["case"]}))
    learnt = conformal.calibrate_intervals(tree, 0.1, method="normalised")
    sd = (parts["loc"].var(0, ddof=1) + 2 * parts["scale"] ** 2) ** 0.5
    score = np.sort(np.abs(parts["outcome"] - parts["loc"].mean(0)) / sd)
    assert float(learnt["threshold"]) == pytest.approx(score[int(learnt["k"]) - 1], rel=1e-12)


@pytest.mark.parametrize("method", ["absolute", "normalised", "epistemic", "cqr", "cqr_epistemic"])
def test_intervals_cover_from_end_to_end(method: str) -> None:
    """40 studies with a wrong model: total count against the Beta-binomial law, z at 1e-6."""
    rng = np.random.default_rng(1)
    counts = []
    for _ in range(40):
        tree, _ = study(rng, 79, "c")
        # One set of draws for both, as predict gives: the model is fixed, cases are new.
        first, second = tree.isel(case=slice(39)), tree.isel(case=slice(39, None))
        learnt = conformal.calibrate_intervals(first, 0.1, method=method)
        counts.append(int(conformal.predict_intervals(learnt, second)["covered"].sum()))
    law = stats.betabinom(40, 36, 4)
    assert abs(np.mean(counts) - law.mean()) < Z * law.std() / 40**0.5


def test_quantile_intervals_match_mapie() -> None:
    pytest.importorskip("mapie", reason="oracle")
    from mapie.regression import ConformalizedQuantileRegressor
    from sklearn.base import BaseEstimator, RegressorMixin

    class Column(RegressorMixin, BaseEstimator):
        """Returns one column of its input."""

        def __init__(self, index: int = 0) -> None:
            self.index = index
            self.fitted_ = True

        def fit(self, rows: np.ndarray, outcome: np.ndarray) -> "Column":
            return self

        def predict(self, rows: np.ndarray) -> np.ndarray:
            return rows[:, self.index]

    rng = np.random.default_rng(2)
    (first, one), (second, two) = study(rng, 100, "c"), study(rng, 50, "t")
    rows = [np.column_stack([p["ends"].mean(0), p["loc"].mean(0)]) for p in (one, two)]
    oracle = ConformalizedQuantileRegressor(
        [Column(0), Column(1), Column(2)], confidence_level=0.9, prefit=True
    ).conformalize(rows[0], one["outcome"])
    _, expected = oracle.predict_interval(rows[1], symmetric_correction=True)
    learnt = conformal.calibrate_intervals(first, 0.1, method="cqr")
    result = conformal.predict_intervals(learnt, second)
    np.testing.assert_allclose(result["interval"], expected[:, :, 0], rtol=0, atol=1e-12)


def test_quantiles_come_from_predictive_draws_where_the_model_gives_none() -> None:
    rng = np.random.default_rng(3)
    loc = rng.normal(size=(200, 40))
    tree = regression_tree(loc, rng.normal(size=40), scale=np.ones(40))
    learnt = conformal.calibrate_intervals(tree, 0.2, method="cqr")
    drawn = tree["posterior_predictive"].to_dataset()["pressure"].values[0]
    low, high = np.quantile(drawn, [0.1, 0.9], axis=0)
    y = tree["observed_data"].to_dataset()["pressure"].values
    np.testing.assert_allclose(learnt["score"], np.maximum(low - y, y - high))


def test_intervals_within_groups_save_and_apply(tmp_path) -> None:
    rng = np.random.default_rng(4)
    trees = [study(rng, number, prefix)[0] for number, prefix in ((60, "c"), (80, "t"))]
    first, second = (
        with_column(tree, "site", np.where(np.arange(number) % 3 == 0, "A", "B"))
        for tree, number in zip(trees, (60, 80), strict=True)
    )
    learnt = conformal.calibrate_intervals(first, 0.1, within="site")
    storage.save(learnt, tmp_path / "a.nc")
    loaded = storage.load(tmp_path / "a.nc")
    assert isinstance(loaded, xr.Dataset)
    result = conformal.predict_intervals(loaded, second)
    for number, site in enumerate(("A", "B")):
        part = np.arange(60)[(np.arange(60) % 3 == 0) == (site == "A")]
        own = conformal.calibrate_intervals(first.isel(case=part), 0.1)
        assert float(learnt["threshold"][number]) == pytest.approx(float(own["threshold"]))
    by = conformal.coverage(result, second, "site")
    assert by.attrs["promised"] == 1
    assert set(by["group"].values) == {"A", "B"} and "mean_width" in by


def test_too_few_cases_give_the_whole_line() -> None:
    rng = np.random.default_rng(5)
    learnt = conformal.calibrate_intervals(study(rng, 8, "c")[0], 0.1)
    result = conformal.predict_intervals(learnt, study(rng, 20, "t")[0])
    assert np.isinf(result["interval"]).all() and np.isinf(result["width"]).all()
    assert float(result["coverage"]) == 1


def test_the_interval_may_shrink() -> None:
    """Ends at ±3 for a standard normal: the threshold is negative."""
    outcome = np.random.default_rng(6).normal(size=99)
    loc = np.zeros((2, 99))
    tree = regression_tree(loc, outcome, quantiles=(np.stack([loc - 3, loc + 3], -1), LEVELS))
    learnt = conformal.calibrate_intervals(tree, 0.1)
    assert -1.8 < float(learnt["threshold"]) < -0.9


@pytest.mark.parametrize("within", [None, "hospital"])
def test_cases_without_a_number_neither_calibrate_nor_count(within: str | None) -> None:
    rng = np.random.default_rng(11)
    trees = [study(rng, 60, prefix)[0] for prefix in "ct"]
    trees = [with_column(tree, "hospital", np.arange(60) % 2) for tree in trees]
    missing = rng.random(60) < 0.3
    kept = [tree.isel(case=np.flatnonzero(~missing)) for tree in trees]
    for tree in trees:
        values = tree["observed_data"].to_dataset()["pressure"]
        tree["observed_data"] = values.where(~missing).to_dataset()
    learnt = conformal.calibrate_intervals(trees[0], 0.1, within=within)
    alone = conformal.calibrate_intervals(kept[0], 0.1, within=within)
    xr.testing.assert_allclose(learnt, alone, rtol=1e-12)
    assert learnt.attrs["left_out"] == learnt.attrs["left_out_cases"] == missing.sum()
    found = conformal.predict_intervals(learnt, trees[1])
    expected = conformal.predict_intervals(alone, kept[1])
    for name in ("coverage", "coverage_lower", "coverage_upper"):
        xr.testing.assert_equal(found[name], expected[name])
    np.testing.assert_array_equal(np.isnan(found["covered"]), missing)
    np.testing.assert_array_equal(found["covered"][~missing], expected["covered"])
    assert found.attrs["num_cases"] == 60 - missing.sum()
    if within is not None:
        of_groups = [
            conformal.coverage(result, tree, within)
            for result, tree in ((found, trees[1]), (expected, kept[1]))
        ]
        xr.testing.assert_allclose(*of_groups, rtol=1e-12)
    nobody = trees[1].copy()
    nobody["observed_data"] = (np.nan * values).to_dataset()
    unseen = conformal.predict_intervals(learnt, nobody)
    assert np.isnan(unseen["coverage"]) and np.isnan(unseen["covered"]).all()


def test_the_old_name_of_the_site_warns() -> None:
    rng = np.random.default_rng(12)
    tree, _ = study(rng, 40, "c")
    with pytest.warns(DeprecationWarning, match="outcome= is now site="):
        old = conformal.calibrate_intervals(tree, 0.1, outcome="pressure")  # type: ignore[call-arg]
    xr.testing.assert_identical(old, conformal.calibrate_intervals(tree, 0.1, site="pressure"))


def test_bad_input_is_refused() -> None:
    rng = np.random.default_rng(7)
    tree, _ = study(rng, 40, "c")
    learnt = conformal.calibrate_intervals(tree, 0.1)
    with pytest.raises(ValueError, match=r"share 40 case\(s\)"):
        conformal.predict_intervals(learnt, tree)
    for alpha in (0, 1, 1.2, float("nan"), True):
        with pytest.raises(ValueError, match="alpha"):
            conformal.calibrate_intervals(tree, alpha)
    with pytest.raises(ValueError, match="method must be"):
        conformal.calibrate_intervals(tree, method="magic")
    with pytest.raises(ValueError, match=r"has the levels \[0.05, 0.95\]"):
        conformal.calibrate_intervals(tree, 0.2)
    with pytest.raises(TypeError, match="calibrate_intervals"):
        conformal.predict_intervals(xr.Dataset(), tree)
    with pytest.raises(ValueError, match="copies of one, whose spread is 0"):
        same = regression_tree(np.ones((5, 40)), rng.normal(size=40))
        conformal.calibrate_intervals(same, method="epistemic")
    with pytest.raises(ValueError, match="observed pressure is infinite"):
        broken = np.where(np.arange(40) == 3, np.inf, 1.0)
        conformal.calibrate_intervals(regression_tree(np.ones((5, 40)), broken))
    with pytest.raises(ValueError, match="no loc"):
        bare = xr.DataTree.from_dict({"/observed_data": tree["observed_data"].to_dataset()})
        conformal.calibrate_intervals(bare, method="absolute")
    with pytest.raises(ValueError, match="scores are infinite"):
        thresholds.learn(xr.DataArray([np.inf, 1.0], dims="case"), 0.1)
    with pytest.raises(ValueError, match="is no calibration for classes"):
        conformal.predict_sets(learnt, tree_of_classes())


def tree_of_classes() -> xr.DataTree:
    from posterior_trees import classification_tree

    return classification_tree()


def test_a_law_without_loc_and_scale_has_quantiles_of_its_draws() -> None:
    """Such as a Poisson's, whose posterior holds its mean and variance."""
    rng = np.random.default_rng(0)
    trees = []
    for prefix in "ct":
        tree = study(rng, 40, prefix)[0]
        group = tree["posterior"].to_dataset()[["loc"]].rename(loc="mean")
        tree["posterior"] = xr.DataTree(group)
        trees.append(tree)
    learnt = conformal.calibrate_intervals(trees[0], 0.2, method="cqr")
    found = conformal.predict_intervals(learnt, trees[1])
    assert found.sizes["case"] == 40 and np.isfinite(found["interval"]).all()


def test_quantiles_of_a_trained_program_are_read() -> None:
    """The names are those that ``predict`` writes."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    model = BayesianRegressor(net, Quantiles((0.05, 0.5, 0.95)))
    guide = MeanFieldNormal(model)

    def batches(prefix: str) -> list[dict[str, object]]:
        ids = [f"{prefix}{index}" for index in range(40)]
        return [{"image": torch.randn(40, 1, 2, 2), "value": torch.randn(40), "id": ids}]

    trees = [predict(model, guide, batches(p), draws=3, progress=False) for p in "ab"]
    calibration = conformal.calibrate_intervals(trees[0], 0.1, method="cqr")
    found = conformal.predict_intervals(calibration, trees[1])
    assert (found["interval"].sel(bound="upper") >= found["interval"].sel(bound="lower")).all()
