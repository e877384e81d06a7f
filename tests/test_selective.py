"""Selective prediction against brute force over all orders, scikit-learn and closed forms."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import xarray as xr
from number_trees import number_tree
from posterior_trees import array, classification_tree, draw_labels, random_probs
from sklearn.metrics import average_precision_score, roc_auc_score

from ppl_med.analysis import selective, uncertainty
from ppl_med.testing import assert_mean

Z = 4.89  # a z-test at a false-alarm rate of 1e-6
CURVES: tuple[Callable, ...] = (
    selective.risk_coverage,
    selective.sparsification,
    selective.precision_recall,
)


def given(values: np.ndarray) -> xr.DataArray:
    values = np.asarray(values, float)
    return xr.DataArray(values, dims=("case", "row", "col")[: values.ndim])


def case_data(number: int = 400, ties: int | None = None, seed: int = 0) -> tuple:
    """Scores and 0/1 errors of cases; the error is the likelier the larger the score."""
    rng = np.random.default_rng(seed)
    score = rng.uniform(size=number)
    error = (rng.uniform(size=number) < 0.6 * score).astype(float)
    return np.floor(score * ties) / ties if ties else score, error


def run(score: np.ndarray, error: np.ndarray, function: Callable = CURVES[0], **options):
    options = {"replicates": 0, **options}
    return function(None, given(score), given(error), **options)


def brute_risks(error: np.ndarray) -> np.ndarray:
    """Mean of the first k errors, k = 1..N."""
    return np.array([error[:k].mean() for k in range(1, len(error) + 1)])


def brute_generalised(error: np.ndarray) -> float:
    below = np.concatenate([[0], np.cumsum(error)]) / len(error)
    return float(np.trapezoid(below, np.linspace(0, 1, len(error) + 1)))


@pytest.mark.parametrize("continuous", [False, True])
def test_areas_and_curves_are_the_sums_over_sorted_entries(continuous: bool) -> None:
    score, error = case_data(150)
    if continuous:
        error = score * np.random.default_rng(1).gamma(2, size=150)
    found = run(score, error, coverage=np.arange(1, 151) / 150)
    risks, best = brute_risks(error[np.argsort(score)]), brute_risks(np.sort(error))
    np.testing.assert_allclose(found["risk"], risks)
    np.testing.assert_allclose(found["risk_oracle"], best, atol=1e-15)
    np.testing.assert_allclose(found["generalised_risk"], risks * found["coverage"])
    assert float(found["aurc"]) == pytest.approx(risks.mean())
    assert float(found["aurc_oracle"]) == pytest.approx(best.mean())
    assert float(found["excess_aurc"]) == pytest.approx(risks.mean() - best.mean())
    assert float(found["augrc"]) == pytest.approx(brute_generalised(error[np.argsort(score)]))
    assert float(found["error_mean"]) == pytest.approx(error.mean())
    curve = run(score, error, selective.sparsification, removed=np.arange(150) / 150)
    np.testing.assert_allclose(curve["sparsification"], risks[::-1])
    np.testing.assert_allclose(curve["oracle"], best[::-1], atol=1e-15)
    np.testing.assert_allclose(curve["random"], error.mean())
    gap = np.mean(curve["sparsification"] - curve["oracle"])
    assert float(curve["ause"]) == pytest.approx(float(gap))
    assert float(curve["ause_relative"]) == pytest.approx(float(gap) / error.mean())
    assert float(curve["random_gain"]) == pytest.approx(error.mean() - risks.mean())


def test_ties_give_the_mean_over_all_orders() -> None:
    """Seven entries in four levels, every order of the entries that keeps the levels in order."""
    score = np.array([1, 0, 1, 2, 1, 0, 2])
    error = np.array([0.3, 1, 0, 2, 5, 0.1, 0])
    orders = [
        order
        for order in map(list, itertools.permutations(range(7)))
        if (np.diff(score[order]) >= 0).all()
    ]
    assert len(orders) == 2 * 6 * 2
    risks = np.mean([brute_risks(error[order]) for order in orders], axis=0)
    found = run(score, error, coverage=np.arange(1, 8) / 7)
    np.testing.assert_allclose(found["risk"], risks)
    assert float(found["aurc"]) == pytest.approx(risks.mean())
    areas = [brute_generalised(error[order]) for order in orders]
    assert float(found["augrc"]) == pytest.approx(np.mean(areas))
    assert float(found["largest_tie"]) == pytest.approx(3 / 7)


def test_an_uncertainty_that_is_the_same_everywhere_is_chance() -> None:
    _, error = case_data()
    found = run(np.zeros(400), error)
    np.testing.assert_allclose(found["risk"], error.mean())
    assert float(found["aurc"]) == pytest.approx(error.mean())
    assert float(found["augrc"]) == pytest.approx(error.mean() / 2)
    assert float(found["largest_tie"]) == 1
    curve = run(np.zeros(400), error, selective.sparsification)
    assert float(curve["random_gain"]) == pytest.approx(0, abs=1e-12)


def test_the_oracle_has_no_excess_and_its_known_area() -> None:
    """AURC of the best order of 0/1 errors tends to r + (1 - r) log(1 - r): Geifman 2019, eq. 2."""
    error = np.zeros(100_000)
    error[:30_000] = 1
    found = run(error, error)
    assert float(found["excess_aurc"]) == pytest.approx(0, abs=1e-12)
    r = 0.3
    assert float(found["aurc"]) == pytest.approx(r + (1 - r) * np.log(1 - r), abs=1e-5)
    assert float(run(error, error, selective.sparsification)["ause"]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("ties", [None, 7])
def test_augrc_follows_from_accuracy_and_auroc(ties: int | None) -> None:
    """Traub 2024, eq. 8, with scikit-learn's AUROC, in which ties count a half."""
    score, error = case_data(ties=ties)
    accuracy, auroc = 1 - error.mean(), roc_auc_score(error, score)
    expected = (1 - accuracy) * accuracy * (1 - auroc) + (1 - accuracy) ** 2 / 2
    assert float(run(score, error)["augrc"]) == pytest.approx(expected, abs=1e-12)


