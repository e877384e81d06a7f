"""Promises of recall and of edges: closed forms, an outside package, exchangeable splits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from detection_trees import detection_tree, shuffled, tree_by_hand
from scipy import stats

from ppl_med.analysis.conformal import coverage_rank
from ppl_med.analysis.detection import calibrate_boxes, predict_boxes
from ppl_med.analysis.detection.box_promises import (
    learn_all,
    learn_found,
    learn_threshold,
    mean_by_image,
    pair_up,
)
from ppl_med.analysis.detection.open_objects import open_objects

FALSE_ALARM = 1e-4
Z = float(stats.norm.isf(FALSE_ALARM))
EDGES = 4


def single(number: int, seed: int = 0, prefix: str = "c", sd: float = 3.0) -> tuple[Any, Any, Any]:
    """Images with one box each, found with a score of its own; the tree, scores and residuals."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(20, 60, (number, 2))
    true = np.concatenate([corner, corner + rng.uniform(60, 90, (number, 2))], 1)
    gap = sd * rng.normal(size=(number, EDGES))
    score = rng.permutation(number) / number * 0.9 + 0.05
    objects = [[[s, 0, *(t + g)]] for s, t, g in zip(score, true, gap, strict=True)]
    tree = tree_by_hand(objects, [[[0, *t]] for t in true], prefix=prefix, covariance=sd**2)
    return tree, score, -gap  # true minus predicted


