"""Scores against scikit-learn, torchmetrics, scipy, closed forms and replicated data."""

import numpy as np
import pytest
import sklearn.metrics
import xarray as xr
from posterior_trees import array, classification_tree, draw_labels, random_probs
from scipy import stats

from ppl_med.analysis import scoring
from ppl_med.analysis.statistics import binning

Z = stats.norm.isf(1e-6 / 2)


def tree_of(probs: object, label: object) -> xr.DataTree:
    """One chain, one draw."""
    values = np.asarray(probs, float)[None, None]
    stacked = xr.DataArray(values, dims=("chain", "draw", "case", "class"))
    observed = xr.DataArray(np.asarray(label), dims="case")
    return xr.DataTree.from_dict(
        {
            "/posterior": xr.Dataset({"probs": stacked}),
            "/observed_data": xr.Dataset({"label": observed}),
        }
    )


def test_mixture_scores_match_sklearn() -> None:
    tree = classification_tree(cases=200)
    result = scoring.score(tree)
    probs = array(tree, "posterior/probs").mean(("chain", "draw")).values
    label = array(tree, "observed_data/label").values
    vote = probs.argmax(1)
    names = [0, 1, 2]
    assert float(result["accuracy"]) == pytest.approx(sklearn.metrics.accuracy_score(label, vote))
    assert float(result["nll"]) == pytest.approx(sklearn.metrics.log_loss(label, probs))
    brier = sklearn.metrics.brier_score_loss(label, probs, labels=names, scale_by_half=False)
    assert float(result["brier"]) == pytest.approx(brier)
    recall = sklearn.metrics.recall_score(label, vote, average=None)
    np.testing.assert_allclose(result["accuracy_per_class"], recall)
    assert list(result["class"].values) == ["class 0", "class 1", "class 2"]


def test_every_draw_is_scored_like_a_mixture_of_one() -> None:
    tree = classification_tree(cases=40, draws=3)
    result = scoring.score(tree)
    label = array(tree, "observed_data/label").values
    for chain in range(2):
        for draw in range(3):
            one = scoring.score(tree_of(array(tree, "posterior/probs")[chain, draw], label))
            for name in ("accuracy", "nll", "brier", "ece", "accuracy_per_class"):
                part = result[f"{name}_per_draw"].isel(chain=chain, draw=draw)
                np.testing.assert_allclose(part, one[name], rtol=1e-12)
    for name in ("nll", "brier"):  # Jensen
        assert float(result[name]) <= float(result[f"{name}_per_draw"].mean())


@pytest.mark.parametrize("bins", [10, 15])
def test_calibration_error_matches_torchmetrics(bins: int) -> None:
    torch = pytest.importorskip("torch", reason="oracle")
    oracle = pytest.importorskip("torchmetrics.functional.classification", reason="oracle")
    tree = classification_tree(cases=300)
    probs = array(tree, "posterior/probs").mean(("chain", "draw")).values
    label = array(tree, "observed_data/label").values
    expected = oracle.multiclass_calibration_error(
        torch.tensor(probs), torch.tensor(label), num_classes=3, n_bins=bins, norm="l1"
    )
    result = scoring.score(tree, bins=bins)
    assert float(result["ece"]) == pytest.approx(float(expected), abs=1e-6)
    assert float(scoring.reliability(tree, bins)["ece"]) == pytest.approx(float(result["ece"]))


def test_a_confidence_of_one_belongs_to_the_last_bin() -> None:
    """Both cases share a bin: |1/2 - 0.975|; a bin of its own for 1.0 would give 0.525."""
    tree = tree_of([[0.95, 0.05], [1.0, 0.0]], [0, 1])
    with pytest.warns(RuntimeWarning, match="probability exactly 0"):
        result = scoring.score(tree, bins=10)
    assert float(result["ece"]) == pytest.approx(0.475, abs=1e-15)
    assert np.isposinf(float(result["nll"]))
    assert float(result["brier"]) == pytest.approx((2 * 0.05**2 + 2) / 2)


def test_bins_are_closed_on_the_right() -> None:
    confidence = np.array([0.0, 0.5, 0.5000001, 1.0])
    assert binning.equal_width(confidence, 2).tolist() == [0, 0, 1, 1]