def test_precision_and_recall_match_scikit_learn() -> None:
    score, error = case_data()
    found = run(score, error, selective.precision_recall, recall=[0.1, 0.5, 1])
    expected = average_precision_score(1 - error, -score)
    assert float(found["average_precision"]) == pytest.approx(expected)
    right = (1 - error)[np.argsort(score)]
    for index, recall in enumerate((0.1, 0.5, 1)):
        wanted = recall * right.sum()
        # A share of a correct entry may be kept, and then nothing that is wrong.
        above = int(np.searchsorted(np.cumsum(right), wanted - 1e-9))
        kept = above + wanted - right[:above].sum()
        assert float(found["precision"][index]) == pytest.approx(wanted / kept)
        assert float(found["coverage"][index]) == pytest.approx(kept / 400)
    assert float(found["accuracy"]) == pytest.approx(1 - error.mean())
    with pytest.raises(ValueError, match="must be 0 where right and 1"):
        run(score, error + 0.5, selective.precision_recall)
    nothing = run(score, np.ones(400), selective.precision_recall)
    assert np.isnan(nothing["precision"]).all()


@pytest.mark.parametrize("levels", [[0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 1, 2, 2, 2]])
def test_ties_have_the_mean_average_precision_of_all_their_orders(levels: list[int]) -> None:
    score = np.array(levels, float)
    error = np.arange(len(levels)) % 2.0
    orders = set(itertools.permutations(range(len(levels))))
    allowed = [list(order) for order in orders if (np.diff(score[list(order)]) >= 0).all()]
    ranks = np.arange(len(levels))
    expected = [average_precision_score(1 - error[order], -ranks) for order in allowed]
    found = run(score, error, selective.precision_recall)
    assert float(found["average_precision"]) == pytest.approx(np.mean(expected), abs=1e-12)


def test_scores_and_errors_of_classes_by_name() -> None:
    tree = classification_tree(cases=60)
    probs, label = array(tree, "posterior/probs"), array(tree, "observed_data/label")
    mean = probs.mean(("chain", "draw")).values
    entropies = uncertainty.entropy(tree, mcse=False)
    for name in ("predictive_entropy", "mutual_information", "variation_ratio"):
        np.testing.assert_allclose(selective.scores(tree, name), entropies[name])
    variances = uncertainty.variance(tree, mcse=False).sum("class")
    np.testing.assert_allclose(selective.scores(tree, "epistemic"), variances["epistemic"])
    np.testing.assert_allclose(selective.scores(tree, "max_probability"), 1 - mean.max(1))
    wrong = mean.argmax(1) != label.values
    np.testing.assert_array_equal(selective.errors(tree, "zero_one"), wrong)
    brier = ((mean - np.eye(3)[label.values]) ** 2).sum(1)
    np.testing.assert_allclose(selective.errors(tree, "brier"), brier)
    by_name = selective.risk_coverage(tree, "predictive_entropy", replicates=0)
    score = entropies["predictive_entropy"].values
    risks = brute_risks(wrong[np.argsort(score)].astype(float))
    assert float(by_name["aurc"]) == pytest.approx(risks.mean())
    mixed = selective.risk_coverage(tree, entropies["predictive_entropy"], "brier", replicates=0)
    assert float(mixed["error_mean"]) == pytest.approx(brier.mean())
    assert mixed["risk"].attrs["units"] == "1"


