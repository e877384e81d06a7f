"""Draws that share their weights are not as many functions: errors, divisors, pairs and ranks.

Draws of a known nested law: a level of variance 1 of every draw of the weights, and noise of
variance 1 of every sample. Statistical tests fail at a rate of 1e-6 where the code is right.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from number_trees import number_tree
from scipy import stats
from segmentation_trees import random_masks, sampled

from ppl_med.analysis import acquisition, calibration, convergence, scoring, segmentation
from ppl_med.analysis import uncertainty as uncertain
from ppl_med.analysis.statistics import monte_carlo
from ppl_med.analysis.statistics.draw_ranks import attained
from ppl_med.analysis.statistics.weight_draws import (
    between_pairs,
    num_functions,
    one_of_each,
    over_weights,
    own_means,
)
from ppl_med.analysis.tree import drop_copies, open_draws
from ppl_med.axes import SAMPLES, WEIGHTS
from ppl_med.testing import assert_mean, assert_uniform

W, S = 8, 10
Z = float(stats.norm.isf(0.5e-6))


def nested(rng: np.random.Generator, shape: tuple[int, ...], between: float = 1.0) -> xr.DataArray:
    """Values (chain, draw, entry) of W draws of the weights with S samples each."""
    level = rng.normal(0, between**0.5, (1, W, 1, *shape))
    values = (level + rng.normal(size=(1, W, S, *shape))).reshape(1, W * S, *shape)
    rest = [f"axis_{axis}" for axis in range(len(shape))]
    return shared(xr.DataArray(values, dims=(*SAMPLES, *rest)))


def shared(array: Any, samples: int = S) -> Any:
    """With the coordinate that says which draws share their weights."""
    return array.assign_coords({WEIGHTS: ("draw", np.arange(array.sizes["draw"]) // samples)})


def bare(array: Any) -> Any:
    return array.drop_vars(WEIGHTS)


def with_weights(tree: xr.DataTree, samples: int) -> xr.DataTree:
    """A tree whose draws share their weights."""

    def of_group(group: xr.Dataset) -> xr.Dataset:
        return shared(group, samples) if "draw" in group.dims else group

    result = tree.map_over_datasets(of_group)
    result.attrs = tree.attrs
    return result


# --- errors


def test_intervals_over_draws_of_the_weights_cover_and_those_over_samples_do_not() -> None:
    """Student's t intervals of 4000 means at 95 %: exact, so binomial; over samples 56 %."""
    values, number = nested(np.random.default_rng(0), (4000,)), 4000
    mean = values.mean(SAMPLES)
    error = monte_carlo.standard_error(values)
    covered = int((abs(mean) <= stats.t.isf(0.025, W - 1) * error).sum())
    assert abs(covered - 0.95 * number) < Z * (number * 0.95 * 0.05) ** 0.5
    naive = monte_carlo.standard_error(bare(values))
    held = float((abs(mean) <= stats.norm.isf(0.025) * naive).mean())
    assert held < 0.7
    assert_mean(error.values**2, (1 + 1 / S) / W)