def test_scores_do_not_depend_on_the_order_of_classes_or_cases() -> None:
    tree = classification_tree(cases=50)
    probs, label = (
        array(tree, "posterior/probs").mean(("chain", "draw")),
        array(tree, "observed_data/label"),
    )
    order = np.array([2, 0, 1])
    moved = scoring.score(tree_of(probs.values[::-1, order], np.argsort(order)[label.values[::-1]]))
    still = scoring.score(tree_of(probs.values, label.values))
    for name in ("accuracy", "nll", "brier", "ece", "ece_se"):
        assert float(moved[name]) == pytest.approx(float(still[name]), rel=1e-12)


def test_an_absent_class_is_nan_and_named() -> None:
    tree = tree_of([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]], [0, 1])
    result = scoring.score(tree)
    assert np.isnan(result["accuracy_per_class"].values).tolist() == [False, False, True]
    assert np.isnan(result["accuracy_per_class_per_draw"].values[0, 0, 2])
    assert result["accuracy_per_class"].attrs["absent"] == "2"
    assert scoring.score(classification_tree())["accuracy_per_class"].attrs["absent"] == ""


def test_standard_errors_are_the_spread_over_replicated_data() -> None:
    """250 data sets of 120 cases from one calibrated law; every data set is scored."""
    repeats, cases = 250, 120
    probs = random_probs(chains=1, draws=1, cases=repeats * cases, seed=3)
    label = draw_labels(probs, np.random.default_rng(4)).values.reshape(repeats, cases)
    values = probs.values.reshape(repeats, cases, 3)
    values = (values**2) / (values**2).sum(-1, keepdims=True)  # over-confident: gaps are not 0
    results = [scoring.score(tree_of(p, y), bins=3) for p, y in zip(values, label, strict=True)]
    for name in ("accuracy", "nll", "brier", "ece"):
        figure = np.array([float(result[name]) for result in results])
        square = np.array([float(result[f"{name}_se"]) ** 2 for result in results])
        spread = figure.var(ddof=1)
        noise = np.hypot(square.std(), spread * (stats.kurtosis(figure) + 2) ** 0.5) / repeats**0.5
        assert abs(square.mean() - spread) < Z * noise + 0.01 * spread, name


def test_standard_errors_of_means_are_those_of_scipy() -> None:
    tree = classification_tree(cases=9, classes=2)
    result = scoring.score(tree)
    probs = array(tree, "posterior/probs").mean(("chain", "draw")).values
    label = array(tree, "observed_data/label").values
    correct = probs.argmax(1) == label
    assert float(result["accuracy_se"]) == pytest.approx(stats.sem(correct))
    nll = -np.log(probs[np.arange(9), label])
    assert float(result["nll_se"]) == pytest.approx(stats.sem(nll))
    for index in range(2):
        expected = stats.sem(correct[label == index])
        assert float(result["accuracy_per_class_se"][index]) == pytest.approx(expected)


@pytest.mark.parametrize("size", [100, 1000])
@pytest.mark.parametrize("shift", [0.0, 0.02, 0.1])
def test_the_error_of_the_calibration_error_is_its_spread(size: int, shift: float) -> None:
    """Over data sets of cases from one law, whose accuracy is below the confidence by the shift.

    The z-test holds it to the spread within 12 %, what a gap of unknown size allows.
    """
    rng = np.random.default_rng(size)
    trials, bins = 1000, 10
    confidence = rng.uniform(0.5, 1, (trials, size))
    correct = rng.random((trials, size)) < confidence - shift
    index = binning.equal_width(confidence, bins)
    member = np.eye(bins)[index]
    gaps = member * (correct - confidence)[..., None]
    figure = np.abs(gaps.sum(1)).sum(1) / size
    given = np.array([binning.calibration_error_se(one, np.ones(size)) for one in gaps])
    spread, noise = figure.std(ddof=1), Z * (0.5 / trials) ** 0.5
    assert abs(np.log(given.mean() / spread)) < 0.12 + noise


