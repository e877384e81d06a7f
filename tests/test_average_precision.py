"""Average precision of boxes against pycocotools and faster-coco-eval, and by hand."""

from itertools import permutations
from typing import Literal, TypeAlias

import numpy as np
import pytest
import torch
import xarray as xr
from detection_trees import detection_tree, random_rows, shuffled, tree_by_hand
from torchmetrics.detection import MeanAveragePrecision

from ppl_med.analysis import detection
from ppl_med.analysis.detection.box_matching import greedy, optimal
from ppl_med.analysis.tree import overlaps

Backend: TypeAlias = Literal["pycocotools", "faster_coco_eval"]

SQUARE = [0.0, 0, 10, 10]


def coco(tree: xr.DataTree, backend: Backend, most: int = 100) -> dict[str, torch.Tensor]:
    """What torchmetrics makes of a tree."""
    metric = MeanAveragePrecision(
        backend=backend,
        class_metrics=True,
        max_detection_thresholds=[1, 10, most],
        # Its own are rounded to single precision, which moves a recall of exactly 0.07.
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
    )
    metric.warn_on_many_detections = False
    found, true = tree["objects"].to_dataset(), tree["observed_data"].to_dataset()
    share = found["class_probs"].max("class")
    predictions, targets = [], []
    for case in range(found.sizes["case"]):
        kept = np.flatnonzero(found["label"][case] >= 0)
        known = np.flatnonzero(true["box_label"][case] >= 0)
        predictions.append({
            "boxes": torch.tensor(found["edge_mean"].values[case, kept]),
            "scores": torch.tensor((found["p_exists"] * share).values[case, kept]),
            "labels": torch.tensor(found["label"].values[case, kept]),
        })  # fmt: skip
        targets.append({
            "boxes": torch.tensor(true["box_edge"].values[case, known]),
            "labels": torch.tensor(true["box_label"].values[case, known]),
        })  # fmt: skip
    metric.update(predictions, targets)
    return metric.compute()


@pytest.mark.parametrize("backend", ["pycocotools", "faster_coco_eval"])
def test_average_precision_is_that_of_coco(backend: Backend) -> None:
    """Of images with and without objects and true boxes, of every size."""
    tree = detection_tree(30)
    expected = coco(tree, backend)
    found = detection.average_precision(tree, most=100)
    for name in ("map", "map_50", "map_75"):
        assert float(found[name]) == pytest.approx(float(expected[name]), abs=2e-6), name
    per_class = expected["map_per_class"].numpy()
    np.testing.assert_allclose(found["map_per_class"], per_class, atol=2e-6)
    for size in ("small", "medium", "large"):
        for name, theirs in (("map_per_size", "map"), ("mar_per_size", "mar")):
            mine = float(found[name].sel(size=size))
            assert mine == pytest.approx(float(expected[f"{theirs}_{size}"]), abs=2e-6), size
    assert float(found["mar_per_size"][0]) == pytest.approx(float(expected["mar_100"]), abs=2e-6)


@pytest.mark.parametrize("most", [100, None])
def test_two_hundred_objects_in_an_image(most: int | None) -> None:
    """COCO's cap of 100 is there on request; without it the oracle is told of more."""
    rng = np.random.default_rng(3)
    corner = 12.0 * np.stack(np.meshgrid(np.arange(15), np.arange(14)), -1).reshape(-1, 2)[:200]
    box = np.concatenate([corner, corner + 10], 1)
    moved = box + rng.normal(scale=1.2, size=box.shape)
    score = np.sort(rng.uniform(size=200))[::-1]
    objects = [[[score[i], 0, *moved[i]] for i in range(200)], []]
    true = [[[0, *row] for row in box], [[0, *SQUARE]]]
    tree = tree_by_hand(objects, true, classes=("cell",))
    found = detection.average_precision(tree, most=most)
    assert found.attrs["cut_images"] == (1 if most else 0)
    assert found.attrs["most_objects"] == (100 if most else "all")
    # pycocotools has a mean over all thresholds for a limit of 100 alone.
    expected = coco(tree, "faster_coco_eval", most or 1000)
    assert float(found["map"]) == pytest.approx(float(expected["map"]), abs=2e-6)
    assert float(found["mar_per_size"][0]) <= (100 if most else 200) / 201


