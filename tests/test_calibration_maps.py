"""Maps of probabilities: exact planted ones, scikit-learn and scipy as oracles, no best map."""

import numpy as np
import pytest
import xarray as xr
from labelled_trees import (
    calibrated_labels,
    exact_frequencies,
    halves,
    label_of,
    labelled_tree,
    probs_of,
    tempered,
)
from posterior_trees import random_probs
from scipy import optimize, stats
from scipy.special import expit, log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from ppl_med.analysis import calibration

Z = stats.norm.isf(1e-6 / 2)


class Table(ClassifierMixin, BaseEstimator):
    """Looks its prediction up: the feature is the row of the table."""

    def __init__(self, table: np.ndarray, logits: bool = False) -> None:
        self.table, self.logits = table, logits

    def fit(self, rows: np.ndarray, label: np.ndarray) -> "Table":
        self.classes_ = np.arange(self.table.shape[1])
        self.fitted_ = True
        return self

    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.table[rows[:, 0].astype(int)].argmax(1)

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        return self.table[rows[:, 0].astype(int)]


def sklearn_map(method: str, first: xr.DataTree, second: xr.DataTree) -> np.ndarray:
    table = np.concatenate([probs_of(first), probs_of(second)])
    rows = np.arange(len(table), dtype=float)[:, None]
    num_first = len(label_of(first))
    model = FrozenEstimator(Table(table).fit(rows, label_of(first)))
    oracle = CalibratedClassifierCV(model, method=method)
    oracle.fit(rows[:num_first], label_of(first))
    return oracle.predict_proba(rows[num_first:])


@pytest.mark.parametrize("temperature", [2.5, 1.0, 0.4])
def test_a_planted_temperature_is_recovered(temperature: float) -> None:
    """Labels come exactly as often as the untempered probabilities say: no sampling error."""
    probs, label = exact_frequencies()
    tree = labelled_tree(tempered(probs, temperature), label)
    found = calibration.fit(tree)
    assert float(found["temperature"]) == pytest.approx(temperature, rel=1e-10)
    mended = calibration.apply(found, labelled_tree(tempered(probs, temperature), label, "q"))
    np.testing.assert_allclose(probs_of(mended), probs, rtol=1e-9)
    for method in ("vector", "matrix"):
        found = calibration.fit(tree, method, penalty=0.0)
        np.testing.assert_allclose(
            probs_of(
                calibration.apply(found, labelled_tree(tempered(probs, temperature), label, "q"))
            ),
            probs,
            atol=1e-7,
        )
    np.testing.assert_allclose(
        calibration.fit(tree, "vector")["scale"], [1 / temperature] * 3, rtol=1e-6
    )


def test_temperature_keeps_its_first_order_condition() -> None:
    """At the minimum the mean logit of the observed class is the expected one."""
    first, _ = halves()
    log_probs = np.log(probs_of(first))
    temperature = float(calibration.fit(first)["temperature"])
    probs = np.exp(log_softmax(log_probs / temperature, axis=1))
    chosen = log_probs[np.arange(len(log_probs)), label_of(first)]
    assert chosen.mean() == pytest.approx((probs * log_probs).sum(1).mean(), abs=1e-10)


def test_temperature_matches_sklearn_and_a_search() -> None:
    first, second = halves()
    found = calibration.fit(first)
    log_probs, label = np.log(probs_of(first)), label_of(first)

    def nll(log_temperature: float) -> float:
        table = log_softmax(log_probs / np.exp(log_temperature), axis=1)
        return -table[np.arange(len(label)), label].mean()

    search = optimize.minimize_scalar(nll, bracket=(-1, 1), tol=1e-12)
    assert float(found["temperature"]) == pytest.approx(np.exp(search.x), rel=1e-6)
    assert float(found["nll_after"]) == pytest.approx(search.fun, rel=1e-12)
    assert float(found["nll_before"]) == pytest.approx(nll(0.0), rel=1e-12)
    expected = sklearn_map("temperature", first, second)
    np.testing.assert_allclose(probs_of(calibration.apply(found, second)), expected, atol=1e-4)


