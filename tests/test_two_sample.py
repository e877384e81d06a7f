"""Two-sample tests: valid under the null, also of patients; with power; equal to oracles."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.dummy import DummyClassifier
from sklearn.tree import DecisionTreeClassifier

from ppl_med.analysis.statistics import two_sample
from ppl_med.analysis.statistics.two_sample import Comparison
from ppl_med.analysis.statistics.unit_permutations import memberships

AnyTest = Callable[..., Comparison]

TESTS: dict[str, AnyTest] = {
    "kolmogorov_smirnov": partial(two_sample.kolmogorov_smirnov, permutations=199),
    "mmd": partial(two_sample.mmd, permutations=199),
    "classifier_test": partial(two_sample.classifier_test, permutations=199),
}
ALL = pytest.mark.parametrize("name", TESTS)


def patients(
    rng: np.random.Generator, number: int, prefix: str, move: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """One to five alike cases of each patient: features (case, 2), names (case,)."""
    sizes = rng.integers(1, 6, number)
    centre = np.repeat(rng.normal(move, 1, (number, 2)), sizes, axis=0)
    names = np.repeat([f"{prefix}{i}" for i in range(number)], sizes)
    return centre + 0.1 * rng.normal(size=centre.shape), names


def uniform_or_larger(pvalues: list[float]) -> bool:
    """Kolmogorov-Smirnov, one-sided; false alarm 1e-6."""
    return bool(stats.kstest(pvalues, "uniform", alternative="greater").pvalue > 1e-6)


@ALL
def test_p_values_of_cases_are_uniform_or_larger(name: str) -> None:
    """300 pairs of samples of three dependent features; false alarm 1e-6, and power beside it."""
    rng = np.random.default_rng(0)
    null, moved = [], []
    for seed in range(300):
        values = rng.normal(size=(70, 2))
        values = np.column_stack([values, values.sum(1)])
        null.append(TESTS[name](values[:30], values[30:], seed=seed).pvalue)
        if seed < 60:
            moved.append(TESTS[name](values[:30] + 1.2, values[30:], seed=seed).pvalue)
    assert uniform_or_larger(null)
    assert np.mean(np.array(null) < 0.05) > 0.005  # it is no test that never fires
    assert np.mean(np.array(moved) < 0.05) > 0.7


@ALL
def test_patients_are_permuted_and_not_their_cases(name: str) -> None:
    """200 pairs of 12 and 20 patients; false alarm 1e-6. Cases by themselves raise far more."""
    rng = np.random.default_rng(1)
    null, as_cases, moved = [], [], []
    for seed in range(200):
        (first, own), (second, other) = patients(rng, 12, "a"), patients(rng, 20, "b")
        null.append(TESTS[name](first, second, units=(own, other), seed=seed).pvalue)
        as_cases.append(TESTS[name](first, second, seed=seed).pvalue)
        if seed < 60:
            far, others = patients(rng, 20, "b", 2.0)
            moved.append(TESTS[name](first, far, units=(own, others), seed=seed).pvalue)
    assert uniform_or_larger(null)
    assert not uniform_or_larger(as_cases)
    assert np.mean(np.array(moved) < 0.05) > 0.7


def test_distances_and_p_values_are_those_of_scipy() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(40, 3)).round(1), rng.normal(0.3, 1, size=(60, 3)).round(1)
    single = [stats.ks_2samp(a, b, method="exact") for a, b in zip(first.T, second.T, strict=True)]
    found = two_sample.kolmogorov_smirnov(first, second)
    assert found.statistic == max(one.statistic for one in single)
    assert found.pvalue == min(1.0, 3 * min(one.pvalue for one in single))
    names = np.arange(40) // 2, 100 + np.arange(60) // 3
    by_patient = two_sample.kolmogorov_smirnov(first, second, units=names, permutations=9)
    assert by_patient.statistic == pytest.approx(found.statistic)
    alone = np.arange(40), 100 + np.arange(60)
    assert two_sample.kolmogorov_smirnov(first, second, units=alone) == found


@pytest.mark.parametrize("sizes", [(1, 600), (1, 5000), (3, 1000), (20, 1000)])
def test_few_cases_beside_many_are_compared_exactly(sizes: tuple[int, int]) -> None:
    """Beyond all others is one of them by chance, too: by the asymptotic distribution, never."""
    few, many = np.zeros((sizes[0], 1)), np.arange(1.0, 1 + sizes[1])[:, None]
    expected = 2 / math.comb(sum(sizes), sizes[0])
    for pair in ((few, many), (many, few)):
        assert two_sample.kolmogorov_smirnov(*pair).pvalue == pytest.approx(expected, 1e-9)


def test_one_case_raises_no_more_false_alarms_than_stated() -> None:
    """500 single cases of twenty features beside 600 others, at 1 %; binomial at 1e-6."""
    rng = np.random.default_rng(12)
    many = rng.random((600, 20))
    pairs = ((many, rng.random((1, 20))) for _ in range(500))
    alarms = sum(two_sample.kolmogorov_smirnov(*pair).pvalue < 0.01 for pair in pairs)
    assert stats.binomtest(alarms, 500, 0.01, alternative="greater").pvalue > 1e-6


@pytest.mark.parametrize("sizes", [(600, 550), (90, 3000), (3000, 90)])
@pytest.mark.parametrize("decimals", [1, 16])
def test_many_cases_are_compared_as_scipy_does(sizes: tuple[int, int], decimals: int) -> None:
    rng = np.random.default_rng(10)
    first = rng.normal(size=(sizes[0], 3)).round(decimals)
    second = rng.normal(0.1, 1.1, (sizes[1], 3)).round(decimals)
    pairs = zip(first.T, second.T, strict=True)
    single = [stats.ks_2samp(one, other, method="asymp") for one, other in pairs]
    found = two_sample.kolmogorov_smirnov(first, second)
    assert found.statistic == max(one.statistic for one in single)
    assert found.pvalue == pytest.approx(min(1.0, 3 * min(one.pvalue for one in single)), 1e-12)


def test_a_whole_weight_is_that_many_cases() -> None:
    rng = np.random.default_rng(11)
    first, second = rng.normal(size=(300, 2)).round(1), rng.normal(0.2, 1, (200, 2)).round(1)
    times = rng.integers(0, 4, 300)
    found = two_sample.kolmogorov_smirnov(first, second, weights=times.astype(np.float64))
    pairs = zip(first.repeat(times, 0).T, second.T, strict=True)
    largest = max(stats.ks_2samp(one, other).statistic for one, other in pairs)
    assert found.statistic == pytest.approx(largest, 1e-12)


def test_p_values_by_permutation_agree_with_the_exact_ones() -> None:
    """Units of one case beside one of two: nearly the exact p-value; 4 Monte Carlo errors."""
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(60, 1)), rng.normal(0.4, 1, size=(60, 1))
    second[-1] = second[-2]
    names = np.arange(60), 100 + np.minimum(np.arange(60), 58)
    found = two_sample.kolmogorov_smirnov(first, second, units=names)
    exact = stats.ks_2samp(first[:, 0], second[:, 0], method="exact").pvalue
    assert abs(found.pvalue - exact) < 4 * (exact / 2000) ** 0.5 + 0.005


def naive_discrepancy(
    first: np.ndarray, second: np.ndarray, own: np.ndarray, other: np.ndarray
) -> float:
    """Means of the kernel over pairs, written out."""
    values = np.concatenate([first, second])
    scale = np.median(cdist(values, values)[np.triu_indices(len(values), 1)])

    def mean(a: np.ndarray, b: np.ndarray, name: np.ndarray, names: np.ndarray) -> float:
        kernel = np.exp(-(cdist(a, b) ** 2) / (2 * scale**2))
        return float(kernel[name[:, None] != names].mean())

    return (
        mean(first, first, own, own)
        + mean(second, second, other, other)
        - 2 * mean(first, second, own, other)
    )


def test_the_discrepancy_is_the_naive_one() -> None:
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=(17, 3)), rng.normal(0.5, 1, (25, 3))
    cases = np.arange(17), 100 + np.arange(25)
    found = two_sample.mmd(first, second, permutations=1)
    assert found.statistic == pytest.approx(naive_discrepancy(first, second, *cases), rel=1e-10)
    names = np.arange(17) // 2, 100 + np.arange(25) // 4
    found = two_sample.mmd(first, second, units=names, permutations=1)
    assert found.statistic == pytest.approx(naive_discrepancy(first, second, *names), rel=1e-10)


def test_the_discrepancy_is_unbiased() -> None:
    """600 pairs of equal patients: mean 0 within 5 standard errors."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(600):
        (first, own), (second, other) = patients(rng, 8, "a"), patients(rng, 8, "b")
        found.append(two_sample.mmd(first, second, units=(own, other), permutations=1).statistic)
    # The scale of the kernel comes from the same cases, and patients weigh by their cases.
    assert abs(np.mean(found)) < 5 * np.std(found) / 600**0.5


