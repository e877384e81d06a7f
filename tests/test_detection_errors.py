"""LRP, thresholds and FROC of boxes, against plain loops, MONAI and by hand."""

import numpy as np
import pytest
import xarray as xr
from detection_trees import detection_tree, random_rows, tree_by_hand
from monai.metrics.froc import compute_froc_curve_data, compute_froc_score

from ppl_med.analysis import detection
from ppl_med.analysis.tree import overlaps

CLASSES = ("red", "white", "platelet")
SQUARE = [0.0, 0, 10, 10]
FAR = [50.0, 50, 60, 60]


def one_class(
    objects: list[list[list[float]]], true: list[list[list[float]]], label: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Scores, boxes and true boxes of every image, of one class, by falling score."""
    images = []
    for rows, targets in zip(objects, true, strict=True):
        mine = sorted((row for row in rows if row[1] == label), key=lambda row: -row[0])
        own = [row[1:] for row in targets if row[0] == label]
        images.append((
            np.array([row[0] for row in mine]),
            np.array([row[2:] for row in mine]).reshape(-1, 4),
            np.array(own).reshape(-1, 4),
        ))  # fmt: skip
    return images


def plain_lrp(images: list, least: float, tau: float) -> float:
    """LRP of the objects from a score on, by loops."""
    loss = false = missed = hits = 0.0
    for score, box, true in images:
        free = list(range(len(true)))
        for one in box[score >= least]:
            shared = overlaps(one[None], true[free])[0] if free else np.zeros(0)
            if shared.size and shared.max() >= tau:
                hits, loss = hits + 1, loss + (1 - shared.max()) / (1 - tau)
                free.pop(int(shared.argmax()))
            else:
                false += 1
        missed += len(free)
    return (false + missed + loss) / (hits + false + missed)


@pytest.mark.parametrize("tau", [0.5, 0.7])
def test_lrp_is_the_least_over_all_thresholds(tau: float) -> None:
    """Every class, every threshold, recomputed from nothing."""
    objects, true = random_rows(25, 4)
    tree = tree_by_hand(objects, true, classes=CLASSES)
    found = detection.lrp(tree, iou=tau)
    fixed = detection.lrp(tree, iou=tau, threshold=0.6)
    for label, name in enumerate(CLASSES):
        images = one_class(objects, true, label)
        levels = np.concatenate([[2.0], *(score for score, _, _ in images)])
        values = [plain_lrp(images, level, tau) for level in levels]
        mine = found.sel({"class": name})
        assert float(mine["lrp"]) == pytest.approx(min(values))
        assert plain_lrp(images, float(mine["threshold"]), tau) == pytest.approx(min(values))
        assert float(fixed["lrp"][label]) == pytest.approx(plain_lrp(images, 0.6, tau))
    assert float(found["lrp_mean"]) == pytest.approx(float(found["lrp"].mean()))
    assert (found["lrp"] <= fixed["lrp"]).all()


def test_lrp_by_hand() -> None:
    """A hit of IoU 0.8, a false object and a missed one: (1 + 1 + 0.2 / 0.5) / 3."""
    objects = [[[0.9, 0, 0, 0, 10, 8], [0.8, 0, 70, 70, 80, 80]]]
    true = [[[0, *SQUARE], [0, *FAR]]]
    tree = tree_by_hand(objects, true)
    found = detection.lrp(tree, threshold=0.0).sel({"class": "red"})
    assert float(found["lrp"]) == pytest.approx(2.4 / 3)
    parts = [float(found[f"{name}"]) for name in ("localisation", "false_share", "missed_share")]
    np.testing.assert_allclose(parts, [0.2, 0.5, 0.5])
    best = detection.lrp(tree).sel({"class": "red"})
    assert float(best["lrp"]) == pytest.approx(1.4 / 2) and float(best["threshold"]) == 0.9
    assert np.isnan(detection.lrp(tree)["lrp"].sel({"class": "white"}))


def test_where_every_object_is_false_it_is_best_to_keep_none() -> None:
    tree = tree_by_hand([[[0.9, 0, *FAR]]], [[[0, *SQUARE]]])
    found = detection.lrp(tree).sel({"class": "red"})
    assert float(found["lrp"]) == 1 and float(found["threshold"]) == np.inf


def kept_rows(objects: list, limits: list[float]) -> list:
    """Rows of the objects that are left."""
    return [[row for row in rows if row[0] >= limits[int(row[1])]] for rows in objects]


def test_thresholds_leave_the_objects_above_them() -> None:
    """As if the others had never been; also those of a reader who takes one number."""
    objects, true = random_rows(20, 8)
    tree = tree_by_hand(objects, true, classes=CLASSES)
    learnt = detection.thresholds(tree_by_hand(*random_rows(30, 9), classes=CLASSES, prefix="v"))
    expected = tree_by_hand(kept_rows(objects, learnt["threshold"].values.tolist()), true,
                            classes=CLASSES)  # fmt: skip
    found = detection.apply_thresholds(learnt, tree)
    xr.testing.assert_identical(
        found["objects"].to_dataset(), expected["objects"].to_dataset()
    )  # fmt: skip
    assert found.attrs["thresholds"].startswith("red 0.")
    same = detection.apply_thresholds(0.5, tree)
    expected = tree_by_hand(kept_rows(objects, [0.5] * 3), true, classes=CLASSES)
    xr.testing.assert_identical(same["objects"].to_dataset(), expected["objects"].to_dataset())
    at = tree_by_hand([[[0.5, 0, *SQUARE]]], [[]])
    assert int(detection.apply_thresholds(0.5, at)["objects/num_objects"].sum()) == 1
    none = detection.apply_thresholds(1.0, tree)
    assert none["objects"].sizes["box"] == 1 and int(none["objects/num_objects"].sum()) == 0
    assert float(detection.average_precision(none)["map"]) == 0


def test_thresholds_are_for_other_images_and_the_same_classes() -> None:
    tree = detection_tree(20)
    learnt = detection.thresholds(tree)
    with pytest.raises(ValueError, match="learnt on 20 of these"):
        detection.apply_thresholds(learnt, tree)
    names = learnt.assign_coords({"class": ["a", "b", "c"]})
    with pytest.raises(ValueError, match="knows the classes"):
        detection.apply_thresholds(names, detection_tree(5, "other"))
    with pytest.raises(ValueError, match="learnt"):
        detection.apply_thresholds(1.5, tree)
    lone = tree_by_hand([[[0.9, 0, *SQUARE]]], [[[0, *SQUARE]]])
    with pytest.raises(ValueError, match=r"no true box of \['white'\] in its 1 case"):
        detection.thresholds(lone)
    assert detection.thresholds(lone, otherwise=0.4)["threshold"].values.tolist() == [0.9, 0.4]


@pytest.mark.parametrize("hit", ["centre", "iou"])
def test_froc_is_that_of_monai(hit: str) -> None:
    """MONAI leaves the lowest score out, so each image gets a faint false object there."""
    objects, true = random_rows(40, 6)
    faint = [900.0, 900, 910, 910]
    objects = [[*rows, *([1e-3 * (k + 1), k, *faint] for k in range(3))] for rows in objects]
    tree = tree_by_hand(objects, true, classes=CLASSES)
    rates = (0.11, 0.23, 0.52, 0.93)
    found = detection.froc(tree, rates=rates, hit=hit, iou=0.6)
    for label in range(3):
        best, false = [], []
        total = 0
        for score, box, targets in one_class(objects, true, label):
            total += len(targets)
            centre = (box[:, None, :2] + box[:, None, 2:]) / 2
            hits = ((centre > targets[:, :2]) & (centre < targets[:, 2:])).all(-1)
            if hit == "iou":
                hits = overlaps(box, targets) >= 0.6
            best += [score[column].max() for column in hits.T if column.any()]
            false += score[~hits.any(1)].tolist()
        curve = compute_froc_curve_data(np.array(false), np.array(best), total, 40)
        expected = compute_froc_score(*curve, eval_thresholds=rates)
        assert float(found["cpm"][label]) == pytest.approx(float(expected))
        limits = found["threshold"][label].values
        number = [(np.array(false) >= limit).sum() / 40 for limit in limits]
        reached = [(np.array(best) >= limit).sum() / total for limit in limits]
        assert (np.array(number) <= rates).all()
        np.testing.assert_allclose(found["sensitivity"][label], reached)
    assert float(found["cpm_mean"]) == pytest.approx(float(found["cpm"].mean()))


def test_further_hits_are_dropped_and_not_counted() -> None:
    """Three objects in one true box: found once, with the largest score, and none is false."""
    inside = [[0.5, 0, 2, 2, 8, 8], [0.9, 0, 1, 1, 9, 9], [0.7, 0, *SQUARE]]
    tree = tree_by_hand([[*inside, [0.6, 0, *FAR]], []], [[[0, *SQUARE]], [[0, *FAR]]])
    found = detection.froc(tree, rates=(0.25, 0.5, 1.0)).sel({"class": "red"})
    np.testing.assert_allclose(found["sensitivity"], 0.5)
    np.testing.assert_allclose(found["threshold"], [0.9, 0.6, 0.6])
    narrow = detection.froc(tree, rates=(0.5,), hit="iou", iou=0.9).sel({"class": "red"})
    np.testing.assert_allclose(narrow["sensitivity"], [0.5])
    np.testing.assert_allclose(narrow["threshold"], [0.7])
    assert found.attrs["hit"] == "centre in the true box"


def test_a_curve_never_falls_and_ends_at_the_recall_of_all_objects() -> None:
    found = detection.froc(detection_tree(30))
    assert (found["curve"].diff("false_objects_of_curve") >= 0).all()
    np.testing.assert_allclose(found["cpm"], found["sensitivity"].mean("false_objects"))
    np.testing.assert_allclose(found["curve"][:, -1], found["sensitivity"][:, -1])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rates", {"rates": (2.0, 1.0)}),
        ("rates", {"rates": (0.0, 1.0)}),
        ("hit", {"hit": "corner"}),
        ("iou", {"iou": 1.0}),
    ],
)
def test_malformed_arguments_of_froc_are_named(name: str, options: dict) -> None:
    with pytest.raises(ValueError, match=name):
        detection.froc(detection_tree(3), **options)
