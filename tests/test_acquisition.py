"""Acquisition of labels: scores by closed forms and identities, and what a purchase promises."""

from typing import Any, cast

import numpy as np
import pytest
import xarray as xr
from analysis_table import feature_tree, pixel_tree
from posterior_trees import array, classification_tree, random_probs
from scipy import stats

from ppl_med.analysis import acquisition, aggregation, uncertainty

OF_CLASSES = tuple(name for name in acquisition.METHODS if "maps" not in acquisition.needs(name))


def of_draws(values: Any) -> xr.DataArray:
    """Probabilities (draw, case, class) as those of a tree."""
    values = np.asarray(values, float)[None]
    cases = [f"c{place:03d}" for place in range(values.shape[2])]
    return xr.DataArray(values, {"case": cases}, ("chain", "draw", "case", "class"), "probs")


def buy(tree: Any, by: str, size: int = 4, **options: Any) -> xr.Dataset:
    """A purchase by a rule, with what it needs."""
    needs = acquisition.needs(by)
    if "targets" in needs:
        options.setdefault("targets", random_probs(cases=9, seed=5))
    if "feature" in needs:
        tree = feature_tree(30)
    return acquisition.acquire(tree, by, size, **options)


def test_dogs_and_cats() -> None:
    """Three cases of Gal's talk: sure, sure that it is a coin, and draws that contradict."""
    sure, coin = [[1.0, 0.0]] * 4, [[0.5, 0.5]] * 4
    torn = [[1.0, 0.0], [0.0, 1.0]] * 2
    probs = of_draws(np.stack([sure, coin, torn], 1))
    high = np.log(2)
    for score, expected in (
        (acquisition.max_entropy, [0, high, high]),
        (acquisition.bald, [0, 0, high]),
        (acquisition.variation_ratio, [0, 0.5, 0.5]),
        (acquisition.mean_sd, [0, 0, np.sqrt(0.5)]),  # of two functions, each drawn twice
        (acquisition.margin, [0, 1, 1]),
        (acquisition.least_confidence, [0, 0.5, 0.5]),
    ):
        name = score.__name__
        np.testing.assert_allclose(score(probs)[name], expected, atol=1e-14, err_msg=name)


def test_bald_is_entropy_less_its_expectation() -> None:
    probs = random_probs(draws=15, classes=5)
    split = uncertainty.entropy(probs)
    expected = stats.entropy(probs.mean(("chain", "draw")).values, axis=1)
    expected -= stats.entropy(probs.values, axis=3).mean((0, 1))
    found = acquisition.bald(probs)["bald"]
    np.testing.assert_allclose(found, expected, atol=1e-13)
    gap = split["predictive_entropy"] - split["expected_entropy"] - found
    assert float(np.abs(gap).max()) < 1e-13


def test_simple_scores_are_what_numpy_says() -> None:
    probs = random_probs(classes=4)
    flat = probs.values.reshape(-1, *probs.shape[2:])
    ranked = np.sort(flat.mean(0), axis=1)
    found = acquisition.mean_sd(probs)["mean_sd"]
    np.testing.assert_allclose(found, flat.std(0, ddof=1).mean(1), atol=1e-14)
    found = acquisition.margin(probs)["margin"]
    np.testing.assert_allclose(found, 1 - ranked[:, -1] + ranked[:, -2], atol=1e-14)
    found = acquisition.least_confidence(probs)["least_confidence"]
    np.testing.assert_allclose(found, 1 - ranked[:, -1], atol=1e-14)
    votes = flat.argmax(2)
    expected = [1 - np.bincount(case).max() / len(flat) for case in votes.T]
    found = acquisition.variation_ratio(probs)["variation_ratio"]
    np.testing.assert_allclose(found, expected, atol=1e-14)


@pytest.mark.parametrize("name", ["mean_sd", "margin", "least_confidence"])
def test_the_standard_error_is_that_between_sets_of_draws(name: str) -> None:
    """sd over 400 cases alike, of 50 draws each: its own error is 4 %; false alarm below 1e-6."""
    probs = np.random.default_rng(0).dirichlet([4.0, 2.0, 1.5], (50, 400))
    found = getattr(acquisition, name)(of_draws(probs))
    error = np.sqrt((found[f"{name}_mcse"] ** 2).mean())
    assert 0.8 < float(error / found[name].std(ddof=1)) < 1.25


