"""Batches of labels: joint information against brute force and published figures; the others."""

from itertools import product

import numpy as np
import pytest
import xarray as xr
from analysis_table import feature_tree, pixel_tree
from posterior_trees import random_probs
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances

from ppl_med.analysis import acquisition, aggregation, uncertainty
from ppl_med.analysis.acquisition.chance import balanced_order, foreground_order
from ppl_med.analysis.acquisition.noisy_order import log_weights
from ppl_med.analysis.acquisition.spread import farthest_first, typical_cases
from ppl_med.analysis.acquisition.strata import stratified_order


def of_draws(values: np.ndarray, first: int = 0) -> xr.DataArray:
    """Probabilities (draw, case, class) as those of a tree."""
    cases = [f"c{place:03d}" for place in range(first, first + values.shape[1])]
    return xr.DataArray(values[None], {"case": cases}, ("chain", "draw", "case", "class"), "probs")


def joint_information(probs: np.ndarray) -> float:
    """I(labels of all cases; draw), by the table of all labels; probs (draw, case, class)."""
    draws, cases, classes = probs.shape
    table = np.zeros((draws, classes**cases))
    for place, labels in enumerate(product(range(classes), repeat=cases)):
        table[:, place] = np.prod([probs[:, c, label] for c, label in enumerate(labels)], axis=0)
    entropy = stats.entropy(table.mean(0))
    return float(entropy - stats.entropy(table, axis=1).mean())


def brute_force(probs: np.ndarray, size: int) -> tuple[list[int], list[float]]:
    """The greedy batch, every candidate by the whole table."""
    chosen: list[int] = []
    joint = []
    for _ in range(size):
        score = [
            -np.inf if case in chosen else joint_information(probs[:, [*chosen, case]])
            for case in range(probs.shape[1])
        ]
        chosen.append(int(np.argmax(score)))
        joint.append(max(score))
    return chosen, joint


def test_batch_bald_is_the_joint_information_by_brute_force() -> None:
    probs = random_probs(chains=1, draws=6, cases=9)
    chosen, joint = brute_force(probs.values[0], 4)
    found = acquisition.acquire(probs, "batch_bald", 4)
    np.testing.assert_array_equal(found["case"], probs["case"][chosen])
    np.testing.assert_allclose(found["joint"], joint, atol=1e-12)
    np.testing.assert_allclose(found["score"], np.diff(joint, prepend=0), atol=1e-12)
    assert found.attrs["num_exact"] == 4


def test_batch_bald_of_one_is_bald_and_of_more_at_most_the_sum() -> None:
    probs = random_probs(draws=12, cases=25)
    bald = acquisition.acquire(probs, "bald", 25)
    one = acquisition.acquire(probs, "batch_bald", 1)
    assert one["case"].item() == bald["case"][0].item()
    assert one["score"].item() == pytest.approx(bald["score"][0].item(), abs=1e-12)
    assert one["joint_mcse"].item() == pytest.approx(bald["score_mcse"][0].item(), rel=1e-9)
    batch = acquisition.acquire(probs, "batch_bald", 6)
    parts = acquisition.bald(probs)["bald"].sel(case=batch["case"])
    assert bool((batch["score"] <= parts + 1e-12).all())
    assert float(batch["joint"][-1]) < float(parts.sum()) - 0.05


def test_published_figures_of_batchbald_redux() -> None:
    """The example of its page on the algorithm: four cases of four classes, twenty draws.

    Kirsch, batchbald_redux (Apache-2.0), docs/batchbald.html: ``get_batchbald_batch(..., 4)``.
    """
    ends = [
        ([0.7, 0.1, 0.1, 0.1], [0.3, 0.3, 0.2, 0.2]),
        ([0.1, 0.7, 0.1, 0.1], [0.2, 0.3, 0.3, 0.2]),
        ([0.1, 0.1, 0.7, 0.1], [0.2, 0.2, 0.3, 0.3]),
        ([0.1, 0.1, 0.1, 0.7], [0.3, 0.2, 0.2, 0.3]),
    ]
    steps = np.linspace(0, 1, 20)[:, None, None]
    first, last = (np.array(each) for each in zip(*ends, strict=True))
    found = acquisition.acquire(of_draws((1 - steps) * first + steps * last), "batch_bald", 4)
    published = [
        0.030715639666234917,
        0.05961958627158248,
        0.0869107051474467,
        0.11275304532467878,
    ]
    np.testing.assert_allclose(found["joint"], published, atol=1e-12)


def test_copies_of_a_case_are_not_additive() -> None:
    """Top BALD buys the copies; BatchBALD counts once what they tell alike."""
    probs = random_probs(chains=1, draws=16, cases=12, classes=4, noise=2.0).values[0]
    score = acquisition.bald(of_draws(probs))["bald"].values
    best = int(np.argmax(score))
    pool = np.concatenate([np.repeat(probs[:, [best]], 3, axis=1), np.delete(probs, best, 1)], 1)
    top = acquisition.acquire(of_draws(pool), "bald", 3)
    assert set(top["case"].values) == {"c000", "c001", "c002"}
    batch = acquisition.acquire(of_draws(pool), "batch_bald", 3)
    assert len(set(batch["case"].values) & {"c000", "c001", "c002"}) == 1
    twice = acquisition.acquire(of_draws(pool[:, :2]), "batch_bald", 2)["joint"].values
    assert twice[1] == pytest.approx(joint_information(pool[:, :2]), abs=1e-12)
    assert twice[1] < 2 * score[best] - 0.05