def test_equal_cases_are_no_evidence() -> None:
    same = np.ones((10, 2))
    assert two_sample.mmd(same, same, permutations=99) == (0.0, 1.0)
    few = np.concatenate([same, np.zeros((2, 2))])
    assert two_sample.mmd(few, same, permutations=99).pvalue > 0.05
    assert two_sample.kolmogorov_smirnov(same, same).pvalue == 1


def test_the_classifier_is_judged_by_fishers_test() -> None:
    """A tree learns what no line tells; p is that of scipy's exact test of the held-out calls."""
    rng = np.random.default_rng(6)
    sign = rng.choice([-1, 1], (200, 1))
    ring = np.concatenate([sign, sign * rng.choice([-1, 1], (200, 1))], 1)
    first = ring[ring[:, 0] * ring[:, 1] > 0] + 0.1 * rng.normal(size=(1, 2))
    second = ring[ring[:, 0] * ring[:, 1] < 0]
    assert two_sample.classifier_test(first, second).pvalue > 1e-3
    found = two_sample.classifier_test(first, second, classifier=DecisionTreeClassifier())
    assert found.statistic == 1.0
    sizes = len(first) // 2, len(second) // 2
    expected = stats.fisher_exact([[sizes[0], 0], [0, sizes[1]]], alternative="greater").pvalue
    assert found.pvalue == pytest.approx(expected)
    constant = two_sample.classifier_test(first, second, classifier=DummyClassifier())
    assert constant == (0.5, 1.0)