def test_pixels_of_a_case_count_as_one() -> None:
    """Copies of a pixel change no standard error."""
    probs = random_probs(chains=1, draws=2, cases=25)
    label = draw_labels(probs.mean(("chain", "draw")), np.random.default_rng(0))
    small = xr.DataTree.from_dict(
        {"/posterior": probs.to_dataset(), "/observed_data": label.to_dataset(name="label")}
    )
    wide = {"row": 3, "col": 2}
    large = xr.DataTree.from_dict(
        {
            "/posterior": probs.expand_dims(wide).to_dataset(),
            "/observed_data": label.expand_dims(wide).to_dataset(name="mask"),
        }
    )
    one, many = scoring.score(small), scoring.score(large)
    for name in one.data_vars:
        np.testing.assert_allclose(many[name], one[name], rtol=1e-10, err_msg=str(name))
    with pytest.raises(ValueError, match="pixels of one case"):
        scoring.reliability(large)


def test_nll_reads_the_log_likelihood_where_present() -> None:
    tree = classification_tree()
    with_group = scoring.score(tree)
    without = scoring.score(tree.filter(lambda node: node.name != "log_likelihood"))
    for name in ("nll", "nll_se", "nll_per_draw"):
        np.testing.assert_allclose(with_group[name], without[name], rtol=1e-12)
    tree["log_likelihood"] = tree["log_likelihood"].dataset - 1.0
    assert float(scoring.score(tree)["nll"]) == pytest.approx(float(without["nll"]) + 1)


@pytest.mark.parametrize("named", [True, False])
def test_draws_that_agree_in_the_observed_class_alone_are_scored_one_by_one(named: bool) -> None:
    """They are copies in the log-likelihood, and none in the probabilities; and the other way."""
    tree = classification_tree(chains=1, draws=2, cases=1, classes=4)
    label = int(array(tree, "observed_data/label")[0])
    probs, logs = array(tree, "posterior/probs"), array(tree, "log_likelihood/label")
    others = [k for k in range(4) if k != label]
    probs.values[0, 1] = probs.values[0, 0]
    probs.values[0, 1, 0, others] = probs.values[0, 0, 0, others[::-1]]
    logs.values[:] = np.log(probs.values[..., label])
    bare = ["chain", "draw"]
    kept = (
        tree if named else tree.map_over_datasets(lambda one: one.drop_vars(bare, errors="ignore"))
    )
    result = scoring.score(kept)
    np.testing.assert_array_equal(result["nll_per_draw"], -logs.values[..., 0])
    assert result["brier_per_draw"].shape == (1, 2)
    probs.values[0, 1] = probs.values[0, 0]
    logs.values[0, 1] -= 0.1
    np.testing.assert_array_equal(scoring.score(kept)["nll_per_draw"], -logs.values[..., 0])


def test_a_log_likelihood_of_other_draws_is_refused() -> None:
    tree = classification_tree(draws=4)
    fewer = tree["log_likelihood"].to_dataset().isel(draw=slice(3))
    tree["log_likelihood"] = xr.DataTree(fewer)
    with pytest.raises(ValueError, match="log_likelihood and probs have other values along draw"):
        scoring.score(tree)


def test_elpd_is_the_log_of_the_mean_likelihood() -> None:
    tree = classification_tree(cases=50)
    result = scoring.elpd_heldout(tree)
    likelihood = xr.ufuncs.exp(array(tree, "log_likelihood/label"))
    direct = xr.ufuncs.log(likelihood.mean(("chain", "draw")))
    np.testing.assert_allclose(result["elpd"], direct, rtol=1e-12)
    assert float(result["elpd_sum"]) == pytest.approx(-50 * float(scoring.score(tree)["nll"]))
    assert float(result["elpd_sum_se"]) == pytest.approx(50**0.5 * direct.values.std(ddof=1))


def test_elpd_survives_underflow() -> None:
    tree = classification_tree()
    tree["log_likelihood"] = tree["log_likelihood"].dataset - 2000.0
    shifted, plain = scoring.elpd_heldout(tree), scoring.elpd_heldout(classification_tree())
    np.testing.assert_allclose(shifted["elpd"] + 2000, plain["elpd"], rtol=1e-9)
    np.testing.assert_allclose(shifted["elpd_sum_mcse"], plain["elpd_sum_mcse"], rtol=1e-9)