def crowd(number: int, seed: int, prefix: str = "c") -> xr.DataTree:
    """Images of none to eight boxes, of which faint ones are missed and badly placed."""
    rng = np.random.default_rng(seed)
    objects, true = [], []
    for _ in range(number):
        rows, boxes = [], []
        hard = rng.uniform(0.5, 1.5)  # objects of an image are alike
        for place in rng.permutation(16)[: rng.integers(0, 9)]:
            corner = np.array([place % 4, place // 4]) * 60 + rng.uniform(0, 10, 2)
            box = np.concatenate([corner, corner + rng.uniform(30, 45, 2)])
            boxes.append([0, *box])
            score = rng.uniform(0.1, 1)
            if rng.random() < 0.97:
                rows.append([score, 0, *(box + hard * (1.5 - score) * rng.normal(size=4))])
        for _ in range(rng.integers(0, 3)):
            corner = rng.uniform(0, 200, 2)
            rows.append([rng.uniform(0, 0.6), 0, *corner, *(corner + 40)])
        rows.sort(key=lambda row: -row[0])
        objects.append(rows)
        true.append(boxes)
    return tree_by_hand(objects, true, prefix=prefix, covariance=1.0)


@pytest.mark.parametrize(("number", "alpha"), [(19, 0.1), (39, 0.1), (50, 0.2)])
def test_one_object_an_image_is_the_order_statistic(number: int, alpha: float) -> None:
    """Then a share is 0 or 1, and the rule that of split conformal prediction, k of n."""
    tree, score, gap = single(number)
    found = calibrate_boxes(tree, outside=alpha, promise="found", threshold=0.0, scale="pixels")
    rank = coverage_rank(number, alpha)
    expected = np.sort(np.abs(gap).max(1))[rank - 1]
    np.testing.assert_allclose(found["margin"], expected, rtol=1e-12)
    assert int(found["num_outside"]) == number and int(found["num_missed"]) == 0
    scaled = calibrate_boxes(tree, outside=alpha, promise="found", threshold=0.0)
    np.testing.assert_allclose(scaled["margin"], expected / 3, rtol=1e-9)
    with_recall = calibrate_boxes(tree, missed=alpha, outside=alpha)
    least = np.sort(score)[number - rank]  # so that rank images are not missed
    assert float(with_recall["threshold"]) == pytest.approx(least)
    np.testing.assert_array_equal(with_recall["missed_share"], score < least - 1e-9)


@pytest.mark.parametrize("alpha", [0.2, 0.4])
def test_max_rank_is_one_rank_for_all_edges(alpha: float) -> None:
    """One object an image: the rank of split conformal prediction of the largest ranks, and 1."""
    tree, _, gap = single(60)
    settings: dict[str, Any] = {"promise": "found", "threshold": 0.0, "scale": "pixels"}
    found = calibrate_boxes(tree, outside=alpha, margins="max_rank", **settings)
    ranks = np.sort(stats.rankdata(np.abs(gap), axis=0).max(1))
    rank = int(ranks[coverage_rank(60, alpha) - 1]) + 1
    np.testing.assert_allclose(found["margin"], np.sort(np.abs(gap), 0)[rank - 1], rtol=1e-12)
    inside = (np.abs(gap) <= found["margin"].values).all(1).mean()
    assert inside >= 1 - alpha
    with pytest.raises(ValueError, match="by their ranks among 60"):
        calibrate_boxes(tree, outside=0.02, margins="max_rank", **settings)


@pytest.mark.parametrize("alpha", [0.2, 0.4])
def test_bonferroni_has_one_order_statistic_for_each_edge(alpha: float) -> None:
    tree, _, gap = single(60)
    found = calibrate_boxes(
        tree, outside=alpha, promise="found", threshold=0.0, scale="pixels", margins="bonferroni"
    )
    rank = coverage_rank(60, alpha / 4)
    np.testing.assert_allclose(found["margin"], np.sort(np.abs(gap), 0)[rank - 1], rtol=1e-12)


@pytest.mark.parametrize("scale", ["pixels", "size"])
@pytest.mark.parametrize("margins", ["max", "bonferroni"])
def test_outer_margins_are_those_of_cods(scale: str, margins: str) -> None:
    """The scores are those of the package ``cods``; margins their order statistics."""
    torch = pytest.importorskip("torch")
    cods = pytest.importorskip("cods.od.score", reason="the oracle of this test is not installed")
    kinds = {
        "pixels": cods.MinAdditiveSignedAssymetricHausdorffNCScore(None),
        "size": cods.MinMultiplicativeSignedAssymetricHausdorffNCScore(),
    }
    tree, _, _ = single(70, seed=3)
    mean, true = (
        torch.tensor(tree[group][name].values[:, 0])
        for group, name in (("objects", "edge_mean"), ("observed_data", "box_edge"))
    )
    score = np.stack([
        kinds[scale](one[None], other).numpy() for one, other in zip(mean, true, strict=True)
    ])  # fmt: skip
    alpha = 0.2
    settings: dict[str, Any] = {"promise": "found", "threshold": 0.0, "sides": "outer"}
    found = calibrate_boxes(tree, outside=alpha, scale=scale, margins=margins, **settings)
    if margins == "max":
        expected = np.repeat(np.sort(score.max(1))[coverage_rank(70, alpha) - 1], 4)
    else:
        expected = np.sort(score, 0)[coverage_rank(70, alpha / 4) - 1]
    np.testing.assert_allclose(found["margin"], expected, rtol=1e-9)
    other, _, _ = single(5, seed=4, prefix="t")
    result = predict_boxes(found, other, shift_alarm=0)
    unit = 1.0
    box = other["objects"]["edge_mean"].values[:, 0]
    if scale == "size":
        unit = (box[:, 2:] - box[:, :2])[:, [0, 1, 0, 1]]
    np.testing.assert_allclose(result["edge_lower"][:, 0, :2], (box - expected * unit)[:, :2])
    np.testing.assert_allclose(result["edge_upper"][:, 0, 2:], (box + expected * unit)[:, 2:])
    assert np.isneginf(result["edge_lower"][:, 0, 2:]).all()


def rule(tree: xr.DataTree, missed: float, outside: float) -> tuple[float, float]:
    """The rule of the module, written as a search over all candidates, for one class."""
    images = []
    objects, observed = (tree[name].to_dataset() for name in ("objects", "observed_data"))
    for case in range(objects.sizes["case"]):
        box, score = (objects[name].values[case] for name in ("edge_mean", "p_exists"))
        true = observed["box_edge"].values[case]
        true = true[~np.isnan(true[:, 0])]
        rows = []
        for target in true:  # boxes of a crowd stand apart: at most one object overlaps enough
            low, high = np.maximum(box[:, :2], target[:2]), np.minimum(box[:, 2:], target[2:])
            shared = np.clip(high - low, 0, None).prod(1)
            union = np.prod(box[:, 2:] - box[:, :2], 1) + np.prod(target[2:] - target[:2]) - shared
            good = np.flatnonzero(np.nan_to_num(shared / union) >= 0.5)
            pair = good[np.argmax(score[good])] if len(good) else None
            gap = None if pair is None else np.abs(box[pair] - target).max()
            rows.append((-np.inf, np.inf) if pair is None else (score[pair], gap))
        if rows:
            images.append(np.array(rows))
    every = np.concatenate(images)

    def largest(slack: int) -> float:
        budget = missed * (len(images) + 1) + 1e-9 - slack
        scores = np.unique(every[:, 0])
        sums = [sum((one[:, 0] < t).mean() for one in images) for t in scores]
        return float(scores[np.array(sums) <= budget].max())

    later, margins = largest(0), np.unique(every[:, 1])
    sums = [sum(((one[:, 0] < later) | (one[:, 1] > q)).mean() for one in images) for q in margins]
    budget = (missed + outside) * (len(images) + 1) + 1e-9
    margin = float(margins[np.array(sums) + 1 <= budget].min())
    return largest(1), margin


@pytest.mark.parametrize("seed", range(4))
def test_crowds_follow_the_rule_whatever_their_order(seed: int) -> None:
    tree = crowd(40, seed)
    least, margin = rule(tree, 0.2, 0.15)
    found = calibrate_boxes(tree, missed=0.2, outside=0.15, scale="pixels")
    assert float(found["threshold"]) == pytest.approx(least)
    np.testing.assert_allclose(found["margin"], margin)
    again = calibrate_boxes(shuffled(tree, seed), missed=0.2, outside=0.15, scale="pixels")
    xr.testing.assert_allclose(found, again)


@pytest.mark.parametrize(("promise", "limit"), [("all", (0.2, 0.4)), ("found", (0.2, 0.2))])
def test_the_promises_hold_over_exchangeable_splits(promise: str, limit: Any) -> None:
    """Random halves of one pool of images are exchangeable, whatever the pool is.

    Without the 1 of the rule, means would break the promise by about 1 / 17, three times what is
    allowed for chance.
    """
    rng, repeats = np.random.default_rng(5), 800
    found = open_objects(crowd(36, 9), "edge_aleatoric", "edge_epistemic")
    pairs = pair_up(found, "sd", "both", 0.5, True)
    images = np.unique(pairs.case)
    assert 30 <= len(images) < 36, "some images are empty"
    figures = np.zeros((repeats, 2))
    for row in figures:
        learns, second = np.zeros(36, bool), np.zeros(36, bool)
        order = rng.permutation(images)
        learns[order[:16]] = True
        if promise == "all":
            least, margin = learn_all(found, pairs, learns, 0.2, 0.2)
        else:  # the threshold from the first half of those that learn
            second[order[8:16]], learns[order[8:16]] = True, False
            least = learn_threshold(found, pairs, learns, 0.2)
            margin = learn_found(found, pairs, second, least, 0.2, "max")
        lost, bad = pairs.score < least, np.asarray((pairs.away > margin).any(1))
        shares = [mean_by_image(found, pairs, lost), mean_by_image(found, pairs, lost | bad)]
        if promise == "found":
            shares[1] = mean_by_image(found, pairs, bad, ~lost)
        row[:] = [np.nanmean(one[order[16:]]) for one in shares]
    error = figures.std(0, ddof=1) / repeats**0.5
    assert (error < 0.006).all()
    assert (figures.mean(0) < limit + Z * error).all()
    assert (figures.mean(0) > np.array(limit) - 0.13).all(), "nor is far more kept than promised"


def test_the_promise_by_max_rank_holds_over_exchangeable_splits() -> None:
    """As above; ranks move with the test image, which the rule allows for."""
    rng, repeats, level = np.random.default_rng(6), 300, 0.4
    found = open_objects(crowd(120, 9), "edge_aleatoric", "edge_epistemic")
    pairs = pair_up(found, "pixels", "both", 0.5, True)
    images = np.unique(pairs.case[pairs.score >= 0.3])
    outside = np.zeros(repeats)
    for row in range(repeats):
        learns, order = np.zeros(120, bool), rng.permutation(images)
        learns[order[: len(order) // 2]] = True
        margin = learn_found(found, pairs, learns, 0.3, level, "max_rank")
        bad = np.asarray((pairs.away > margin).any(1))
        shares = mean_by_image(found, pairs, bad, pairs.score >= 0.3)
        outside[row] = np.nanmean(shares[order[len(order) // 2 :]])
    error = outside.std(ddof=1) / repeats**0.5
    assert error < 0.006
    assert level - 0.25 < outside.mean() < level + Z * error


def test_images_without_boxes_do_not_count() -> None:
    tree, score, _ = single(20)
    rows: list[Any] = [[[0.99, 0, 1, 1, 50, 50]]] * 10
    box, label = (tree["observed_data"][name].values for name in ("box_edge", "box_label"))
    assert (label == 0).all()
    objects = tree["objects"].to_dataset()["edge_mean"].values[:, 0]
    truth: list[Any] = [[[0, *b[0]]] for b in box]
    mixed = tree_by_hand(
        [[[s, 0, *o]] for s, o in zip(score, objects, strict=True)] + rows,
        [*truth, *[[]] * 10],
        covariance=9.0,
    )
    one, two = calibrate_boxes(tree, missed=0.2), calibrate_boxes(mixed, missed=0.2)
    for name in ("threshold", "margin", "num_missed", "num_outside"):
        np.testing.assert_allclose(one[name], two[name], err_msg=name)
    assert two.attrs["cases_without_true_boxes"] == 10
    assert np.isnan(two["missed_share"][20:]).all()


def test_what_is_achieved_is_counted_by_hand() -> None:
    calibration, _, _ = single(30, seed=1, prefix="a")
    found = calibrate_boxes(calibration, outside=0.2, promise="found", threshold=0.5,
                            scale="pixels")  # fmt: skip
    q = float(found["margin"][0])
    far, near = q + 1, q - 1
    true: list[Any] = [[[0, 10, 10, 100, 100], [0, 200, 200, 300, 300]]] * 2
    tree = tree_by_hand(
        [
            [[0.9, 0, 10 + near, 10, 100, 100], [0.8, 0, 200, 200, 300, 300 + far]],
            [[0.9, 0, 10, 10, 100 + far, 100], [0.4, 0, 200, 200, 300, 300]],
            [[0.7, 0, 500, 500, 600, 600]],
        ],
        [*true, []],
        prefix="t",
    )
    result = predict_boxes(found, tree, shift_alarm=0)
    np.testing.assert_array_equal(result["missed_share"], [0, 0.5, np.nan])
    np.testing.assert_array_equal(result["outside_share"], [0.5, 1, np.nan])
    assert float(result["recall"]) == 0.75 and float(result["coverage"]) == 0.25
    assert float(result["found_coverage"]) == pytest.approx(1 / 3)
    np.testing.assert_allclose(result["edge_coverage"], [1, 1, 2 / 3, 2 / 3])
    assert result["num_kept"].values.tolist() == [2, 1, 1]
    np.testing.assert_allclose(result["width"], 2 * q)
    assert np.isnan(result["edge_lower"][1, 1]).all()
    assert float(result["recall_se"]) == pytest.approx(0.25)  # sd of 0 and 0.5, over root 2


def test_images_of_one_patient_count_once() -> None:
    tree = detection_tree(24, "t")
    found = calibrate_boxes(detection_tree(40, "other"), missed=0.5, outside=0.3)
    twice = tree.isel(case=np.repeat(np.arange(24), 2))
    names = [f"{one}{k}" for one in tree["objects"].to_dataset()["case"].values for k in range(2)]
    twice = twice.map_over_datasets(
        lambda part: part.assign_coords(case=names) if "case" in part.dims else part
    )
    patient = xr.DataArray(np.repeat(np.arange(24), 2), {"case": names}, ("case",))
    one = predict_boxes(found, tree, shift_alarm=0)
    two = predict_boxes(found, twice, group=patient, shift_alarm=0)
    for name in ("recall", "coverage", "found_coverage", "edge_coverage"):
        np.testing.assert_allclose(two[name], one[name])
        np.testing.assert_allclose(two[f"{name}_se"], one[f"{name}_se"], rtol=1e-9)
    assert two.attrs["unit"] == "array" and one.attrs["unit"] == "case"


def test_a_calibration_is_saved_and_refuses_its_own_images(tmp_path: Path) -> None:
    tree, other = crowd(40, 1), crowd(10, 2, "t")
    found = calibrate_boxes(tree, missed=0.2, outside=0.2, by_class=False)
    found.to_netcdf(tmp_path / "boxes.nc")
    again = xr.load_dataset(tmp_path / "boxes.nc")
    xr.testing.assert_identical(
        predict_boxes(found, other, shift_alarm=0), predict_boxes(again, other, shift_alarm=0)
    )
    bare = xr.DataTree.from_dict(
        {"/": other.to_dataset(), "objects": other["objects"].to_dataset()}
    )
    assert "recall" not in predict_boxes(found, bare, shift_alarm=0)
    with pytest.raises(ValueError, match="learnt on 40 of these case"):
        predict_boxes(found, tree)
    with pytest.raises(ValueError, match="knows the classes"):
        predict_boxes(found, detection_tree(5, "t"))
    with pytest.raises(TypeError, match="calibrate_boxes returned"):
        predict_boxes(xr.Dataset(), other)


def test_other_images_are_told() -> None:
    found = calibrate_boxes(crowd(60, 1), missed=0.2, outside=0.2)
    many = crowd(60, 2, "t").isel(case=slice(None))
    scores = many["objects"]["p_exists"]
    many["objects"] = xr.DataTree(many["objects"].to_dataset().assign(p_exists=scores * 0.3))
    with pytest.warns(RuntimeWarning, match="look different"):
        assert float(predict_boxes(found, many)["shift_pvalue"]) < 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"missed": 0.0}, "missed must be strictly between 0 and 1"),
        ({"outside": 1.0}, "outside must be strictly between"),
        ({"promise": "some"}, "promise must be 'all' or 'found'"),
        ({"scale": "mm"}, "scale must be 'sd', 'size' or 'pixels'"),
        ({"margins": "bonferroni"}, "give promise='found' for margins='bonferroni'"),
        ({"threshold": 0.5}, "or for a threshold learnt elsewhere"),
        ({"missed": 0.6, "outside": 0.5}, r"missed \+ outside must be below 1"),
        ({"promise": "found", "threshold": 1.5}, "threshold must be a finite number from 0 to 1"),
        (
            {"missed": 0.001},
            r"misses .* % at any threshold, so that the least .* promised is 0\.\d",
        ),
        ({"missed": 0.2, "outside": 0.01}, "edges cannot be promised .* of which 99 or more are"),
    ],
)
def test_what_cannot_be_promised_is_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate_boxes(crowd(30, 1), **settings)


def test_an_sd_of_nothing_is_no_unit() -> None:
    tree, _, _ = single(20)
    group = tree["objects"].to_dataset()
    empty = {name: 0 * group[name] for name in ("edge_aleatoric", "edge_epistemic")}
    tree["objects"] = xr.DataTree(group.assign(empty))
    with pytest.raises(ValueError, match=r"sd of an edge is 0 in 20 object.*scale='pixels'"):
        calibrate_boxes(tree)
    calibrate_boxes(tree, scale="size")