def test_the_error_of_a_temperature_is_its_spread() -> None:
    """300 data sets of 500 cases around a temperature of 2.5."""
    rng = np.random.default_rng(0)
    found = []
    for seed in range(300):
        probs = random_probs(chains=1, draws=1, cases=500, classes=4, seed=seed).values[0, 0]
        learnt = calibration.fit(labelled_tree(tempered(probs, 2.5), calibrated_labels(probs, rng)))
        found.append([float(learnt["temperature"]), float(learnt["temperature_se"])])
    value, error = np.array(found).T
    score = (1 / value - 1 / 2.5) * value**2 / error  # 1 / T is nearly unbiased
    assert abs(score.mean()) < Z / 300**0.5 + 0.05
    assert 0.85**2 < score.var() < 1.15**2 + Z * (2 / 300) ** 0.5


def test_platt_scaling_matches_sklearn() -> None:
    first, second = halves(classes=2)
    found = calibration.apply(calibration.fit(first, "vector"), second)
    inputs = [np.log(probs_of(tree)) for tree in (first, second)]
    oracle = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000)
    oracle.fit(inputs[0], label_of(first))
    np.testing.assert_allclose(probs_of(found), oracle.predict_proba(inputs[1]), atol=1e-5)


def test_unpenalised_matrix_scaling_matches_sklearn() -> None:
    first, second = halves()
    found = calibration.apply(calibration.fit(first, "matrix", penalty=0.0), second)
    inputs = [np.log(probs_of(tree)) for tree in (first, second)]
    oracle = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000)
    oracle.fit(inputs[0], label_of(first))
    np.testing.assert_allclose(probs_of(found), oracle.predict_proba(inputs[1]), atol=1e-5)


@pytest.mark.parametrize(
    ("method", "penalty"), [("vector", 0.0), ("vector", 0.1), ("matrix", 0.05)]
)
def test_scaling_is_the_minimum_that_scipy_finds(method: str, penalty: float) -> None:
    first, _ = halves()
    log_probs, label = np.log(probs_of(first)), label_of(first)

    def loss(flat: np.ndarray) -> float:
        if method == "vector":
            logits, small = flat[:3] * log_probs + flat[3:], flat[3:]
        else:
            weight = flat[:9].reshape(3, 3)
            logits = log_probs @ weight.T + flat[9:]
            small = np.concatenate([weight[~np.eye(3, dtype=bool)], flat[9:]])
        table = log_softmax(logits, axis=1)
        return -table[np.arange(len(label)), label].mean() + penalty * (small**2).sum()

    start = np.concatenate([np.ones(3) if method == "vector" else np.eye(3).ravel(), np.zeros(3)])
    search = optimize.minimize(loss, start, method="BFGS", options={"gtol": 1e-7})
    found = calibration.fit(first, method, penalty=penalty)
    names = ("scale", "intercept") if method == "vector" else ("weight", "intercept")
    flat = np.concatenate([found[name].values.ravel() for name in names])
    assert loss(flat) == pytest.approx(search.fun, abs=1e-9)
    if penalty:  # else a constant in all logits is free
        np.testing.assert_allclose(flat, search.x, atol=1e-3)


def test_richer_maps_fit_better() -> None:
    first, _ = halves()
    temperature, vector = (calibration.fit(first, name) for name in ("temperature", "vector"))
    matrix = calibration.fit(first, "matrix", penalty=0.0)
    found = [float(one["nll_after"]) for one in (temperature, vector, matrix)]
    assert float(temperature["nll_before"]) > found[0] > found[1] > found[2]


@pytest.mark.parametrize("classes", [2, 3])
def test_isotonic_matches_sklearn(classes: int) -> None:
    first, second = halves(classes=classes)
    found = calibration.apply(calibration.fit(first, "isotonic"), second)
    np.testing.assert_allclose(probs_of(found), sklearn_map("isotonic", first, second), atol=1e-9)