def test_the_error_of_unequal_clusters_is_that_of_the_mean_over_all_draws() -> None:
    """Half the samples of every second draw of the weights are left out."""
    kept = np.flatnonzero((np.arange(W * S) // S % 2 == 0) | (np.arange(W * S) % 2 == 0))
    values = nested(np.random.default_rng(1), (20000,)).isel(draw=kept)
    sizes = np.bincount(values[WEIGHTS].values)
    truth = ((sizes / sizes.sum()) ** 2).sum() + 1 / sizes.sum()
    mean = values.mean(SAMPLES)
    assert_mean(mean.values**2, truth)
    found = float((monte_carlo.standard_error(values) ** 2).mean())
    assert truth * 0.9 < found < truth * 1.1
    np.testing.assert_allclose(over_weights(values).mean(SAMPLES), mean, atol=1e-12)


def test_chains_are_apart() -> None:
    one = nested(np.random.default_rng(2), (50,))
    two = xr.concat([one, one + 5], "chain")
    assert num_functions(two) == 2 * W and over_weights(two).shape == (2, W, 50)
    clear: Any = xr.DataArray(over_weights(two).values, dims=two.dims)
    xr.testing.assert_allclose(monte_carlo.standard_error(two), monte_carlo.standard_error(clear))


def test_equal_draws_have_no_error_and_one_draw_of_the_weights_has_none_that_is_known() -> None:
    equal = shared(xr.DataArray(np.full((1, 12, 3), 0.1), dims=(*SAMPLES, "case")), 4)
    assert (monte_carlo.standard_error(equal) == 0).all()
    single = nested(np.random.default_rng(0), (3,)).isel(draw=slice(S))
    assert np.isnan(monte_carlo.standard_error(single)).all()
    with pytest.raises(ValueError, match="two draws of the weights"):
        monte_carlo.require_draws(single)
    monte_carlo.require_draws(bare(single))


def test_a_sum_over_cases_has_the_error_of_its_draws() -> None:
    """elpd of held-out cases: linear in the likelihood, whose draws are the nested law."""
    rng = np.random.default_rng(3)
    logs = 0.1 * nested(rng, (5,)).rename(axis_0="case") - 3
    tree = xr.DataTree.from_dict({"/log_likelihood": xr.Dataset({"label": logs})})
    tree.attrs["log_likelihood_of"] = "held-out"
    found = scoring.elpd_heldout(tree)
    relative: Any = np.exp(logs - found["elpd"])
    means = relative.values.reshape(W, S, 5).mean(1)
    np.testing.assert_allclose(found["elpd_mcse"], means.std(0, ddof=1) / W**0.5)
    np.testing.assert_allclose(found["elpd_sum_mcse"], means.sum(1).std(ddof=1) / W**0.5)
    tree.attrs["log_likelihood_of"] = "training"
    with pytest.raises(ValueError, match="several samples of each draw of the weights"):
        scoring.elpd_loo(tree)


# --- divisors and pairs


def pairs_of_other_weights(values: np.ndarray, figure: Callable[[Any, Any], Any]) -> Any:
    """Mean of a figure over pairs of draws (draw, ...) that share no weights, by hand."""
    own = np.arange(len(values)) // S
    found = [
        figure(values[i], values[j])
        for i in range(len(values))
        for j in range(len(values))
        if own[i] != own[j]
    ]
    return np.mean(found, axis=0)


def test_the_variance_is_that_of_two_draws_with_other_weights() -> None:
    values = nested(np.random.default_rng(4), (3000,))
    found = monte_carlo.variance_influence(values)
    assert_mean(found.mean(SAMPLES).values, 2.0)
    few = values.isel(axis_0=slice(4))
    by_hand = pairs_of_other_weights(few.values[0], lambda a, b: (a - b) ** 2 / 2)
    np.testing.assert_allclose(found.mean(SAMPLES)[:4], by_hand)
    with pytest.raises(AssertionError):
        assert_mean(monte_carlo.variance_influence(bare(values)).mean(SAMPLES).values, 2.0)
    whole = values.isel(draw=slice(S))  # of one function, its own spread
    np.testing.assert_allclose(
        monte_carlo.variance_influence(whole).mean(SAMPLES), whole.values[0].var(0, ddof=1)
    )
    uneven = values.isel(draw=slice(0, 3 * S - 4), axis_0=slice(4))
    own = uneven[WEIGHTS].values
    apart = own[:, None] != own
    gaps = (uneven.values[0][:, None] - uneven.values[0]) ** 2 / 2
    np.testing.assert_allclose(
        monte_carlo.variance_influence(uneven).mean(SAMPLES), gaps[apart].mean(0)
    )


def test_means_within_and_pairs_by_hand() -> None:
    values = nested(np.random.default_rng(5), (2,))
    own = values.values.reshape(W, S, 2).mean(1).repeat(S, 0)
    np.testing.assert_allclose(own_means(values).values[0], own)
    alone = shared(values, 1)
    assert num_functions(alone) == W * S
    constant = xr.ones_like(values)
    np.testing.assert_allclose(between_pairs(constant, constant).mean(SAMPLES), 1.0)


def test_the_fair_crps_is_unbiased() -> None:
    """3000 cases, each with draws of its own, observed 0: the closed form of a Normal(0, 2)."""
    drawn = nested(np.random.default_rng(6), (3000,)).values
    plain = number_tree(np.zeros(3000), drawn)
    scale = 2**0.5
    expected = scale * (2 * stats.norm.pdf(0) - 1 / np.pi**0.5)
    fair = scoring.crps(with_weights(plain, S))
    assert_mean(fair["crps"].values, expected)
    with pytest.raises(AssertionError):
        assert_mean(scoring.crps(plain)["crps"].values, expected)
    few = with_weights(plain.isel(case=slice(3)), S)
    distance = pairs_of_other_weights(drawn[0, :, :3], lambda a, b: abs(a - b))
    np.testing.assert_allclose(
        scoring.crps(few)["crps"], abs(drawn[0, :, :3]).mean(0) - distance / 2
    )
    field = number_tree(np.zeros((3, 4)), drawn[..., :12].reshape(1, -1, 3, 4), extra=("row",))
    score = scoring.energy(with_weights(field, S), over=["row"])
    vectors = drawn[0, :, :12].reshape(-1, 3, 4)
    distance = pairs_of_other_weights(vectors, lambda a, b: np.linalg.norm(a - b, axis=-1))
    by_hand = np.linalg.norm(vectors, axis=-1).mean(0) - distance / 2
    np.testing.assert_allclose(score["energy"], by_hand)


def masks_of_weights() -> xr.DataArray:
    values = random_masks(np.random.default_rng(7), (3, 12, 4, 4), 2)
    return sampled(values)


def test_distances_of_samples_are_of_other_weights() -> None:
    masks = shared(masks_of_weights(), 4)
    found = segmentation.diversity(masks, classes=[1])["unbiased"].values
    flat = masks.values[0].reshape(12, 3, -1) == 1
    both = (flat[:, None] & flat).sum(-1)
    union = (flat[:, None] | flat).sum(-1)
    distance = 1 - np.where(union > 0, both / np.maximum(union, 1), 1.0)
    own = np.arange(12) // 4
    np.testing.assert_allclose(found, distance[own[:, None] != own].mean(0))
    one = segmentation.diversity(masks.isel(draw=slice(4)), classes=[1])["unbiased"]
    plain = segmentation.diversity(bare(masks).isel(draw=slice(4)), classes=[1])["unbiased"]
    xr.testing.assert_equal(one, plain)


def probs_of_weights(cases: int = 3, pixels: tuple[int, ...] = (2, 2)) -> xr.DataArray:
    """Probabilities (chain, draw, case, class, row, col) whose odds follow the nested law."""
    odds = nested(np.random.default_rng(8), (cases, *pixels))
    one = 1 / (1 + np.exp(-odds.values))
    dims = (*SAMPLES, "case", "class", *(("row", "col")[: len(pixels)]))
    coords = {"case": [f"c{i}" for i in range(cases)], "class": ["a", "b"]}
    return shared(xr.DataArray(np.stack([1 - one, one], 3), coords, dims, name="probs"))


def test_maps_of_the_variance() -> None:
    probs = probs_of_weights()
    found = segmentation.maps(probs)["variance"]
    by_hand = pairs_of_other_weights(probs.values[0], lambda a, b: (a - b) ** 2 / 2).sum(1)
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)
    split = uncertain.variance(probs)
    np.testing.assert_allclose(split["epistemic"].sum("class"), by_hand)
    shuffled = probs.isel(draw=np.random.default_rng(0).permutation(W * S))
    xr.testing.assert_allclose(segmentation.maps(shuffled)["variance"], found)
    xr.testing.assert_allclose(uncertain.variance(shuffled), split)


# --- ranks


def test_ranks_take_one_sample_of_each_draw_of_the_weights() -> None:
    """Intervals of the 7/9 level hold a further draw of further weights that often; 4000 cases."""
    rng, number = np.random.default_rng(9), 4000
    drawn = nested(rng, (number,), between=9.0).values
    truth = 3 * rng.normal(size=number) + rng.normal(size=number)
    tree = number_tree(truth, drawn)
    level = attained(0.95, W)
    found = scoring.interval_score(with_weights(tree, S), levels=[0.95])
    assert float(found["attained"].item()) == level == 7 / 9
    hits = float(found["coverage"].item())
    assert abs(hits - level) < Z * (level * (1 - level) / number) ** 0.5
    ends = scoring.quantile_score(with_weights(tree, S), levels=[0.05, 0.95])
    np.testing.assert_allclose(ends["attained"], [1 / 9, 8 / 9])
    assert (abs(ends["below"] - ends["attained"]) < Z * (8 / 81 / number) ** 0.5).all()
    assert_uniform(calibration.pit(with_weights(tree, S))["pit"].values)
    with pytest.raises(AssertionError):
        assert_uniform(calibration.pit(tree)["pit"].values)


def test_sizes_have_the_interval_of_independent_masks() -> None:
    masks = masks_of_weights()
    found = segmentation.sizes(shared(masks, 4), classes=[1], level=0.9)
    few = segmentation.sizes(masks.isel(draw=slice(0, None, 4)), classes=[1], level=0.9)
    for name in ("median", "lower", "upper"):
        xr.testing.assert_equal(found[name], few[name])
    assert found.attrs["attained_level"] == few.attrs["attained_level"] == 0.5
    np.testing.assert_allclose(found["mean"], segmentation.sizes(masks, classes=[1])["mean"])
    assert found["weights"].values.tolist() == [0] * 4 + [1] * 4 + [2] * 4


# --- how many functions there are


def test_convergence_is_that_of_the_weights() -> None:
    probs = probs_of_weights(pixels=())
    means = probs.copy(data=probs.values).values.reshape(1, W, S, *probs.shape[2:]).mean(2)
    plain = xr.DataArray(means, dims=probs.dims, name="probs").assign_coords(case=probs["case"])
    for analysis in (convergence.r_hat, convergence.effective_draws):
        found, expected = analysis(probs), analysis(plain)
        assert found.attrs["num_draws"] == W
        for name, one in expected.data_vars.items():
            np.testing.assert_allclose(found[name], one, atol=1e-9)


def test_copies_of_samples_are_dropped_and_the_rest_keeps_its_weights() -> None:
    values = nested(np.random.default_rng(0), (3,)).rename(axis_0="case").isel(draw=slice(6))
    own = values.assign_coords({WEIGHTS: ("draw", [0, 0, 0, 1, 1, 1])})
    twice = own.isel(draw=np.repeat(np.arange(6), 2))
    xr.testing.assert_identical(drop_copies(twice), own)
    alike = own.isel(draw=[0, 0, 0, 3, 3, 3])
    assert drop_copies(alike)[WEIGHTS].values.tolist() == [0, 1]
    assert num_functions(drop_copies(alike)) == 2
    plain = bare(own)
    chains = [plain.isel(draw=[0, 0, 2, 2, 3, 3]), plain.isel(draw=[0, 2, 3, 0, 2, 3]) + 1]
    mixed = xr.concat(chains, "chain")
    kept = drop_copies(mixed.assign_coords({WEIGHTS: own[WEIGHTS].variable}))
    assert kept.sizes["draw"] == 3
    # Draws 0, 2, 4 of one chain have the weights 0, 0, 1; 0, 1, 2 of the other 0, 0, 0.
    assert kept[WEIGHTS].values.tolist() == [0, 0, 0]


def test_samples_that_stand_for_themselves() -> None:
    masks = shared(masks_of_weights(), 4)
    draws = open_draws(masks)
    assert draws.apart.tolist() == [0, 4, 8]
    assert one_of_each(masks).sizes["draw"] == 3
    probs = probs_of_weights(pixels=())
    for score in (acquisition.bald, acquisition.mean_sd, acquisition.max_entropy):
        assert score(probs).attrs["num_functions"] == W
    few = one_of_each(probs)
    xr.testing.assert_allclose(acquisition.epig(probs, probs), acquisition.epig(few, few))