def test_scores_and_errors_of_numbers_by_name() -> None:
    rng = np.random.default_rng(0)
    loc, scale = rng.normal(size=(2, 5, 30, 4)), rng.gamma(3, size=(2, 5, 30, 4))
    value = rng.normal(size=(30, 4))
    value[3, 2] = np.nan
    drawn = loc + scale * rng.normal(size=loc.shape)
    tree = number_tree(value, drawn, {"loc": loc, "scale": scale}, ("row",))
    error = np.abs(value - loc.mean((0, 1)))
    np.testing.assert_allclose(selective.errors(tree, "absolute"), error)
    np.testing.assert_allclose(selective.errors(tree, "squared"), error**2)
    aleatoric = (scale**2).mean((0, 1))
    np.testing.assert_allclose(selective.scores(tree, "aleatoric"), aleatoric)
    found = selective.sparsification(tree, "aleatoric", replicates=0)
    assert found.attrs["num_left_out"] == 1
    assert found.attrs["num_entries"] == 119
    order = np.argsort(aleatoric.ravel())
    kept = error.ravel()[order][~np.isnan(error.ravel()[order])]
    expected = brute_risks(kept).mean() - brute_risks(np.sort(kept)).mean()
    assert float(found["ause"]) == pytest.approx(expected)
    bare = number_tree(value, drawn, None, ("row",))
    np.testing.assert_allclose(selective.scores(bare, "total"), drawn.var((0, 1)) * 10 / 9)
    gap = np.abs(value - drawn.mean((0, 1)))
    np.testing.assert_allclose(selective.errors(bare, "absolute"), gap)
    with pytest.raises(ValueError, match="tells only 'total'"):
        selective.scores(bare, "epistemic")


def mask_tree(cases: int = 4, side: int = 8, draws: int = 3) -> xr.DataTree:
    extra = {"row": side, "col": side + 1}
    probs = random_probs(chains=1, draws=draws, cases=cases, extra=extra)
    rng = np.random.default_rng(3)
    mask = draw_labels(probs.mean(("chain", "draw")), rng)
    mask[1, :3] = 255
    groups = {"/posterior": xr.Dataset({"probs": probs})}
    return xr.DataTree.from_dict({**groups, "/observed_data": xr.Dataset({"mask": mask})})


