"""Leaving training cases out and adding test cases: against exact refits of conjugate models."""

import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import xarray as xr
from conformal_trees import Z, probs_tree, regression_tree, vague_labels
from scipy import stats
from scipy.special import expit

from ppl_med.analysis import conformal, scoring
from ppl_med.analysis.conformal import importance

SIGMA = 0.5


# ------------------------------------------------------------ linear regression, noise known


def line_posterior(design: np.ndarray, outcome: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the coefficients, prior N(0, 1), noise N(0, SIGMA)."""
    covariance = np.linalg.inv(np.eye(design.shape[1]) + design.T @ design / SIGMA**2)
    return covariance @ design.T @ outcome / SIGMA**2, covariance


def line(
    rng: np.random.Generator, number: int, num_test: int, draws: int
) -> tuple[xr.DataTree, xr.DataTree, np.ndarray, np.ndarray]:
    """Exact posterior draws for training and test cases; noise of the data is not Gaussian."""
    x = rng.uniform(-1, 1, number + num_test)
    design = np.column_stack([np.ones_like(x), x, x**2])
    outcome = design @ [0.3, 1.0, -0.5] + SIGMA * rng.standard_t(5, x.size)
    mean, covariance = line_posterior(design[:number], outcome[:number])
    theta = rng.multivariate_normal(mean, covariance, draws)
    loc, scale = theta @ design.T, np.full(x.size, SIGMA)
    parts = (slice(number), slice(number, None))
    first, second = (
        regression_tree(loc[:, part], outcome[part], scale=scale[part], prefix=prefix)
        for part, prefix in zip(parts, "ct", strict=True)
    )
    return first, second, design, outcome


def test_leave_one_out_intervals_match_explicit_refits() -> None:
    """60 refits of a conjugate model; ends differ by less than 0.02 outcome sd."""
    rng = np.random.default_rng(0)
    number, num_test = 60, 25
    first, second, design, outcome = line(rng, number, num_test, 4000)
    low, high = [], []
    for index in range(number):
        kept = np.arange(number) != index
        mean, _ = line_posterior(design[:number][kept], outcome[:number][kept])
        residual = abs(outcome[index] - design[index] @ mean)
        low.append(design[number:] @ mean - residual)
        high.append(design[number:] @ mean + residual)
    rank = conformal.coverage_rank(number, 0.1)
    expected = [np.sort(low, 0)[number - rank], np.sort(high, 0)[rank - 1]]
    result = conformal.leave_one_out_intervals(first, second, 0.1, site="pressure")
    np.testing.assert_allclose(result["interval"], np.stack(expected, 1), atol=0.02 * SIGMA)
    found = outcome[number:]
    inside = (result["interval"].values[:, 0] <= found) & (found <= result["interval"].values[:, 1])
    np.testing.assert_array_equal(result["covered"], inside)
    assert float(result["pareto_k"].max()) < 0.7
    assert (int(result["n"]), int(result["k"])) == (60, 55)
    # Without leaving cases out the same recipe is too narrow, by more than the tolerance.
    mean, _ = line_posterior(design[:number], outcome[:number])
    plain = np.sort(np.abs(outcome[:number] - design[:number] @ mean))[rank - 1]
    width = result["width"].values - 2 * plain
    assert width.mean() > 0.04 * SIGMA


@pytest.mark.slow
def test_leave_one_out_intervals_cover() -> None:
    """One test case in each of 400 studies of 20 cases: at least 1 - alpha here, z at 1e-6."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        first, second, _, _ = line(rng, 20, 1, 400)
        result = conformal.leave_one_out_intervals(first, second, 0.2, pareto_k=np.inf)
        hits += int(result["covered"][0])
    assert stats.binomtest(hits, 400, 0.8, alternative="less").pvalue > 1e-6
    assert stats.binomtest(hits, 400, 0.9, alternative="greater").pvalue > 1e-6


def test_bayes_intervals_match_exact_refits() -> None:
    """Every outcome of a grid added to the data of a conjugate model; two steps of the grid."""
    rng = np.random.default_rng(2)
    number, num_test = 40, 10
    first, second, design, outcome = line(rng, number, num_test, 4000)
    result = conformal.bayes_intervals(first, second, 0.1, num_points=401)
    for case in range(num_test):
        row = design[number + case]
        grid = np.linspace(-4, 5, 1201)
        kept = [y for y in grid if exact_pvalue(design[:number], outcome[:number], row, y) > 0.1]
        step = 16 * SIGMA / 400 + grid[1] - grid[0]
        ends = result["interval"].values[case]
        np.testing.assert_allclose(ends, [min(kept), max(kept)], atol=2.5 * step)
    assert float(result["effective_draws"].min()) > 100


def exact_pvalue(design: np.ndarray, outcome: np.ndarray, row: np.ndarray, value: float) -> float:
    rows, seen = np.vstack([design, row]), np.append(outcome, value)
    mean, covariance = line_posterior(rows, seen)
    scale = (SIGMA**2 + np.einsum("ij,jk,ik->i", rows, covariance, rows)) ** 0.5
    density = stats.norm.pdf(seen, rows @ mean, scale)
    return float((density <= density[-1]).mean())


@pytest.mark.slow
def test_bayes_intervals_cover_with_a_wrong_model() -> None:
    """Noise is heavier than the model says: 300 studies of 19 cases, exact 0.8, z at 1e-6."""
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        first, second, _, _ = line(rng, 19, 1, 400)
        hits += int(conformal.bayes_intervals(first, second, 0.2)["covered"][0])
    assert abs(hits - 240) < Z * (300 * 0.8 * 0.2) ** 0.5


# ------------------------------------------------------------ classes, posterior by quadrature


def logistic(
    rng: np.random.Generator, number: int, num_test: int, draws: int = 4000
) -> tuple[xr.DataTree, xr.DataTree, np.ndarray, np.ndarray, np.ndarray]:
    """A logistic model whose posterior over 121 x 121 coefficients is exact; draws from it."""
    axes = (center + np.linspace(-2, 2, 121) for center in (0.4, 1.2))
    theta = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
    x = rng.normal(size=number + num_test)
    label = (rng.random(x.size) < expit(0.4 + 1.2 * x)).astype(int)
    one = expit(theta[:, :1] + theta[:, 1:] * x)
    probs = np.stack([1 - one, one], -1)
    log_prior = -0.5 * (theta**2).sum(1) / 2
    likelihood = np.log(probs[:, np.arange(number), label[:number]])
    posterior = np.exp(log_prior + likelihood.sum(1))
    chosen = rng.choice(len(theta), draws, p=posterior / posterior.sum())
    first = probs_tree(probs[chosen][:, :number], label[:number])
    second = probs_tree(probs[chosen][:, number:], label[number:], prefix="t")
    return first, second, probs, label, posterior / posterior.sum()


def test_leave_one_out_sets_match_explicit_refits() -> None:
    """Exact posteriors without each case; sets agree but for 2 % at the margin."""
    rng = np.random.default_rng(4)
    number = 80
    first, second, probs, label, posterior = logistic(rng, number, 400)
    own = probs[:, np.arange(number), label[:number]]
    without = posterior[:, None] / own
    without /= without.sum(0)
    reached = 1 - (without * own).sum(0)
    scores = 1 - np.einsum("si,smc->imc", without, probs[:, number:])
    rank = conformal.coverage_rank(number, 0.1)
    expected = (scores > reached[:, None, None]).sum(0) < rank
    result = conformal.leave_one_out_sets(first, second, 0.1)
    assert (result["prediction_set"].values != expected).mean() < 0.02
    assert 0.2 < expected.mean() < 0.9
    hit = result["prediction_set"].values[np.arange(400), label[number:]]
    np.testing.assert_array_equal(result["covered"], hit)
    assert float(result["coverage"]) == hit.mean()
    assert float(result["coverage_guaranteed"]) == pytest.approx(0.8)
    by = conformal.coverage(result, second, "class")
    assert not {"lower", "upper", "expected"} & set(by) and by.attrs["promised"] == 0


def test_weights_are_those_of_the_posterior_without_the_case() -> None:
    """Leave-one-out probabilities, by weights and exactly: z-test of each at 1e-6."""
    rng = np.random.default_rng(5)
    number = 60
    first, _, probs, label, posterior = logistic(rng, number, 1)
    own = probs[:, np.arange(number), label[:number]]
    exact = 1 / (posterior[:, None] / own).sum(0)
    weights, shape = importance.leave_one_out_weights(first, None)
    drawn = first["posterior"].to_dataset()["probs"].values[0]
    drawn = drawn[:, np.arange(number), label[:number]]
    found = (weights * drawn.T).sum(1)
    error = (weights**2 * (drawn.T - found[:, None]) ** 2).sum(1) ** 0.5
    assert np.abs((found - exact) / error).max() < Z
    assert np.abs((drawn.mean(0) - exact) / error).max() > 2 * Z
    assert (found < drawn.mean(0)).all() and shape.sizes == {"training_case": 60}


def test_bayes_sets_match_exact_refits() -> None:
    rng = np.random.default_rng(6)
    number, num_test = 80, 300
    first, second, probs, label, posterior = logistic(rng, number, num_test)
    own = probs[:, np.arange(number), label[:number]]
    added = posterior[:, None, None] * probs[:, number:]
    density = added / added.sum(0)
    scores = np.einsum("smc,si->imc", density, own)
    reached = (density * probs[:, number:]).sum(0)
    pvalue = (1 + (scores <= reached).sum(0)) / (number + 1)
    result = conformal.bayes_sets(first, second, 0.1)
    assert np.abs(result["pvalue"] - pvalue).max() < 4 / 81
    assert (result["prediction_set"].values != (pvalue > 0.1)).mean() < 0.02
    assert 0.2 < (pvalue > 0.1).mean() < 0.9
    hit = result["prediction_set"].values[np.arange(num_test), label[number:]]
    np.testing.assert_array_equal(result["covered"], hit)


@pytest.mark.slow
def test_sets_from_training_cases_cover() -> None:
    """One test case in each of 1000 studies of 30: at least 0.8 by either route, z at 1e-6."""
    rng = np.random.default_rng(7)
    hits = np.zeros(2)
    for _ in range(1000):
        first, second, _, _, _ = logistic(rng, 30, 1, 300)
        one = conformal.leave_one_out_sets(first, second, 0.2, pareto_k=np.inf)
        two = conformal.bayes_sets(first, second, 0.2)
        hits += [int(one["covered"][0]), int(two["covered"][0])]
    assert (hits > 800 - Z * 160**0.5).all()


@pytest.mark.parametrize("method", ["aps", "raps", "saps"])
def test_leave_one_out_sets_take_every_score(method: str) -> None:
    """With equal weights the recipe is the plain count; a full set when n is too small."""
    rng = np.random.default_rng(8)
    first, second, _, _, _ = logistic(rng, 60, 200)
    result = conformal.leave_one_out_sets(first, second, 0.2, method=method)
    assert abs(result["covered"].values.mean() - 0.8) < 0.15
    tiny = conformal.leave_one_out_sets(first.isel(case=slice(4)), second, 0.1, method=method)
    assert tiny["prediction_set"].all()


def test_what_cannot_be_reweighted_is_refused() -> None:
    rng = np.random.default_rng(9)
    first, second, _, _, _ = logistic(rng, 40, 10, draws=500)
    with pytest.raises(ValueError, match=r"Pareto k is above -1.00 for 40 of 40"):
        conformal.leave_one_out_sets(first, second, pareto_k=-1.0)
    held_out = first.copy()
    held_out.attrs["log_likelihood_of"] = "held-out"
    for function in (conformal.leave_one_out_sets, conformal.bayes_sets):
        with pytest.raises(ValueError, match="is 'held-out'"):
            function(held_out, second)
        with pytest.raises(ValueError, match="share 40 case"):
            function(first, first)
        with pytest.raises(ValueError, match="do not hold the same draws"):
            function(first, second.isel(draw=slice(100)))
        with pytest.raises(ValueError, match="alpha"):
            function(first, second, 1.0)
        renamed = second.map_over_datasets(
            lambda data: data.assign_coords({"class": ["x", "y"]}) if "class" in data.dims else data
        )
        with pytest.raises(ValueError, match=r"training has the classes .* not .*x.*y"):
            function(first, renamed)
        other = second.copy()
        other.attrs["seed"] = 1
        seeded = first.copy()
        seeded.attrs["seed"] = 0
        with pytest.raises(ValueError, match="has seed 0, the test tree 1"):
            function(seeded, other)
    with pytest.raises(ValueError, match="effective draws"):
        conformal.bayes_sets(first, second, min_effective_draws=499.9)
    probs, label = vague_labels(rng, (50,), 3)
    same = probs_tree(np.stack([probs] * 40), label)
    with pytest.raises(ValueError, match="point estimate"):
        conformal.leave_one_out_sets(same.isel(case=slice(25)), same.isel(case=slice(25, None)))
    with pytest.raises(ValueError, match="no log_likelihood"):
        bare = first.filter(lambda node: node.name != "log_likelihood")
        conformal.leave_one_out_sets(bare, second)
    with pytest.raises(ValueError, match="Score"):
        conformal.leave_one_out_sets(first, second, method=conformal.Score(draws="mean_score"))


def test_likelihoods_in_another_order_are_refused() -> None:
    first, second, _, _ = line(np.random.default_rng(0), 40, 5, 200)
    turned = first.copy()
    turned["log_likelihood"] = xr.DataTree(
        first["log_likelihood"].to_dataset().isel(case=slice(None, None, -1))
    )
    with pytest.raises(ValueError, match="same cases in the same order"):
        conformal.leave_one_out_intervals(turned, second, 0.1, site="pressure")


def test_a_law_that_is_not_normal_is_refused() -> None:
    first, second, _, _ = line(np.random.default_rng(0), 40, 5, 200)
    group = second["posterior"].to_dataset()
    second["posterior"] = xr.DataTree(group.assign(variance=2 * group["scale"] ** 2))
    with pytest.raises(ValueError, match="distribution='normal' contradicts the variance"):
        conformal.bayes_intervals(first, second, 0.1)


def test_heavy_tails_are_refused() -> None:
    """A case that only few draws explain: k above the limit, no result."""
    rng = np.random.default_rng(10)
    loc = rng.normal(0, 1, (400, 1)) * np.ones((1, 30))
    outcome = np.zeros(30)
    outcome[0] = 30.0
    tree = regression_tree(loc, outcome, scale=np.full(30, 0.5))
    with pytest.raises(ValueError, match="Pareto k is above"):
        conformal.leave_one_out_intervals(
            tree.isel(case=slice(20)), tree.isel(case=slice(20, None))
        )


def test_training_and_test_cases_without_an_observation_are_left_out() -> None:
    rng = np.random.default_rng(6)
    first, second, _, _ = line(rng, 40, 20, 400)
    gone = [rng.random(40) < 0.2, rng.random(20) < 0.3]
    kept = [t.isel(case=np.flatnonzero(~g)) for t, g in zip((first, second), gone, strict=True)]
    for tree, missing in zip((first, second), gone, strict=True):
        values = tree["observed_data"].to_dataset()["pressure"]
        tree["observed_data"] = values.where(~missing).to_dataset()
    analysis: Any
    for analysis, options in (
        (conformal.leave_one_out_intervals, {"pareto_k": np.inf}),
        (conformal.bayes_intervals, {"min_effective_draws": 1.0}),
    ):
        found = analysis(first, second, 0.2, **options)
        expected = analysis(*kept, 0.2, **options)
        shared = found.isel(case=np.flatnonzero(~gone[1])).drop_vars("covered")
        xr.testing.assert_allclose(shared, expected.drop_vars("covered"), rtol=1e-12)
        np.testing.assert_array_equal(np.isnan(found["covered"]), gone[1])
        assert found.attrs["left_out"] == gone[1].sum()
        assert int(found["n"]) == (~gone[0]).sum()


def test_training_and_test_cases_without_a_label_are_left_out() -> None:
    rng = np.random.default_rng(7)
    trees, kept, gone = [], [], []
    for prefix in "ct":
        probs, label = vague_labels(rng, (40,), 3)
        noise = rng.dirichlet(np.ones(3) * 30, (200, 40))
        probs = 0.7 * probs + 0.3 * noise
        tree = probs_tree(probs, label, prefix=prefix)
        missing = rng.random(40) < 0.2
        kept.append(tree.isel(case=np.flatnonzero(~missing)))
        bare = np.where(missing, -1, label)
        ids = {"case": tree["posterior"].to_dataset()["case"].values}
        tree["observed_data"] = xr.Dataset({"label": ("case", bare)}, ids)
        trees.append(tree)
        gone.append(missing)
    analysis: Any
    for analysis, options in (
        (conformal.leave_one_out_sets, {"pareto_k": np.inf, "method": "aps"}),
        (conformal.bayes_sets, {"min_effective_draws": 1.0}),
    ):
        found, expected = analysis(*trees, 0.2, **options), analysis(*kept, 0.2, **options)
        shared = found.isel(case=np.flatnonzero(~gone[1])).drop_vars("covered")
        xr.testing.assert_allclose(shared, expected.drop_vars("covered"), rtol=1e-12)
        np.testing.assert_array_equal(np.isnan(found["covered"]), gone[1])
        assert found.attrs["left_out"] == gone[1].sum()
        assert int(found["n"]) == (~gone[0]).sum()


def with_weights(tree: xr.DataTree, samples: int) -> xr.DataTree:
    """The tree as of several samples of each draw of the weights."""

    def shared(group: xr.Dataset) -> xr.Dataset:
        number = np.arange(group.sizes["draw"]) // samples if "draw" in group.sizes else None
        return group if number is None else group.assign_coords(weights=("draw", number))

    return tree.map_over_datasets(shared)


def test_samples_that_share_their_weights_are_refused() -> None:
    """Of y = theta + z_i + noise, z_i of each case, intervals were twice as wide as exact ones."""
    first, second, _, _ = line(np.random.default_rng(0), 40, 5, 200)
    analysis: Any
    left_out = partial(conformal.leave_one_out_intervals, pareto_k=np.inf)
    for analysis in (left_out, conformal.bayes_intervals):
        for pair in ((with_weights(first, 2), second), (first, with_weights(second, 2))):
            with pytest.raises(ValueError, match="several samples of each draw of the weights"):
                analysis(*pair, 0.2)
        found = analysis(with_weights(first, 1), with_weights(second, 1), 0.2)
        xr.testing.assert_allclose(found, analysis(first, second, 0.2))
    first, second, _, _, _ = logistic(np.random.default_rng(9), 40, 10, draws=200)
    for analysis in (conformal.leave_one_out_sets, conformal.bayes_sets):
        with pytest.raises(ValueError, match="several samples of each draw of the weights"):
            analysis(with_weights(first, 2), with_weights(second, 2), 0.2)


def test_a_single_test_case_of_which_all_draws_are_sure_keeps_its_draws() -> None:
    """Equal draws of one case are no copies where training cases tell them apart."""
    rng = np.random.default_rng(3)
    first, second, _, _, _ = logistic(rng, 40, 10, draws=200)
    probs = second["posterior"].to_dataset()["probs"]
    sure = probs.where(probs["case"] != probs["case"][3], xr.DataArray([0.0, 1.0], dims="class"))
    second["posterior"] = xr.DataTree(sure.transpose(*probs.dims).to_dataset())
    analysis: Any
    for analysis in (
        partial(conformal.leave_one_out_sets, pareto_k=np.inf),
        conformal.bayes_sets,
    ):
        found = analysis(first, second.isel(case=[3]), 0.2)
        expected = analysis(first, second, 0.2).isel(case=[3])
        xr.testing.assert_allclose(
            found.drop_vars("coverage"), expected.drop_vars("coverage"), rtol=1e-12
        )
    first, second, _, _ = line(rng, 40, 5, 200)
    group = second["posterior"].to_dataset()
    loc = group["loc"].where(group["case"] != group["case"][3], 0.0)
    second["posterior"] = xr.DataTree(group.assign(loc=loc))
    for analysis in (
        partial(conformal.leave_one_out_intervals, pareto_k=np.inf),
        partial(conformal.bayes_intervals, min_effective_draws=0.0),
    ):
        found = analysis(first, second.isel(case=[3]), 0.2)
        expected = analysis(first, second, 0.2).isel(case=[3])
        xr.testing.assert_allclose(
            found.drop_vars("coverage"), expected.drop_vars("coverage"), rtol=1e-12
        )


def test_a_log_likelihood_of_other_draws_is_refused() -> None:
    first, second, _, _ = line(np.random.default_rng(0), 40, 5, 200)
    group = first["log_likelihood"].to_dataset().isel(draw=slice(100))
    first["log_likelihood"] = xr.DataTree(group)
    with pytest.raises(ValueError, match="of 100 draws that differ, and predictions of 200"):
        conformal.leave_one_out_intervals(first, second, 0.2)


def test_a_training_case_of_which_all_draws_are_sure_needs_no_weights() -> None:
    """ArviZ refused the whole tree: without case 3 the posterior is the same, and so is p(y_3)."""
    logs = -np.random.default_rng(0).exponential(1, (1, 200, 30))
    logs[:, :, 3] = 0.0

    def loo_of(values: np.ndarray) -> xr.Dataset:
        log_likelihood = xr.Dataset({"label": (("chain", "draw", "case"), values)})
        tree = xr.DataTree.from_dict({"/log_likelihood": log_likelihood})
        tree.attrs["log_likelihood_of"] = "training"
        return scoring.elpd_loo(tree)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto")
        found, rest = loo_of(logs), loo_of(np.delete(logs, 3, 2))
    assert found["elpd"][3] == 0 and np.isnan(found["pareto_k"][3])
    for name in ("elpd", "pareto_k"):
        np.testing.assert_allclose(np.delete(found[name].values, 3), rest[name])
    np.testing.assert_allclose(found["elpd_sum"], rest["elpd_sum"])
    np.testing.assert_allclose(found["elpd_sum_se"], found["elpd"].std() * 30**0.5)
    with pytest.raises(ValueError, match="tree has a case that many draws fit equally badly"):
        loo_of(np.log(np.random.default_rng(0).choice([0.2, 0.5, 0.9], (1, 200, 30))))


def test_few_functions_drawn_again_and_again_are_refused() -> None:
    rng = np.random.default_rng(0)
    few = rng.dirichlet(np.ones(3), (3, 50))
    tree = probs_tree(few[rng.choice(3, 100)], rng.integers(0, 3, 50))
    with pytest.raises(ValueError, match="training has a case that many draws fit equally badly"):
        conformal.leave_one_out_sets(tree.isel(case=slice(40)), tree.isel(case=slice(40, None)))