def test_sampled_labels_give_what_all_labels_give() -> None:
    """4096 of 6561 configurations; the error of a mean of 4096 entropies is below 0.003 nats."""
    probs = random_probs(draws=8, cases=14, noise=2.0)
    exact = acquisition.acquire(probs, "batch_bald", 8, configurations=10**6)
    names = list(exact["case"].values)
    for seed in range(3):
        found = acquisition.acquire(
            probs.sel(case=names), "batch_bald", 8, seed=seed, configurations=4096
        )
        assert found.attrs["num_exact"] == 7
        few = acquisition.acquire(
            probs.sel(case=names), "batch_bald", 8, seed=seed, configurations=512
        )
        assert few.attrs["num_exact"] == 5
        last = float(exact["joint"][-1])
        assert abs(float(found["joint"][-1]) - last) < 0.02
        assert abs(float(few["joint"][-1]) - last) < 0.05
        ratio = found["joint_mcse"][-1] / exact["joint_mcse"][-1]
        assert 0.8 < float(ratio) < 1.25  # it holds the error of the sample, too


def test_impossible_labels_do_no_harm() -> None:
    one_hot = np.eye(3)[np.random.default_rng(0).integers(0, 3, (9, 7))]
    found = acquisition.acquire(of_draws(one_hot), "batch_bald", 5, configurations=20)
    assert np.isfinite(found["joint"]).all()
    exact = acquisition.acquire(of_draws(one_hot), "batch_bald", 5)
    # Labels of one-hot draws tell the draw: the information is the entropy of the groups of draws.
    groups = np.unique(
        one_hot[:, [int(c[1:]) for c in exact["case"].values]], axis=0, return_counts=True
    )
    assert float(exact["joint"][-1]) == pytest.approx(stats.entropy(groups[1]), abs=1e-12)


def test_power_draws_in_proportion_to_the_score() -> None:
    """First and second of 4000 purchases against sampling without replacement: false alarm 1e-6."""
    score = acquisition.bald(random_probs(cases=6))["bald"].values
    tree = random_probs(cases=6)
    names = list(tree["case"].values)
    runs = 1500
    counts = np.zeros((6, 6))
    for seed in range(runs):
        noise = np.random.default_rng(seed).gumbel(size=6)
        first, second = np.argsort(-(log_weights(score, "power", 1.0) + noise))[:2]
        counts[first, second] += 1
    share = score / score.sum()
    expected = share[:, None] * share / (1 - share[:, None])
    kept = ~np.eye(6, dtype=bool)
    test = stats.chisquare(counts[kept], runs * expected[kept] / expected[kept].sum())
    assert test.pvalue > 1e-6
    order = acquisition.acquire(tree, "power_bald", 6, beta=1e9)["case"].values
    np.testing.assert_array_equal(order, np.array(names)[np.argsort(-score)])
    same = acquisition.acquire(tree, "bald", 6, noise="power", seed=4)
    np.testing.assert_array_equal(same["case"], buy_order(tree, "power_bald", 4))


def buy_order(tree: xr.DataArray, by: str, seed: int) -> np.ndarray:
    """Ids of all cases in order of purchase."""
    found: np.ndarray = acquisition.acquire(tree, by, tree.sizes["case"], seed=seed)["case"].values
    return found


def test_weights_of_noisy_orders() -> None:
    score = np.array([0.5, 0.0, 2.0, -np.inf])
    power = log_weights(score, "power", 2.0)
    assert power[2] - power[0] == pytest.approx(2 * np.log(4))
    assert power[1] == power[3] and power[1] < power[0] - 1e3
    softmax = log_weights(score, "softmax", 3.0)
    np.testing.assert_allclose(np.diff(softmax[:3]), [-1.5, 6.0])
    rank = log_weights(score, "softrank", 1.0)
    np.testing.assert_allclose(rank[:3], -np.log([2, 3, 1]))
    with pytest.raises(ValueError, match="noise must be 'softmax' or 'softrank'"):
        log_weights(np.array([-1.0, 1.0]), "power", 1.0)


def test_core_set_is_farthest_first() -> None:
    rng = np.random.default_rng(0)
    feature, labelled = rng.normal(size=(40, 3)), rng.normal(size=(4, 3))
    chosen, distance = farthest_first(feature, labelled, rng.gumbel(size=40), 6)
    bought = labelled
    for place, far in zip(chosen, distance, strict=True):
        nearest = pairwise_distances(feature, bought).min(1)
        assert place == np.argmax(nearest) and far == pytest.approx(nearest.max())
        bought = np.concatenate([bought, feature[[place]]])
    cold, unknown = farthest_first(feature, labelled[:0], rng.gumbel(size=40), 40)
    assert sorted(cold) == list(range(40)) and np.isnan(unknown[0])