def test_average_precision_by_hand() -> None:
    """Hit, false, hit of three: precision 1 up to recall 1/3, then 2/3 up to 2/3, then nothing."""
    far = [50.0, 50, 60, 60]
    objects = [[[0.9, 0, *SQUARE], [0.8, 0, 70, 70, 80, 80], [0.7, 0, *far]], []]
    true = [[[0, *SQUARE], [0, *far]], [[0, *SQUARE]]]
    found = detection.average_precision(tree_by_hand(objects, true, classes=("cell",)))
    expected = (34 * 1 + 33 * 2 / 3) / 101
    np.testing.assert_allclose(found["ap"].sel(size="all"), expected)
    np.testing.assert_allclose(found["mar_per_size"].sel(size="all"), 2 / 3)
    assert found.attrs["num_cases"] == 2 and found.attrs["cases_without_true_boxes"] == 0


def test_objects_of_equal_confidence_pass_together() -> None:
    """A hit and a false object of one score are one threshold of precision 1/2, in any order."""
    wrong = [70.0, 70, 80, 80]
    for boxes in ((SQUARE, wrong), (wrong, SQUARE)):
        objects = [[[0.5, 0, *box] for box in boxes]]
        tree = tree_by_hand(objects, [[[0, *SQUARE]]], classes=("cell",))
        assert float(detection.average_precision(tree)["map"]) == pytest.approx(0.5)


def test_nothing_found_and_nothing_there() -> None:
    """A class without true boxes has no average; one without objects has none found."""
    found = detection.average_precision(tree_by_hand([[]], [[[0, *SQUARE]]]))
    assert found["map_per_class"].values[0] == 0 and np.isnan(found["map_per_class"].values[1])
    assert float(found["map"]) == 0
    healthy = detection.average_precision(tree_by_hand([[[0.9, 0, *SQUARE]]], [[]]))
    assert np.isnan(healthy["map"]) and healthy.attrs["cases_without_true_boxes"] == 1
    other = detection.average_precision(
        tree_by_hand([[[0.9, 0, *SQUARE]]], [[[0, *SQUARE]]]), thresholds=(0.6,)
    )
    assert float(other["map"]) == 1 and np.isnan(other["map_50"])


def test_boxes_without_area_are_left_out_and_counted() -> None:
    """As if they were not there: an object of no area meets nothing."""
    flat = [5.0, 5, 5, 9]
    objects = [[[0.9, 0, *SQUARE], [0.3, 0, *flat]]]
    with_flat = tree_by_hand(objects, [[[0, *SQUARE], [0, *flat]]])
    without = tree_by_hand(objects, [[[0, *SQUARE]]])
    for function in (
        detection.average_precision,
        detection.lrp,
        detection.froc,
        detection.pdq,
        detection.calibration_errors,
        detection.existence,
        detection.edge_coverage,
    ):
        found, expected = function(with_flat), function(without)
        xr.testing.assert_equal(found, expected)
        assert (found.attrs["left_out"], expected.attrs["left_out"]) == (1, 0)
        assert found.attrs["num_true"] == 1


@pytest.mark.parametrize("name", ["average_precision", "lrp", "froc", "pdq", "calibration_errors",
                                  "existence", "edge_coverage", "thresholds",
                                  "fit_confidence"])  # fmt: skip
def test_the_order_of_objects_and_true_boxes_does_not_matter(name: str) -> None:
    """Also where scores are equal, as shares of a few draws are."""
    tree = detection_tree(30)
    group = tree["objects"].to_dataset()
    tied = group.assign(p_exists=np.ceil(5 * group["p_exists"]) / 5)
    tree["objects"] = xr.DataTree(tied)
    function = getattr(detection, name)
    for seed in range(3):
        xr.testing.assert_allclose(function(shuffled(tree, seed)), function(tree), rtol=1e-9)


def test_greedy_takes_the_best_free_box_by_falling_score() -> None:
    """The second object loses the box that the first took, and takes its second best."""
    overlap = np.array([[0.9, 0.6], [0.8, 0.7], [0.95, 0.0]])
    pairs = greedy(overlap, np.array([0.5, 0.75]))
    np.testing.assert_array_equal(pairs, [[0, 1, -1], [0, -1, -1]])
    ignoring = greedy(overlap, np.array([0.5]), np.array([True, False]))
    np.testing.assert_array_equal(ignoring, [[1, 0, -1]])
    assert (greedy(np.zeros((2, 2)), np.array([0.0])) == -1).all()