def test_what_is_not_known_is_left_out() -> None:
    rng = np.random.default_rng(7)
    (first, own), (second, other) = patients(rng, 20, "a"), patients(rng, 20, "b")
    holes = second.copy()
    holes[other == "b3", 1] = np.nan
    assert 0 < two_sample.kolmogorov_smirnov(first, holes, units=(own, other)).pvalue <= 1
    holes[:, 1] = np.nan
    half = two_sample.kolmogorov_smirnov(first, holes, units=(own, other)).pvalue
    only = two_sample.kolmogorov_smirnov(first[:, :1], second[:, :1], units=(own, other)).pvalue
    assert half == pytest.approx(min(1.0, 2 * only))
    assert two_sample.kolmogorov_smirnov(first, second[:0]) == (0.0, 1.0)
    with pytest.raises(ValueError, match="first holds NaN"):
        two_sample.kolmogorov_smirnov(holes, first)
    for test in (two_sample.mmd, two_sample.classifier_test):
        with pytest.raises(ValueError, match="second holds NaN"):
            test(first, holes)


@pytest.mark.parametrize("by_patient", [False, True])
def test_the_weighted_test_keeps_its_rate_of_false_alarms(by_patient: bool) -> None:
    """1000 pairs of samples whose ratio is known, at 5 %; binomial at 1e-6."""
    rng = np.random.default_rng(8)
    alarms = 0
    units = (np.arange(150) // 3, 900 + np.arange(150) // 3) if by_patient else None
    for _ in range(1000):
        x, own = rng.random((150, 1)), rng.random((150, 1)) ** 0.5
        if units is not None:  # three equal cases of each patient
            x, own = (np.repeat(part[:50], 3, axis=0) for part in (x, own))
        found = two_sample.kolmogorov_smirnov(x, own, weights=2 * x[:, 0], units=units)
        alarms += found.pvalue < 0.05
    assert stats.binomtest(alarms, 1000, 0.05, alternative="greater").pvalue > 1e-6
    assert alarms > 5


def test_malformed_samples_are_refused() -> None:
    values = np.zeros((6, 2))
    names = np.arange(6)
    for test in TESTS.values():
        with pytest.raises(ValueError, match=r"second must be of 2 features"):
            test(values, values[:, :1])
        with pytest.raises(ValueError, match=r"first must be of shape \(case, feature\)"):
            test(values[0], values)
        with pytest.raises(ValueError, match="stand in both samples"):
            test(values, values, units=(names, names))
        with pytest.raises(ValueError, match="units must be of 6 and 6 cases"):
            test(values, values, units=(names, names[:-1]))
    with pytest.raises(ValueError, match="permutations must be"):
        two_sample.mmd(values, values, permutations=0)
    with pytest.raises(ValueError, match="first must be of two units"):
        two_sample.mmd(values, values, units=(names * 0, 9 + names))
    with pytest.raises(ValueError, match="second must be of four units"):
        two_sample.classifier_test(values, values, units=(names, 9 + names // 3))


def test_patients_change_places_with_their_like() -> None:
    """Of patients with cases of one kind, of the other and of both, as many stay as there were."""
    first = np.repeat(["a0", "a1", "a2", "a3", "a4"], 2), np.array(list("xxxxxyxyyy"))
    second = np.repeat(["b0", "b1", "b2", "b3"], 2), np.array(list("xxxyyyyy"))
    units, strata = (first[0], second[0]), (first[1], second[1])
    blocks = list(memberships(units, 400, 0, strata=strata))
    inside = np.concatenate(blocks)[:, ::2]  # by patient
    assert inside.shape == (401, 9)
    kinds = {"x": [0, 1, 5], "both": [2, 3, 6], "y": [4, 7, 8]}
    for own in kinds.values():
        assert (inside[:, own].sum(1) == inside[0, own].sum()).all()
        assert (inside[:, own].mean(0) > 0.2).all() and (inside[:, own].mean(0) < 0.8).all()
    free = np.concatenate(list(memberships(units, 400, 0)))[:, ::2]
    assert (free.sum(1) == 4).all() and free[:, kinds["y"]].sum(1).min() == 0