def test_beta_matches_sklearn_where_slopes_are_positive() -> None:
    first, second = halves(classes=2)
    found = calibration.fit(first, "beta")
    inputs = [
        np.stack([np.log(p), -np.log(1 - p)], 1)
        for p in (probs_of(t)[:, 1] for t in (first, second))
    ]
    oracle = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000)
    oracle.fit(inputs[0], label_of(first))
    assert (oracle.coef_ > 0).all()
    np.testing.assert_allclose([found["a"][1], found["b"][1]], oracle.coef_[0], atol=1e-4)
    expected = oracle.predict_proba(inputs[1])
    # For two classes the maps of both sides mirror each other, and normalising does nothing.
    np.testing.assert_allclose(probs_of(calibration.apply(found, second)), expected, atol=1e-5)


def test_beta_never_falls() -> None:
    """Labels that are right least often in the middle would ask for a negative slope."""
    rng = np.random.default_rng(1)
    p = rng.uniform(0.02, 0.98, 500)
    label = (rng.random(500) < np.clip(p**0.2 - 0.3 * (p > 0.5), 0, 1)).astype(int)
    tree = labelled_tree(np.stack([1 - p, p], 1), label)
    found = calibration.fit(tree, "beta")
    assert bool((found["a"] >= 0).all()) and bool((found["b"] >= 0).all())
    assert float(found["b"].min()) == 0 or float(found["a"].min()) == 0
    assert float(found["nll_after"]) < float(found["nll_before"])
    slope, offset = float(found["a"][1]), float(found["c"][1])
    kept = np.log(p) if float(found["b"][1]) == 0 else -np.log1p(-p)
    slope = max(slope, float(found["b"][1]))
    oracle = LogisticRegression(C=np.inf, tol=1e-12).fit(kept[:, None], label)
    assert [slope, offset] == pytest.approx([oracle.coef_[0, 0], oracle.intercept_[0]], abs=1e-3)


@pytest.mark.parametrize("slopes", [(-0.5, 2.0), (2.0, -0.5), (-1.0, -1.0), (1.0, 0.5)])
def test_beta_has_the_least_nll_of_all_rising_maps(slopes: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.01, 0.99, 2000)
    logits = slopes[0] * np.log(p) - slopes[1] * np.log1p(-p) - 1.5
    label = (rng.random(p.size) < expit(logits)).astype(int)
    found = calibration.fit(labelled_tree(np.stack([1 - p, p], 1), label), "beta")

    def nll(point: np.ndarray) -> float:
        logit = point[0] * np.log(p) - point[1] * np.log1p(-p) + point[2]
        return float(np.logaddexp(0, logit).mean() - (label * logit).mean())

    oracle = optimize.minimize(
        nll, [0.5, 0.5, 0.0], bounds=[(0, None), (0, None), (None, None)], method="L-BFGS-B"
    )
    ours = nll(np.array([found[name].values[1] for name in ("a", "b", "c")]))
    assert ours == pytest.approx(oracle.fun, abs=1e-6)


def test_beta_reads_how_near_a_rounded_probability_is_to_one() -> None:
    """1 - 1e-9 is 1 in float32, but the other class still says how far it is from that."""
    first, _ = halves(classes=2)
    found = calibration.fit(first, "beta")
    rest = np.array([1e-9, 1e-12, 1e-3])
    whole = np.stack([rest, 1 - rest], 1)
    exact = calibration.apply(found, labelled_tree(whole, np.ones(3, int)))
    rounded = labelled_tree(whole.astype(np.float32), np.ones(3, int))
    assert probs_of(rounded)[0, 1] == 1
    np.testing.assert_allclose(
        probs_of(calibration.apply(found, rounded)), probs_of(exact), rtol=1e-4
    )
    lost = labelled_tree(np.array([[0.0, 1.0], [0.5, 0.5]]), np.ones(2, int))
    with pytest.raises(ValueError, match="probability exactly 0"):
        calibration.apply(found, lost)