def test_the_optimal_pairs_are_the_best_of_all() -> None:
    """Against every permutation; a quality of 0 is no pair."""
    quality = np.random.default_rng(5).random((4, 4)) * (np.arange(4) != 2)
    rows, columns = optimal(quality)
    best = max(sum(quality[i, j] for i, j in enumerate(one)) for one in permutations(range(4)))
    assert quality[rows, columns].sum() == pytest.approx(best)
    assert len(rows) == 3 and 2 not in columns


def test_overlap_of_boxes() -> None:
    """Half overlap, none, the same, and boxes turned inside out."""
    second = np.array([[5.0, 0, 15, 10], [10, 0, 20, 10], [0, 0, 10, 10], [9, 9, 1, 1]])
    np.testing.assert_allclose(overlaps(np.array([SQUARE]), second), [[1 / 3, 0, 1, 0]])


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("thresholds", {"thresholds": (0.9, 0.5)}),
        ("thresholds", {"thresholds": ()}),
        ("thresholds", {"thresholds": (0.0, 0.5)}),
        ("sides", {"sides": (96.0, 32.0)}),
        ("most", {"most": 0}),
    ],
)
def test_malformed_arguments_are_named(argument: str, options: dict) -> None:
    with pytest.raises(ValueError, match=argument):
        detection.average_precision(detection_tree(3), **options)


def malformed(name: str, group: str, change: object) -> xr.DataTree:
    """A tree with one variable changed."""
    tree = tree_by_hand([[[0.9, 0, *SQUARE], [0.4, 1, *SQUARE]]], [[[0, *SQUARE]]])
    data = tree[group].to_dataset()
    values = data[name].values.copy()
    change(values)  # type: ignore[operator]
    tree[group] = xr.DataTree(data.assign({name: (data[name].dims, values)}))
    return tree


def put(place: object, value: float) -> object:
    """A function that writes a value into an array."""
    return lambda values: values.__setitem__(place, value)


@pytest.mark.parametrize(
    ("name", "group", "change", "message"),
    [
        ("p_exists", "objects", put((0, 0), 1.5), "p_exists must be a probability"),
        ("edge_mean", "objects", put((0, 1, 2), np.nan), "edge_mean must be finite"),
        ("class_probs", "objects", put((0, 0, 0), 0.2), "class_probs must be of sum 1"),
        ("label", "objects", put((0, 0), 2), "label must be a class from 0 to 1"),
        ("box_label", "observed_data", put((0, 0), 2), "they count no background"),
        ("box_label", "observed_data", put((0, 0), -1), "box_edge must be finite where box_label"),
        (
            "box_edge",
            "observed_data",
            put((0, 0, 1), np.nan),
            "box_edge must be finite where box_label",
        ),
        ("box_edge", "observed_data", put((0, 0, 2), -5.0), "each min at most its max"),
    ],
)
def test_damaged_trees_are_refused(name: str, group: str, change: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detection.average_precision(malformed(name, group, change))


def test_other_things_than_trees_of_objects_are_refused() -> None:
    tree = detection_tree(3)
    with pytest.raises(TypeError, match="DataTree"):
        detection.lrp(tree["objects"].to_dataset())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"detection\.objects"):
        detection.lrp(tree.filter(lambda node: node.name != "objects"))
    with pytest.raises(ValueError, match="observed_data"):
        detection.lrp(tree.filter(lambda node: node.name != "observed_data"))
    readers = tree.copy()
    true = tree["observed_data"].to_dataset().drop_vars("box_edge").expand_dims(grader=2, axis=1)
    box = tree["observed_data"].to_dataset()["box_edge"]
    both = true.assign(box_edge=(("case", "grader", "box", "edge"), np.stack([box.values] * 2, 1)))
    readers["observed_data"] = xr.DataTree(both)
    with pytest.raises(ValueError, match="of one reader"):
        detection.lrp(readers)
    other = tree.copy()
    other["observed_data"] = xr.DataTree(tree["observed_data"].to_dataset().isel(case=[0, 2, 1]))
    with pytest.raises(ValueError, match="same cases"):
        detection.lrp(other)


def test_random_rows_hold_every_kind_of_image() -> None:
    """Images without true boxes, without objects, and with neither reach every oracle here."""
    objects, true = random_rows(30, 1)
    pairs = {(bool(rows), bool(targets)) for rows, targets in zip(objects, true, strict=True)}
    assert {(True, True), (True, False)} <= pairs
