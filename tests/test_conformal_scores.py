"""APS, RAPS and SAPS: the exact law of their coverage, their definition, and MAPIE."""

import numpy as np
import pytest
import xarray as xr
from conformal_trees import (
    REPEATS,
    Z,
    check_beta_law,
    check_count_law,
    probs_tree,
    split,
    vague_labels,
)
from posterior_trees import array, classification_tree

from ppl_med import storage
from ppl_med.analysis import conformal
from ppl_med.analysis.conformal import Score, nonconformity, order_statistics, thresholds

SCORES = [Score("lac"), Score("aps"), Score("raps", penalty=0.2), Score("saps", penalty=0.15)]
SIZES = [20, 50, *(pytest.param(size, marks=pytest.mark.slow) for size in (200, 1000))]
NUM_TEST = 30


def label_scores(rng: np.random.Generator, shape: tuple[int, ...], score: Score) -> np.ndarray:
    probs, label = vague_labels(rng, shape)
    scores = nonconformity.class_scores(probs, score, rng.random(shape))
    return np.take_along_axis(scores, label[..., None], -1)[..., 0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("score", SCORES, ids=[score.method for score in SCORES])
def test_coverage_follows_the_exact_law(score: Score, size: int) -> None:
    """A poor model; 4000 calibrations: KS against Beta, chi-square of counts, at 1e-3 each."""
    rng = np.random.default_rng(size)
    rank = order_statistics.coverage_rank(size, 0.1)
    limit = np.empty(REPEATS)
    covered = np.empty(REPEATS, int)
    for start in range(0, REPEATS, 500):
        scores = label_scores(rng, (500, size), score)
        test = label_scores(rng, (500, NUM_TEST), score)
        limit[start : start + 500] = order_statistics.kth_smallest(scores, rank)
        covered[start : start + 500] = (test <= limit[start : start + 500, None]).sum(1)
        learnt = thresholds.learn(xr.DataArray(scores[0], dims="case"), 0.1)
        assert float(learnt["threshold"]) == limit[start]
        assert (int(learnt["n"]), int(learnt["k"])) == (size, rank)
    fresh = np.sort(label_scores(rng, (1_000_000,), score))
    check_beta_law(np.searchsorted(fresh, limit, side="right") / fresh.size, rank, size)
    check_count_law(covered, NUM_TEST, rank, size)


@pytest.mark.parametrize("draws", ["mixture", "mean_score"])
@pytest.mark.parametrize("randomised", [True, False])
@pytest.mark.parametrize("method", ["lac", "aps", "raps", "saps"])
def test_sets_follow_the_definition(method: str, randomised: bool, draws: str) -> None:
    """Every score rewritten as a loop over cases, draws and ranks."""
    score = Score(method, randomised=randomised, penalty=0.07, free_ranks=2, draws=draws)
    tree = classification_tree(cases=50, classes=5, chains=2, draws=3)
    first, second = split(tree, 25)
    learnt = conformal.calibrate(first, 0.2, method=score, seed=3)
    result = conformal.predict_sets(learnt, second)
    probs = array(tree, "posterior/probs").values.reshape(-1, 50, 5)
    uniform = (
        nonconformity.uniforms(array(tree, "posterior/probs")["case"].values, 3)
        if randomised
        else np.ones(50)
    )
    parts = probs.mean(0)[None] if draws == "mixture" else probs
    scores = np.mean(
        [[by_loop(p, u, score) for p, u in zip(d, uniform, strict=True)] for d in parts], 0
    )
    label = array(tree, "observed_data/label").values
    ordered = np.sort(scores[np.arange(25), label[:25]])
    assert float(learnt["threshold"]) == pytest.approx(ordered[21 - 1], abs=1e-12)
    np.testing.assert_array_equal(result["prediction_set"], scores[25:] <= ordered[20] + 1e-12)
    hit = (scores[25:] <= ordered[20] + 1e-12)[np.arange(25), label[25:]]
    np.testing.assert_array_equal(result["covered"], hit)


def by_loop(probs: np.ndarray, uniform: float, score: Score) -> list[float]:
    result = []
    for number in range(probs.size):
        above = probs[probs > probs[number]]
        rank = above.size + 1
        later = probs.max() + (rank - 2 + uniform) * 0.07
        value = {
            "lac": 1 - probs[number],
            "aps": above.sum() + uniform * probs[number],
            "raps": above.sum() + uniform * probs[number] + 0.07 * max(0, rank - 2),
            "saps": uniform * probs[number] if rank == 1 else later,
        }[score.method]
        result.append(value)
    return result


def test_the_uniform_number_depends_on_case_and_seed_only() -> None:
    tree = classification_tree(cases=60)
    first, second = split(tree, 30)
    learnt = conformal.calibrate(first, method="aps", seed=1)
    whole = conformal.predict_sets(learnt, second, shift_alarm=0)
    part = conformal.predict_sets(learnt, second.isel(case=[7, 3]), shift_alarm=0)
    np.testing.assert_array_equal(part["prediction_set"], whole["prediction_set"][[7, 3]])
    other = conformal.predict_sets(conformal.calibrate(first, method="aps", seed=2), second)
    assert not other["prediction_set"].equals(whole["prediction_set"])
    numbers = nonconformity.uniforms(np.arange(100_000), 0)
    check_beta_law(numbers[:4000], 1, 1)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < Z * (1 / 12 / numbers.size) ** 0.5


@pytest.mark.parametrize("method", ["aps", "raps", "saps"])
def test_calibrations_of_every_score_can_be_saved(method: str, tmp_path) -> None:
    first, second = split(classification_tree(cases=60), 30)
    learnt = conformal.calibrate(first, method=Score(method, draws="mean_score"), seed=5)
    storage.save(learnt, tmp_path / "a.nc")
    loaded = storage.load(tmp_path / "a.nc")
    assert isinstance(loaded, xr.Dataset)
    expected = conformal.predict_sets(learnt, second)
    xr.testing.assert_identical(conformal.predict_sets(loaded, second), expected)
    storage.save(expected, tmp_path / "b.nc")
    xr.testing.assert_identical(storage.load(tmp_path / "b.nc"), expected)


# ------------------------------------------------------------------------------------ MAPIE


def mapie_sets(
    table: np.ndarray, label: np.ndarray, num: int, alpha: float, include: str | bool, seed: int
) -> np.ndarray:
    """MAPIE's APS sets for the cases from ``num`` on, calibrated on those before."""
    pytest.importorskip("mapie", reason="oracle")
    from mapie.classification import SplitConformalClassifier
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Table(ClassifierMixin, BaseEstimator):
        """Looks its prediction up: the feature is the row of the table."""

        classes_ = np.arange(table.shape[1])
        fitted_ = True

        def fit(self, rows: np.ndarray, label: np.ndarray) -> "Table":
            return self

        def predict_proba(self, rows: np.ndarray) -> np.ndarray:
            return table[rows[:, 0].astype(int)]

        def predict(self, rows: np.ndarray) -> np.ndarray:
            return self.predict_proba(rows).argmax(1)

    rows = np.arange(len(table))[:, None]
    oracle = SplitConformalClassifier(
        Table(), confidence_level=1 - alpha, conformity_score="aps", prefit=True, random_state=seed
    ).conformalize(rows[:num], label[:num])
    _, sets = oracle.predict_set(
        rows[num:], conformity_score_params={"include_last_label": include}
    )
    return sets[:, :, 0]


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_randomised_aps_matches_mapie(alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set for set, with MAPIE's uniform numbers; it takes away u p where we add (1 - u) p."""
    rng = np.random.default_rng(0)
    probs, label = vague_labels(rng, (300,))
    expected = mapie_sets(probs, label, 120, alpha, "randomized", seed=4)
    monkeypatch.setattr(
        nonconformity, "uniforms",
        lambda ids, seed: 1 - np.random.RandomState(4).uniform(size=len(ids)),
    )  # fmt: skip
    learnt = conformal.calibrate(probs_tree(probs[:120], label[:120]), alpha, method="aps")
    result = conformal.predict_sets(learnt, probs_tree(probs[120:], label[120:], prefix="t"))
    np.testing.assert_array_equal(result["prediction_set"], expected)


@pytest.mark.filterwarnings("ignore:WARNING. your conformalization dataset has less labels")
def test_unrandomised_aps_covers_where_mapie_does_not() -> None:
    """MAPIE 1.6 scores with u and predicts without: too much or too little, as its flag says.

    Our scores are the same on both sides, so the coverage is k / (n + 1) up to ties at 1, of
    classes that come last: never below.
    """
    repeats, num, num_test = 100, 50, 50
    rng = np.random.default_rng(1)
    shares: dict[object, list[float]] = {True: [], False: [], "own": []}
    score = Score("aps", randomised=False)
    for repeat in range(repeats):
        probs, label = vague_labels(rng, (num + num_test,), 8)
        for flag in (True, False):
            sets = mapie_sets(probs, label, num, 0.1, flag, seed=repeat)
            shares[flag].append(sets[np.arange(num_test), label[num:]].mean())
        learnt = conformal.calibrate(probs_tree(probs[:num], label[:num]), 0.1, method=score)
        test = probs_tree(probs[num:], label[num:], prefix="t")
        shares["own"].append(float(conformal.predict_sets(learnt, test)["coverage"]))
    z = {
        key: (np.mean(value) - 46 / 51) / (np.std(value, ddof=1) / repeats**0.5)
        for key, value in shares.items()
    }
    assert z[True] > Z
    assert z[False] < -Z
    assert abs(z["own"]) < Z