def test_epig_is_the_information_about_targets_by_brute_force() -> None:
    pool, targets = random_probs(draws=5, cases=4), random_probs(draws=5, cases=3, seed=1)
    flat = [each.values.reshape(-1, *each.shape[2:]) for each in (pool, targets)]
    expected = np.zeros(4)
    for case in range(4):
        for target in range(3):
            joint = np.einsum("sk,sl->kl", flat[0][:, case], flat[1][:, target]) / len(flat[0])
            apart = np.outer(joint.sum(1), joint.sum(0))
            expected[case] += stats.entropy(joint.ravel(), apart.ravel()) / 3
    found = acquisition.epig(pool, targets)
    np.testing.assert_allclose(found["epig"], expected, atol=1e-13)
    assert bool((found["epig"] <= acquisition.bald(pool)["bald"] + 1e-12).all())
    assert found.attrs["num_functions"] == 10


def test_epig_is_nothing_where_draws_agree_at_every_target() -> None:
    pool = random_probs(draws=5)
    agreed = pool.isel(chain=[0, 0], draw=[0] * 5).assign_coords(pool.coords)
    assert float(acquisition.epig(pool, agreed)["epig"].max()) < 1e-14
    certain = acquisition.epig(pool, pool)["epig"]
    assert float(certain.min()) > 1e-4


def test_the_error_of_epig_is_that_between_sets_of_draws() -> None:
    """sd over 150 sets of 60 draws: its own error is 6 %; false alarm below 1e-3."""
    rng = np.random.default_rng(1)
    pool, other = rng.dirichlet([2.0, 1.0], (150, 60, 1)), rng.dirichlet([1.0, 1.0], (150, 60, 2))
    target = 0.7 * pool + 0.3 * other  # follows the case: the information is not at its bound, 0
    found = [acquisition.epig(of_draws(a), of_draws(b)) for a, b in zip(pool, target, strict=True)]
    spread = np.std([float(one["epig"][0]) for one in found], ddof=1)
    error = np.sqrt(np.mean([float(one["epig_mcse"][0]) ** 2 for one in found]))
    assert 0.8 < error / spread < 1.25


def test_epig_refuses_other_functions() -> None:
    pool, targets = classification_tree(), classification_tree(cases=9, seed=3)
    pool.attrs["parameters_sha256"], targets.attrs["parameters_sha256"] = "one", "another"
    with pytest.raises(ValueError, match="other functions"):
        acquisition.epig(pool, targets)
    with pytest.raises(ValueError, match="other values along draw"):
        acquisition.epig(array(pool, "posterior/probs"), random_probs(draws=7))
    with pytest.raises(ValueError, match="other classes"):
        acquisition.epig(array(pool, "posterior/probs"), random_probs(classes=4))
    with pytest.raises(ValueError, match="targets must be a tree"):
        acquisition.acquire(pool, "epig", 3)


@pytest.mark.parametrize("name", OF_CLASSES)
def test_a_purchase_holds_different_cases_and_repeats(name: str) -> None:
    tree = classification_tree(cases=30)
    found, again = (buy(tree, name, seed=3) for _ in range(2))
    xr.testing.assert_identical(found, again)
    assert len(set(found["case"].values)) == 4
    assert found.attrs["by"] == name and found.attrs["num_candidates"] == 30


@pytest.mark.parametrize("name", OF_CLASSES)
def test_labelled_cases_are_not_bought(name: str) -> None:
    tree = feature_tree(12)
    targets: dict[str, Any] = {"targets": tree} if name == "epig" else {}
    kept = [str(case) for case in tree["posterior"].to_dataset()["case"].values[::2]]
    found = acquisition.acquire(tree, name, 6, labelled=kept, **targets)
    assert not set(found["case"].values) & set(kept)
    with pytest.raises(ValueError, match="size must be"):
        acquisition.acquire(tree, name, 7, labelled=kept, **targets)
    with pytest.raises(ValueError, match="no case of the tree"):
        acquisition.acquire(tree, name, 6, labelled=["nobody"], **targets)