def test_histogram_gives_the_share_of_each_bin() -> None:
    first, second = halves(classes=2)
    found = calibration.fit(first, "histogram", bins=5)
    p, label = probs_of(first)[:, 1], label_of(first)
    shares = label[p.argsort()].reshape(5, -1).mean(1)
    np.testing.assert_allclose(found["bin_value"].sel({"class": "class 1"}), shares)
    edges = np.sort(p).reshape(5, -1)[:-1, -1]
    np.testing.assert_allclose(found["edge"].sel({"class": "class 1"}), edges)
    mended = probs_of(calibration.apply(found, second))
    place = (probs_of(second)[:, 1][:, None] > edges).sum(1)
    rest = np.sort(1 - p).reshape(5, -1)[:-1, -1]
    other = (1 - label)[(1 - p).argsort()].reshape(5, -1).mean(1)
    opposite = other[(probs_of(second)[:, :1] > rest).sum(1)]
    np.testing.assert_allclose(mended[:, 1], shares[place] / (shares[place] + opposite))
    one = calibration.apply(calibration.fit(first, "histogram", bins=1), second)
    np.testing.assert_allclose(probs_of(one)[:, 1], label.mean())


def test_cases_without_information_are_counted() -> None:
    table = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]] * 4)
    found = calibration.fit(labelled_tree(table, np.array([0, 1, 2] * 4)), "isotonic")
    other = np.array([[0.34, 0.33, 0.33], [0.09, 0.09, 0.82], [0.1, 0.8, 0.1], [0.02, 0.9, 0.08]])
    mended = calibration.apply(found, labelled_tree(other, np.zeros(4, int), "q"))
    assert mended.attrs["undetermined"] == 0
    never = found.assign(value=found["value"] * 0)
    mended = calibration.apply(never, labelled_tree(other, np.zeros(4, int), "q"))
    assert mended.attrs["undetermined"] == 4
    np.testing.assert_allclose(probs_of(mended), 1 / 3)


def test_probabilities_of_zero() -> None:
    """Temperature leaves them 0; maps of logarithms refuse them; a zero that came is refused."""
    probs, label = exact_frequencies()
    probs = np.concatenate([tempered(probs, 2.0), [[0.5, 0.5, 0.0]] * 2])
    label = np.concatenate([label, [0, 1]])
    tree = labelled_tree(probs, label)
    assert float(calibration.fit(tree)["temperature"]) == pytest.approx(2.0, rel=1e-9)
    mended = calibration.apply(calibration.fit(tree), labelled_tree(probs, label, "q"))
    assert probs_of(mended)[-1].tolist() == [0.5, 0.5, 0.0]
    for method in ("vector", "matrix", "beta"):
        with pytest.raises(ValueError, match="probability exactly 0"):
            calibration.fit(tree, method)
        learnt = calibration.fit(labelled_tree(*_interior()), method)
        with pytest.raises(ValueError, match="probability exactly 0"):
            calibration.apply(learnt, labelled_tree(probs, label, "q"))
    impossible = labelled_tree(probs, np.append(label[:-1], 2))
    with pytest.raises(ValueError, match="exactly 0 of the observed"):
        calibration.fit(impossible)


def _interior() -> tuple[np.ndarray, np.ndarray]:
    probs, label = exact_frequencies()
    return tempered(probs, 2.0), label


def test_data_without_a_best_map_is_refused() -> None:
    probs, label = exact_frequencies()
    with pytest.raises(ValueError, match="predicted right"):
        calibration.fit(labelled_tree(probs, probs.argmax(1)))
    with pytest.raises(ValueError, match="no more probable than chance"):
        calibration.fit(labelled_tree(probs, probs.argmin(1)))
    two = label.copy()
    two[two == 2] = 0
    for method in ("vector", "beta"):
        with pytest.raises(ValueError, match="occurs among the calibration cases"):
            calibration.fit(labelled_tree(probs, two), method)
