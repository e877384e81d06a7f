"""The scores people ask for first, against scikit-learn, torchmetrics, MONAI and closed forms."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics.functional as metrics
import xarray as xr
from monai.metrics import DiceMetric, MeanIoU
from posterior_trees import array, classification_tree
from scipy.stats import binomtest, norm
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from ppl_med.analysis import case_groups, findings, scoring
from ppl_med.analysis.statistics import ranking
from ppl_med.analysis.statistics.group_resampling import group_weights, spread
from ppl_med.analysis.statistics.shares import share_interval


@cache
def three() -> xr.DataTree:
    return classification_tree(chains=2, draws=3, cases=60, seed=3)


@cache
def two() -> xr.DataTree:
    """Two classes, probabilities rounded so that there are ties."""
    tree = classification_tree(chains=2, draws=3, cases=80, classes=2, seed=4)
    probs = (array(tree, "posterior/probs")[..., 1] * 8).round() / 8
    probs = xr.concat([1 - probs, probs], array(tree, "posterior/probs")["class"])
    tree["posterior"] = xr.DataTree(
        xr.Dataset({"probs": probs.transpose("chain", "draw", "case", "class")})
    )
    patients = [f"p{index // 4}" for index in range(80)]
    columns = {"patient": ("case", patients)}
    case = array(tree, "observed_data/label")["case"]
    tree["constant_data"] = xr.DataTree(xr.Dataset(columns, {"case": case}))
    return tree


def mixture(tree: xr.DataTree) -> np.ndarray:
    """The mean over draws, without what the order of its sum adds in the last digits."""
    return array(tree, "posterior/probs").mean(("chain", "draw")).round(12).values


def labels(tree: xr.DataTree) -> np.ndarray:
    return array(tree, "observed_data/label").values


def test_ranking_of_three_classes_is_that_of_scikit_learn_and_torchmetrics() -> None:
    tree = three()
    found = scoring.discrimination(tree, resamples=0)
    probs, label = mixture(tree), labels(tree)
    one_hot = np.eye(3)[label]
    for name, oracle in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
        per_class = [oracle(one_hot[:, k], probs[:, k]) for k in range(3)]
        np.testing.assert_allclose(found[f"{name}_per_class"], per_class, rtol=1e-12)
        assert float(found[name]) == pytest.approx(oracle(one_hot, probs, average="macro"))
    given = torch.tensor(probs), torch.tensor(label)
    for name, judge in (("auroc", metrics.auroc), ("average_precision", metrics.average_precision)):
        value = judge(*given, task="multiclass", num_classes=3, average="macro")
        assert float(found[name]) == pytest.approx(float(value or 0), abs=1e-6)
    draw = array(tree, "posterior/probs").values[1, 2]
    expected = roc_auc_score(one_hot, draw, average="macro")
    assert float(found["auroc_per_draw"][1, 2]) == pytest.approx(expected)
    assert found.attrs["headline"] == "mean over classes that occur"


def test_two_classes_have_one_headline_also_with_ties() -> None:
    tree = two()
    probs, label = mixture(tree), labels(tree)
    found = scoring.discrimination(tree, resamples=0)
    assert float(found["auroc"]) == pytest.approx(roc_auc_score(label, probs[:, 1]))
    expected = average_precision_score(label, probs[:, 1])
    assert float(found["average_precision"]) == pytest.approx(expected)
    other = scoring.discrimination(tree, positive="class 0", resamples=0)
    expected = average_precision_score(label == 0, probs[:, 0])
    assert float(other["average_precision"]) == pytest.approx(expected)
    assert float(other["auroc"]) == pytest.approx(float(found["auroc"]))
    assert found.attrs["headline"] == "class class 1"
    with pytest.raises(ValueError, match="positive must be the name of a class"):
        scoring.discrimination(tree, positive="ill")


def test_curves_are_those_of_scikit_learn() -> None:
    tree = two()
    probs, label = mixture(tree)[:, 1], labels(tree)
    found = scoring.roc(tree, resamples=0).isel({"class": 1})
    false, true, _ = roc_curve(label, probs, drop_intermediate=False)
    grid = found["false_positive_rate"].values
    inside = ~np.isin(grid, false)  # at a vertical piece np.interp takes any of its ends
    np.testing.assert_allclose(
        found["true_positive_rate"].values[inside], np.interp(grid[inside], false, true)
    )
    at_zero = float(found["true_positive_rate"][0])
    assert at_zero == pytest.approx(true[false == 0].max())
    area = np.trapezoid(found["true_positive_rate"], grid)
    assert area == pytest.approx(float(found["auroc"]), abs=0.01)
    found = scoring.precision_recall(tree, resamples=0).isel({"class": 1})
    precision, recall, _ = precision_recall_curve(label, probs)
    for level, value in zip(found["recall"].values, found["precision"].values, strict=True):
        reached = recall >= level - 1e-12
        highest = recall[reached].min()  # the highest threshold that reaches the recall
        assert value == pytest.approx(precision[recall == highest].max()), level
    assert float(found["prevalence"]) == label.mean()


def test_errors_are_over_patients_where_there_are_any() -> None:
    tree = two()
    found = scoring.discrimination(tree, resamples=200)
    assert (found.attrs["unit"], found.attrs["num_units"]) == ("patient", 20)

    def figure(part: xr.DataTree) -> xr.Dataset:
        return scoring.discrimination(part, group="case", resamples=0)

    other = case_groups.bootstrap(figure, tree, "patient", resamples=20)
    again = scoring.discrimination(tree, resamples=20)
    for name in ("auroc_se", "auroc_per_class_lower", "average_precision_upper"):
        # one draws patients in the order of their names, as the other does
        np.testing.assert_allclose(again[name], other[name], rtol=1e-9)
    alone = scoring.discrimination(tree, group="case", resamples=200)
    assert alone.attrs["num_units"] == 80
    few = scoring.discrimination(tree.isel(case=slice(8)), resamples=20)
    assert np.isnan(few["auroc_se"]) and few.attrs["num_units"] == 2


def test_the_interval_of_auroc_covers_as_often_as_it_says() -> None:
    """Two normals one apart, whose AUROC is known."""
    rng, hits, trials = np.random.default_rng(0), 0, 60
    label = np.repeat([False, True], 40)
    for trial in range(trials):
        ranked = ranking.rank(rng.normal(label), label, np.arange(80))
        drawn = [
            ranking.auroc(*ranked.counts(weight)) for weight in group_weights(80, 100, seed=trial)
        ]
        _, low, high = spread(np.array(drawn), 0.95)
        hits += bool(low <= norm.cdf(0.5**0.5) <= high)
    assert binomtest(hits, trials, 0.95).pvalue > 1e-6


def test_many_pixels_are_ranked_to_a_thousandth() -> None:
    rng = np.random.default_rng(1)
    event = rng.random(30_000) < 0.3
    score, group = rng.normal(event * 1.0), rng.integers(0, 9, 30_000)
    exact, joined = (ranking.rank(score, event, group, coarse=coarse) for coarse in (False, True))
    assert joined.size <= 1024 < exact.size
    for figure in (ranking.auroc, ranking.average_precision):
        assert figure(*joined.counts()) == pytest.approx(figure(*exact.counts()), abs=1e-3)
    weight = rng.integers(0, 3, 9).astype(float)
    expected = roc_auc_score(event, score, sample_weight=weight[group])
    assert ranking.auroc(*exact.counts(weight)) == pytest.approx(expected)


def test_calls_at_a_threshold_are_those_of_scikit_learn() -> None:
    tree = two()
    probs, label = mixture(tree)[:, 1], labels(tree)
    found = scoring.operating_point(tree, 0.375, group="case").sel({"class": "class 1"})
    tn, fp, fn, tp = confusion_matrix(label, probs >= 0.375).ravel()
    counts = ("true_negative", "false_positive", "false_negative", "true_positive")
    assert [int(found[name]) for name in counts] == [tn, fp, fn, tp]
    rates = {
        "sensitivity": (tp, tp + fn),
        "specificity": (tn, tn + fp),
        "ppv": (tp, tp + fp),
        "npv": (tn, tn + fn),
    }
    for name, (hits, number) in rates.items():
        exact = binomtest(hits, number).proportion_ci(0.95)
        assert float(found[name]) == pytest.approx(hits / number)
        assert float(found[f"{name}_lower"]) == pytest.approx(exact.low)
        assert float(found[f"{name}_upper"]) == pytest.approx(exact.high)
    draw = array(tree, "posterior/probs").values[0, 1, :, 1] >= 0.375
    expected = draw[label == 1].mean()
    assert float(found["sensitivity_per_draw"][0, 1]) == pytest.approx(expected)
    for threshold in (0.0, 1, np.nan):
        with pytest.raises(ValueError, match="threshold must be"):
            scoring.operating_point(tree, threshold)


def test_entries_of_one_patient_count_as_fewer() -> None:
    rng = np.random.default_rng(2)
    number = 40
    # all five entries of a patient are equal: as good as one entry each
    hit = (rng.random(number) < 0.7).astype(float)
    share, low, high = share_interval(5 * hit[:, None], np.full((number, 1), 5.0), 0.95)
    exact = binomtest(int(hit.sum()), number).proportion_ci(0.95)
    assert float(share[0]) == hit.mean()
    assert (low[0], high[0]) == (
        pytest.approx(exact.low, abs=0.02),
        pytest.approx(exact.high, abs=0.02),
    )
    assert high[0] - low[0] > 0.9 * (exact.high - exact.low)
    # never a certainty: where all are right, every patient counts once
    share, low, _ = share_interval(np.full((number, 1), 5.0), np.full((number, 1), 5.0), 0.95)
    assert float(share[0]) == 1 and low[0] == pytest.approx(0.025 ** (1 / number))
    nothing = share_interval(np.zeros((3, 1)), np.zeros((3, 1)), 0.95)
    assert np.isnan(np.array(nothing)).all()


@pytest.mark.parametrize("asked", [{"sensitivity": 0.9}, {"specificity": 0.8}])
def test_a_threshold_is_chosen_on_other_cases(asked: dict[str, float]) -> None:
    tree = three()
    first, second = tree.isel(case=slice(30)), tree.isel(case=slice(30, None))
    learnt = scoring.choose_threshold(first, **asked)
    probs, label = mixture(first), labels(first)
    ((name, value),) = asked.items()
    for index, limit in enumerate(learnt["threshold"].values):
        of_class = label == index
        counted = probs[of_class if name == "sensitivity" else ~of_class, index]

        def share(at: float, counted: np.ndarray = counted) -> float:
            kept = counted >= at if name == "sensitivity" else counted < at
            return float(kept.mean())

        ends = limit * (1 - 1e-9), limit * (1 + 1e-9)  # below and above the score itself
        enough, short = ends if name == "sensitivity" else ends[::-1]
        assert share(enough) >= value > share(short)
    ids = [f"new {index}" for index in range(30)]
    renamed = first.map_over_datasets(
        lambda group: group.assign_coords(case=ids) if "case" in group.dims else group
    )
    assert bool((scoring.operating_point(renamed, learnt)[name] >= value).all())
    found = scoring.operating_point(second, learnt)
    np.testing.assert_array_equal(found["threshold"], learnt["threshold"])
    with pytest.raises(ValueError, match="share 30 case"):
        scoring.operating_point(first, learnt)
    with pytest.raises(ValueError, match="one of the two"):
        scoring.choose_threshold(first)
    with pytest.raises(ValueError, match="never or always occurs"):
        scoring.choose_threshold(first.isel(case=np.flatnonzero(label != 0)), **asked)


def masks_of(rng: np.random.Generator) -> xr.DataTree:
    probs = rng.dirichlet([0.4] * 3, (1, 2, 7, 6, 5)).transpose(0, 1, 2, 5, 3, 4)
    truth = rng.integers(0, 3, (7, 6, 5))
    truth[0] = 0
    probs[:, :, 0] = np.array([0.8, 0.2, 0.0])[:, None, None]  # both lack classes 1 and 2
    dims = ("chain", "draw", "case", "class", "row", "col")
    ids = {"case": list("abcdefg")}
    return xr.DataTree.from_dict(
        {
            "/posterior": xr.Dataset({"probs": (dims, probs)}, ids | {"class": list("xyz")}),
            "/observed_data": xr.Dataset({"mask": (("case", "row", "col"), truth)}, ids),
        }
    )


def test_dice_and_iou_are_those_of_monai() -> None:
    tree = masks_of(np.random.default_rng(5))
    found = scoring.overlap(tree, resamples=50)
    guess = array(tree, "posterior/probs").mean(("chain", "draw")).argmax("class").values
    given = [
        torch.nn.functional.one_hot(torch.tensor(one), 3).movedim(-1, 1).float()
        for one in (guess, array(tree, "observed_data/mask").values)
    ]
    judges: dict[str, Any] = {"dice": DiceMetric, "iou": MeanIoU}
    for name, judge in judges.items():
        values = judge(include_background=False, reduction="none")(*given).numpy()
        np.testing.assert_allclose(found[name], values, rtol=1e-6)
        means = np.nanmean(values, 0)
        np.testing.assert_allclose(found[f"{name}_per_class"], means, rtol=1e-6)
        assert float(found[f"{name}_mean"]) == pytest.approx(means.mean(), rel=1e-6)
        assert (
            float(found[f"{name}_mean_lower"]) < means.mean() < float(found[f"{name}_mean_upper"])
        )
    assert found["dice"].isel(case=0).isnull().all()
    assert float(scoring.overlap(tree, empty=1, resamples=0)["dice"][0, 0]) == 1
    draw = tree.isel(draw=[1], missing_dims="ignore")
    single = scoring.overlap(draw, resamples=0)["dice_mean"]
    assert float(found["dice_mean_per_draw"][0, 1]) == pytest.approx(float(single))
    whole = scoring.overlap(tree, classes=["x", "z"], resamples=0)
    assert whole["class"].values.tolist() == ["x", "z"]
    with pytest.raises(ValueError, match="one label per case"):
        scoring.overlap(three())


def test_findings_are_scored_one_by_one() -> None:
    from analysis_table import finding_tree

    tree = finding_tree(40)
    found = findings.each(scoring.discrimination, tree, resamples=0)
    probs = array(tree, "posterior/probs").mean(("chain", "draw")).values[:, 1]
    truth = array(tree, "observed_data/findings").values
    expected = [roc_auc_score(truth[:, k], probs[:, k]) for k in range(3)]
    np.testing.assert_allclose(found["auroc"], expected)
    given = torch.tensor(probs), torch.tensor(truth)
    macro = metrics.auroc(*given, task="multilabel", num_labels=3, average="macro")
    assert float(found["auroc"].mean()) == pytest.approx(float(macro or 0), abs=1e-6)
    at = findings.each(scoring.operating_point, tree, 0.4)
    expected = [((probs[:, k] >= 0.4) & (truth[:, k] == 1)).sum() for k in range(3)]
    np.testing.assert_array_equal(at["true_positive"].sel({"class": "present"}), expected)