@pytest.mark.parametrize("limit", [60_000, 20_000])
@pytest.mark.parametrize("bits", [None, 9])
def test_lazy_trees_read_in_parts_give_equal_results(
    limit: int, bits: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts are of some cases, and of some rows of one case."""
    tree = mask_tree()
    options: dict[str, Any] = {"ignore": 255, "mantissa_bits": bits, "replicates": 20}
    whole = [curve(tree, "mutual_information", **options) for curve in CURVES]
    monkeypatch.setattr("ppl_med.analysis.tree.blocks.BLOCK_BYTES", limit)
    lazy = tree.chunk({"case": 2, "row": 4})
    assert lazy["posterior/probs"].chunks
    for curve, expected in zip(CURVES, whole, strict=True):
        found = curve(lazy, "mutual_information", **options)
        drop = [name for name in found if str(name).endswith("_se")]
        xr.testing.assert_allclose(found.drop_vars(drop), expected.drop_vars(drop), rtol=1e-12)
        # Rounding for the bootstrap starts at the range of the first part.
        errors = [found[name] for name in drop], [expected[name] for name in drop]
        for one, other in zip(*errors, strict=True):
            np.testing.assert_allclose(one, other, rtol=0.15, atol=1e-3)
    assert found.attrs["num_left_out"] == 3 * 9
    scored = selective.scores(lazy, "mutual_information")
    np.testing.assert_allclose(scored, selective.scores(tree, "mutual_information"))


def test_memory_holds_a_part_of_the_tree_and_the_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 cases of 440 kB each, made when they are read; the peak stays below a third of all."""
    import tracemalloc

    import dask.array as da

    cases, side = 24, 48
    shape = (1, 6, cases, 4, side, side)
    noise = da.random.default_rng(0).random(shape, chunks=(1, 6, 1, 4, side, side))
    probs = xr.DataArray(
        noise / noise.sum(3, keepdims=True),
        dims=("chain", "draw", "case", "class", "row", "col"),
    )
    zeros = da.zeros((cases, side, side), dtype=int, chunks=(1, side, side))
    mask = xr.DataArray(zeros, dims=("case", "row", "col"))
    tree = xr.DataTree.from_dict(
        {"/posterior": xr.Dataset({"probs": probs}), "/observed_data": xr.Dataset({"mask": mask})}
    )
    monkeypatch.setattr("ppl_med.analysis.tree.blocks.BLOCK_BYTES", 2**20)
    curve = partial(selective.risk_coverage, score="predictive_entropy", mantissa_bits=7)
    curve(tree.isel(case=slice(2)), replicates=5)  # what is imported and built once is no data
    tracemalloc.start()
    found = curve(tree, replicates=5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.attrs["num_entries"] == cases * side**2
    assert peak < probs.nbytes / 3


def test_rounding_is_exact_for_the_rounded_score_and_near_for_the_other() -> None:
    score, error = case_data(5000)
    exact, rounded = run(score, error), run(score, error, mantissa_bits=8)
    mantissa, exponent = np.frexp(score)
    grid = np.ldexp(np.round(mantissa * 2**9) / 2**9, exponent)
    np.testing.assert_allclose(float(rounded["aurc"]), float(run(grid, error)["aurc"]), rtol=1e-6)
    assert rounded.attrs["num_levels"] < 3000 < exact.attrs["num_levels"]
    assert float(rounded["aurc"]) == pytest.approx(float(exact["aurc"]), abs=2e-4)
    # Signs and order are kept.
    assert float(run(score - 0.5, error, mantissa_bits=8)["aurc"]) == pytest.approx(
        float(exact["aurc"]), abs=2e-4
    )


def clusters(rng: np.random.Generator, cases: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of one case share how wrong they are."""
    level = rng.uniform(size=(cases, 1))
    score = level + 0.5 * rng.uniform(size=(cases, 30))
    error = (rng.uniform(size=(cases, 30)) < 0.5 * level**2 + 0.1 * score).astype(float)
    return score, error


def test_standard_errors_are_those_of_repeated_data_sets() -> None:
    """The mean squared error bar over 60 data sets is the variance of the figure over 500."""
    rng = np.random.default_rng(0)
    names = ("aurc", "augrc", "excess_aurc")
    truth, bars = [], []
    for index in range(500):
        score, error = (values[..., None] for values in clusters(rng, 60))
        found = run(score, error, replicates=60 if index < 60 else 0, coverage=[0.5])
        truth.append([found[name].item() for name in (*names, "risk")])
        if index < 60:
            bars.append([found[f"{name}_se"].item() for name in (*names, "risk")])
    squares = (np.array(truth) - np.mean(truth, 0)) ** 2
    ratio = np.mean(np.square(bars), 0) / squares.mean(0)
    assert (np.abs(ratio - 1) < 0.35).all(), ratio
    pixels = clusters(rng, 60)
    wide = run(pixels[0][..., None], pixels[1][..., None], replicates=200)["aurc_se"]
    single = run(pixels[0].ravel(), pixels[1].ravel(), replicates=200)["aurc_se"]
    assert float(wide) > 1.5 * float(single)  # pixels of one case are not independent


def test_standard_errors_of_a_mean_are_the_formula() -> None:
    _, error = case_data(2000)
    found = run(np.zeros(2000), error, replicates=1000)
    expected = error.std(ddof=1) / 2000**0.5
    ratio = float(found["error_mean_se"]) / expected
    assert abs(ratio - 1) < Z / (2 * 1000) ** 0.5
    assert np.isnan(run(np.zeros((1, 5, 5)), np.ones((1, 5, 5)), replicates=20)["aurc_se"])


def test_the_standard_error_feels_no_offset_of_the_score() -> None:
    score, error = case_data(500)
    plain = run(score, error, replicates=100)
    moved = run(1e6 + score, error, replicates=100)
    assert float(moved["aurc_se"]) == pytest.approx(float(plain["aurc_se"]), rel=1e-3)


def test_the_standard_error_feels_no_outlier_of_the_score() -> None:
    rng = np.random.default_rng(3)
    score, error = rng.normal(size=300), rng.random(300)
    score[0] = -4.0
    near = run(score, error, replicates=200)
    score[0] = -1e4
    far = run(score, error, replicates=200)
    for name in ("aurc", "aurc_se"):
        assert float(far[name]) == pytest.approx(float(near[name]), rel=0.02)


def test_a_useful_uncertainty_gains_and_precision_falls_with_recall() -> None:
    """Errors of N(0, s^2) with s known: the mean |error| at coverage c is that of s below."""
    rng = np.random.default_rng(0)
    scale = rng.uniform(0, 1, 200_000)
    error = np.abs(scale * rng.normal(size=scale.size))
    found = run(scale, error, coverage=[0.25, 0.5, 1], replicates=0)
    # E|error| given s < c is sqrt(2 / pi) c / 2
    for index, coverage in enumerate((0.25, 0.5, 1)):
        assert_mean(error[scale <= coverage], (2 / np.pi) ** 0.5 * coverage / 2)
        expected = (2 / np.pi) ** 0.5 * coverage / 2
        assert float(found["risk"][index]) == pytest.approx(expected, rel=0.01)
    assert float(found["aurc"]) == pytest.approx((2 / np.pi) ** 0.5 / 4, rel=0.01)
    score, wrong = case_data(20_000)
    precision = run(score, wrong, selective.precision_recall, recall=[0.1, 0.5, 0.9])["precision"]
    assert (np.diff(precision) < 0).all()


def test_bad_input_is_named() -> None:
    tree = classification_tree()
    with pytest.raises(ValueError, match="score of classes must be"):
        selective.risk_coverage(tree, "entropy")
    with pytest.raises(ValueError, match="error of classes must be"):
        selective.risk_coverage(tree, "total", "absolute")
    with pytest.raises(ValueError, match="tree is None"):
        selective.risk_coverage(None, "total")
    with pytest.raises(ValueError, match="aggregate maps"):
        selective.risk_coverage(tree, given(np.zeros((30, 2))))
    wrong = given(np.zeros(30)).assign_coords(case=range(30))
    with pytest.raises(ValueError, match="same cases"):
        selective.risk_coverage(tree, wrong)
    with pytest.raises(ValueError, match="coverage must be"):
        run(np.zeros(5), np.zeros(5), coverage=[0])
    with pytest.raises(ValueError, match="removed must be"):
        run(np.zeros(5), np.zeros(5), selective.sparsification, removed=[1.0])
    with pytest.raises(ValueError, match="mantissa_bits must be"):
        run(np.zeros(5), np.zeros(5), mantissa_bits=0)
    with pytest.raises(ValueError, match="NaN everywhere"):
        run(np.zeros(5), np.full(5, np.nan), replicates=3)
    with pytest.raises(ValueError, match="NaN or infinite"):
        run(np.full(5, np.nan), np.zeros(5))
    with pytest.raises(ValueError, match="no observed label"):
        selective.errors(random_probs(), "zero_one")
    with pytest.raises(ValueError, match=r"outside 0\.\.2"):
        selective.errors(mask_tree(), "zero_one")
    huge = xr.DataArray(np.broadcast_to(np.zeros(1), (2**26 + 1,)), dims="case")
    with pytest.raises(ValueError, match="pass mantissa_bits=11"):
        selective.risk_coverage(None, huge, huge)


@pytest.mark.parametrize("name", ["predictive_entropy", "epistemic", "total", "max_probability"])
def test_behind_a_smaller_case_there_is_no_score(name: str) -> None:
    """The variances were 0 there, as of pixels of which the model is sure."""
    probs = np.random.default_rng(0).dirichlet(np.ones(3), (1, 4, 2, 2, 3))
    probs[:, :, 0, :, 2] = np.nan
    dims = ("chain", "draw", "case", "row", "col", "class")
    array = xr.DataArray(probs, dims=dims).transpose(*dims[:3], "class", ...)
    found = selective.scores(array, name)
    assert np.isnan(found[0, :, 2]).all() and int(found.isnull().sum()) == 2