@pytest.mark.parametrize("name", acquisition.METHODS)
def test_a_point_estimate_has_no_disagreement(name: str) -> None:
    tree = feature_tree(12)
    if "maps" in acquisition.needs(name):
        tree = pixel_tree(12)
    tree["posterior"] = xr.DataTree(tree["posterior"].to_dataset().isel(chain=[0], draw=[0] * 3))
    options: dict[str, Any] = {"targets": tree} if name == "epig" else {}
    if "functions" in acquisition.needs(name):
        with pytest.raises(ValueError, match="one function"):
            acquisition.acquire(tree, name, 4, **options)
    else:
        assert acquisition.acquire(tree, name, 4, **options).sizes["case"] == 4


def test_the_score_orders_and_ties_depend_on_the_seed() -> None:
    tree = classification_tree(cases=40)
    found = acquisition.acquire(tree, "bald", 40)
    score = acquisition.bald(tree)["bald"]
    np.testing.assert_array_equal(found["case"], score["case"][np.argsort(-score.values)])
    np.testing.assert_allclose(found["score"], score.sel(case=found["case"]))
    same = of_draws(np.tile(random_probs(cases=1).values.reshape(-1, 1, 3), (1, 40, 1)))
    firsts = {str(acquisition.acquire(same, "bald", 1, seed=s)["case"].item()) for s in range(20)}
    assert len(firsts) > 8  # of 40 equal cases; fewer has a probability below 1e-6


def test_a_rule_of_ones_own_is_a_function_of_the_tree() -> None:
    tree = classification_tree()
    score = acquisition.bald(tree)["bald"]

    def odd_one(given: xr.DataTree) -> xr.DataArray:
        return score.where(score["case"] != "patient-3")

    found = acquisition.acquire(tree, odd_one, 30)
    assert found.attrs["by"] == "odd_one"
    assert found["case"].values[-1] == "patient-3" and np.isnan(found["score"].values[-1])
    assert acquisition.needs(odd_one) == frozenset()
    np.testing.assert_array_equal(
        acquisition.acquire(tree, acquisition.bald, 5)["case"],
        acquisition.acquire(tree, "bald", 5)["case"],
    )
    with pytest.raises(ValueError, match="DataArray over case"):
        acquisition.acquire(tree, cast(Any, lambda given: 3.0), 2)
    with pytest.raises(ValueError, match="same cases"):
        acquisition.acquire(tree, lambda given: score[::-1], 2)


def test_maps_are_reduced_by_a_named_rule() -> None:
    tree = pixel_tree()
    maps = uncertainty.entropy(tree, mcse=False)["mutual_information"]
    expected = aggregation.aggregate(maps, "quantile", level=0.8)
    options: dict[str, Any] = {"aggregation": "quantile", "settings": {"level": 0.8}}
    found = acquisition.bald(tree, **options)
    np.testing.assert_allclose(found["bald"], expected)
    assert found["bald"].attrs["aggregation"] == "quantile, level 0.8"
    bought = acquisition.acquire(tree, "bald", 3, **options)
    order = np.argsort(-expected.values)[:3]
    np.testing.assert_array_equal(bought["case"], expected["case"][order])
    with pytest.raises(ValueError, match="aggregation must be one of"):
        acquisition.acquire(tree, "bald", 3)
    with pytest.raises(ValueError, match="power_bald"):
        acquisition.acquire(tree, "batch_bald", 3)
    with pytest.raises(ValueError, match="aggregation must be None"):
        acquisition.bald(classification_tree(), "mean")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "bold"}, "did you mean 'bald'"),
        ({"size": 0}, "size must be"),
        ({"size": 31}, "no more cases"),
        ({"seed": -1}, "seed must be"),
        ({"betta": 1.0}, "did you mean 'beta'"),
        ({"noise": "powr"}, "noise must be"),
        ({"noise": "power", "beta": -1.0}, "beta must be"),
        ({"by": "batch_bald", "configurations": 3}, "configurations must be"),
        ({"by": "core_set"}, "feature"),
        ({"by": "random", "targets": True}, "targets must be None"),
    ],
)
def test_a_wrong_argument_is_named(options: dict[str, Any], message: str) -> None:
    tree = classification_tree()
    if options.get("targets") is True:
        options["targets"] = tree
    with pytest.raises(ValueError, match=message):
        acquisition.acquire(tree, **{"by": "bald", "size": 3, **options})