def test_elpd_error_is_the_spread_over_replicated_draws() -> None:
    rng = np.random.default_rng(8)
    sums, squares = [], []
    for _ in range(400):
        values = -0.5 * (0.3 * rng.normal(size=(1, 80, 1)) + np.linspace(-1, 1, 6)) ** 2
        likelihood = xr.DataArray(values, dims=("chain", "draw", "case"))
        tree = xr.DataTree.from_dict({"/log_likelihood": likelihood.to_dataset(name="label")})
        tree.attrs["log_likelihood_of"] = "held-out"
        result = scoring.elpd_heldout(tree)
        sums.append(float(result["elpd_sum"]))
        squares.append(float(result["elpd_sum_mcse"]) ** 2)
    spread = np.var(sums, ddof=1)
    noise = np.hypot(np.std(squares), spread * (stats.kurtosis(sums) + 2) ** 0.5) / 400**0.5
    assert abs(np.mean(squares) - spread) < Z * noise + 0.03 * spread


@pytest.mark.parametrize(
    ("kind", "message"), [("training", "arviz_stats.loo"), (None, "set it to 'held-out'")]
)
def test_elpd_of_training_cases_is_refused(kind: str | None, message: str) -> None:
    tree = classification_tree()
    tree.attrs = {} if kind is None else {"log_likelihood_of": kind}
    with pytest.raises(ValueError, match=message):
        scoring.elpd_heldout(tree)


def test_elpd_of_one_draw_has_no_mcse() -> None:
    tree = classification_tree(chains=1, draws=1)
    with pytest.raises(ValueError, match="at least two draws"):
        scoring.elpd_heldout(tree)
    assert "elpd_mcse" not in scoring.elpd_heldout(tree, mcse=False)


def test_elpd_of_one_of_two_sites() -> None:
    tree = classification_tree()
    both = tree["log_likelihood"].to_dataset().rename(label="age")
    tree["log_likelihood"] = xr.DataTree(both.assign(weight=2 * both["age"]))
    with pytest.raises(ValueError, match=r"holds \['age', 'weight'\]: name one"):
        scoring.elpd_heldout(tree)
    found, plain = scoring.elpd_heldout(tree, "age"), scoring.elpd_heldout(classification_tree())
    xr.testing.assert_equal(found, plain)


def test_reliability_matches_sklearn_and_scipy() -> None:
    tree = classification_tree(cases=400)
    result = scoring.reliability(tree, bins=10)
    probs = array(tree, "posterior/probs").mean(("chain", "draw")).values
    correct = probs.argmax(1) == array(tree, "observed_data/label").values
    curve = sklearn.calibration.calibration_curve(correct, probs.max(1), n_bins=10)
    filled = result.isel(bin=result["count"].values > 0)
    np.testing.assert_allclose(filled["accuracy"], curve[0])
    np.testing.assert_allclose(filled["confidence"], curve[1])
    assert int(result["count"].sum()) == 400
    for index in range(filled.sizes["bin"]):
        part = filled.isel(bin=index)
        count = int(part["count"])
        exact = stats.binomtest(round(float(part["accuracy"]) * count), count).proportion_ci()
        np.testing.assert_allclose([part["lower"], part["upper"]], [exact.low, exact.high])
    empty = result.isel(bin=result["count"].values == 0)
    assert empty.sizes["bin"] > 0
    assert np.isnan(empty["accuracy"].values).all()
    assert np.isnan(empty["upper"].values).all()


@pytest.mark.parametrize(
    ("label", "message"),
    [([0.0, 1.0], "integers"), ([0, 2], "outside 0..1"), ([0, -2], "outside 0..1")],
)
def test_malformed_labels_are_refused(label: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scoring.score(tree_of([[0.5, 0.5], [0.5, 0.5]], label))


def test_missing_or_misaligned_observations_are_refused() -> None:
    tree = classification_tree()
    with pytest.raises(TypeError):
        scoring.score(array(tree, "posterior/probs"))  # no labels travel with the array
    with pytest.raises(ValueError, match="no observed label or mask"):
        scoring.score(tree.filter(lambda node: node.name != "observed_data"))
    for group in ("observed_data", "log_likelihood"):
        other = tree.copy()
        other[group] = tree[group].dataset.isel(case=slice(None, None, -1))
        with pytest.raises(ValueError, match="same cases in the same order"):
            scoring.score(other)
    for bins in (0, True, 2.5):
        with pytest.raises((ValueError, TypeError)):
            scoring.score(tree, bins=bins)  # type: ignore[arg-type]