def test_typical_cases_are_those_of_uncovered_clusters() -> None:
    """Four clusters on a circle, one with a label: one purchase in each other, the densest case."""
    rng = np.random.default_rng(1)
    centres = np.eye(4) * 5
    sizes = [30, 25, 20, 15]
    kind = np.repeat(np.arange(4), sizes)
    feature = centres[kind] + rng.normal(0, 0.4, (90, 4))
    both = np.concatenate([feature[[3]], np.delete(feature, 3, 0)])
    chosen, density = typical_cases(both, 1, 3, 0)
    bought = np.delete(kind, 3)[chosen]
    np.testing.assert_array_equal(bought, [1, 2, 3])  # largest first
    unit = both / np.linalg.norm(both, axis=1, keepdims=True)
    cluster = KMeans(4, n_init=5, random_state=0).fit_predict(unit)
    for place, value in zip(chosen + 1, density, strict=True):
        members = unit[cluster == cluster[place]]
        far = np.sort(pairwise_distances(members), axis=1)
        number = min(20, len(members) - 1)
        expected = 1 / far[:, 1 : number + 1].mean(1)
        assert value == pytest.approx(expected.max())


def test_features_come_from_the_layer_that_was_kept() -> None:
    tree = feature_tree(20)
    found = acquisition.acquire(tree, "core_set", 3, labelled=["c1", "c2"])
    assert found.attrs["layer"] == "head"
    with pytest.raises(ValueError, match="layer must be 'head'"):
        acquisition.acquire(tree, "core_set", 3, layer="tail")


def test_balanced_random_evens_out_what_was_bought() -> None:
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1, 2], [60, 20, 4])
    order = balanced_order(classes, np.array([0, 3, 0]), rng.gumbel(size=84))
    assert sorted(order) == list(range(84))
    bought = np.bincount(classes[order[:9]], minlength=3) + np.array([0, 3, 0])
    np.testing.assert_array_equal(bought, [4, 4, 4])
    assert (
        len(
            {
                *map(
                    tuple,
                    [
                        balanced_order(classes, np.zeros(3), rng.gumbel(size=84))[:3]
                        for _ in range(9)
                    ],
                )
            }
        )
        > 4
    )


def test_foreground_is_bought_as_often_as_asked() -> None:
    """Share 1/3 + 2/3 of the 10 % that have it: 0.4; a binomial test, false alarm 1e-6."""
    rng = np.random.default_rng(0)
    flags = np.arange(200) < 20
    firsts = [
        int(flags[foreground_order(flags, rng.gumbel(size=200), rng.random(200), 1 / 3)[0]])
        for _ in range(800)
    ]
    assert stats.binomtest(sum(firsts), 800, 0.4).pvalue > 1e-6
    tree = pixel_tree()
    found = acquisition.acquire(tree, "foreground_random", 12, share=1.0)
    mask = aggregation.predicted_mask(tree)
    has = (mask > 0).any(("row", "col")).sel(case=found["case"]).values
    assert (np.diff(has.astype(int)) <= 0).all()
    given = xr.DataArray(np.arange(12) == 5, {"case": mask["case"].values}, ("case",))
    first = acquisition.acquire(tree, "foreground_random", 1, share=1.0, foreground=given)
    assert first["case"].item() == mask["case"].values[5]


def test_every_class_has_its_turn() -> None:
    """Strong scores leave no noise: the best of each class in turn, then the best of all."""
    of_class = np.array([[5.0, 4, 3, 2, 1], [-np.inf, 9, -np.inf, 8, -np.inf], [-np.inf] * 5])
    places, whose = stratified_order(
        of_class, np.array([1.0, 2, 3, 4, 5]), np.array([2, 1, 0]), 4, 5
    )
    np.testing.assert_array_equal(places, [1, 0, 3, 2, 4])
    np.testing.assert_array_equal(whose, [1, 0, 1, 0, -1])
    tree = pixel_tree()
    found = acquisition.acquire(tree, "stratified_entropy", 6, beta=1e6)
    assert list(found["stratum"].values[4:]) == [-1, -1] and found.attrs["share"] == 2 / 3
    maps = uncertainty.entropy(tree, mcse=False)["predictive_entropy"]
    mask, bought = aggregation.predicted_mask(tree), list[str]()
    for place in range(6):
        name = int(found["stratum"][place])
        inside = maps if name < 0 else maps.where(mask == name)
        score = inside.mean(("row", "col")).drop_sel(case=bought)
        assert found["case"][place].item() == score["case"][int(np.nanargmax(score))].item()
        assert float(found["score"][place]) == pytest.approx(float(score.max()))
        bought.append(found["case"][place].item())
    even = acquisition.acquire(tree, "stratified_entropy", 12, share=0.0, beta=1e6)
    overall = acquisition.acquire(tree, "max_entropy", 12, aggregation="mean")
    np.testing.assert_array_equal(even["case"], overall["case"])
