"""Trees of objects made by hand, and at random around true boxes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import norm

EDGES = ["x_min", "y_min", "x_max", "y_max"]
LEVEL = 0.9


def boxes_of(images: Sequence[Sequence[Sequence[float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Pad rows of numbers, image by image: (case, box, number), NaN after the last, and which are.

    An image may have none.
    """
    room = max(1, *(len(rows) for rows in images))
    width = max(len(row) for rows in images for row in rows)
    table = np.full((len(images), room, width), np.nan)
    for case, rows in enumerate(images):
        if len(rows):
            table[case, : len(rows)] = rows
    return table, ~np.isnan(table[..., 0])


def tree_by_hand(
    objects: Sequence[Sequence[Sequence[float]]],
    true: Sequence[Sequence[Sequence[float]]],
    *,
    classes: Sequence[str] = ("red", "white"),
    covariance: np.ndarray | float = 4.0,
    class_share: float = 1.0,
    prefix: str = "c",
) -> xr.DataTree:
    """A tree of objects.

    Args:
        objects: Of every image rows (p_exists, label, x_min, y_min, x_max, y_max).
        true: Of every image rows (label, x_min, y_min, x_max, y_max).
        classes: Names.
        covariance: Of the edges of all objects, or the variance of each.
        class_share: Probability of the label, given that an object is there; the rest goes to the
            other classes in equal parts.
        prefix: Of the ids.
    """
    nothing = [[np.nan] * 6]
    table, there = boxes_of([rows or nothing for rows in objects])
    label = np.where(there, table[..., 1], -1).astype(np.int64)
    others = (1 - class_share) / max(len(classes) - 1, 1)
    share = np.where(np.arange(len(classes)) == label[..., None], class_share, others)
    spread = np.asarray(covariance, float)
    spread = spread if spread.ndim else spread * np.eye(4)
    spread = np.where(there[..., None, None], spread, np.nan)
    variance = np.diagonal(spread, axis1=2, axis2=3)
    reach = norm.isf((1 - LEVEL) / 2) * np.sqrt(variance)
    edges = table[..., 2:]
    per_box, per_edge = ("case", "box"), ("case", "box", "edge")
    p_exists = table[..., 0]
    found: dict[str, Any] = {
        "p_exists": (per_box, p_exists),
        "class_probs": ((*per_box, "class"), np.where(there[..., None], share, np.nan)),
        "label": (per_box, label),
        "edge_mean": (per_edge, edges),
        "edge_epistemic": (per_edge, 0.25 * variance),
        "edge_aleatoric": (per_edge, 0.75 * variance),
        "edge_covariance": ((*per_edge, "other_edge"), spread),
        "edge_lower": (per_edge, edges - reach),
        "edge_upper": (per_edge, edges + reach),
        "score_aleatoric": (per_box, 0.8 * p_exists * (1 - p_exists)),
        "score_epistemic": (per_box, 0.2 * p_exists * (1 - p_exists)),
        "num_members": (per_box, np.where(there, 5.0, np.nan)),
        "num_objects": ("case", there.sum(1)),
    }
    number = len(objects)
    coords = {
        "case": [f"{prefix}{index}" for index in range(number)],
        "age": ("case", 40.0 + np.arange(number)),
        "ward": ("case", np.array(["north", "south"])[np.arange(number) % 2]),
    }
    truth, known = boxes_of([rows or [[np.nan] * 5] for rows in true])
    observed = {
        "box_edge": (per_edge, truth[..., 1:]),
        "box_label": (per_box, np.where(known, truth[..., 0], -1).astype(np.int64)),
    }
    edge = {"edge": EDGES}
    groups = {
        "/": xr.Dataset(attrs={"level": LEVEL, "draws": 5}),
        "/objects": xr.Dataset(
            found, coords | edge | {"class": list(classes)}, {"level": LEVEL, "draws": 5}
        ),
        "/observed_data": xr.Dataset(observed, coords | edge),
    }
    return xr.DataTree.from_dict(groups)


def random_rows(
    number: int, seed: int, *, most: int = 8, num_classes: int = 3, side: float = 200.0
) -> tuple[list[list[list[float]]], list[list[list[float]]]]:
    """Objects near true boxes, some false, missed or of another class; some images are empty."""
    rng = np.random.default_rng(seed)
    objects: list[list[list[float]]] = []
    true: list[list[list[float]]] = []
    for case in range(number):
        rows, targets = [], []
        for _ in range(0 if case % 6 == 3 else int(rng.integers(1, most + 1))):
            label = int(rng.integers(num_classes))
            corner, extent = rng.uniform(0, side, 2), np.exp(rng.uniform(2.0, 4.9, 2))
            box = np.concatenate([corner, corner + extent])
            targets.append([label, *box])
            for _ in range(int(rng.choice([0, 1, 1, 1, 2]))):
                moved = box + 0.12 * extent[[0, 1, 0, 1]] * rng.normal(size=4)
                named = label if rng.random() < 0.9 else int(rng.integers(num_classes))
                rows.append([rng.beta(4, 2), named, *moved])
        for _ in range(0 if case % 6 == 4 else int(rng.integers(0, 4))):
            corner, extent = rng.uniform(0, side, 2), np.exp(rng.uniform(2.0, 4.9, 2))
            named = int(rng.integers(num_classes))
            rows.append([rng.beta(2, 3), named, *corner, *(corner + extent)])
        rows.sort(key=lambda row: -row[0])
        objects.append(rows)
        true.append(targets)
    return objects, true


def detection_tree(number: int = 12, prefix: str = "c") -> xr.DataTree:
    """Random objects of three classes."""
    rows = random_rows(number, len(prefix))
    return tree_by_hand(*rows, classes=("red", "white", "platelet"), class_share=0.9, prefix=prefix)


def graded_tree(number: int = 12, prefix: str = "c", readers: int = 3) -> xr.DataTree:
    """Random objects, and boxes of several readers of whom each misses some."""
    tree = detection_tree(number, prefix)
    truth = tree["observed_data"].to_dataset()
    rng = np.random.default_rng(5)
    edges, labels = [], []
    for _ in range(readers):
        missed = (rng.random(truth["box_label"].shape) < 0.2) | (truth["box_label"].values < 0)
        order = np.argsort(missed, 1, kind="stable")
        box = truth["box_edge"].values + 0.5 * rng.normal(size=truth["box_edge"].shape)
        box = np.where(missed[..., None], np.nan, box)
        edges.append(np.take_along_axis(box, order[..., None], 1))
        labels.append(np.take_along_axis(np.where(missed, -1, truth["box_label"]), order, 1))
    dims = ("case", "grader", "box")
    own = {
        "box_edge": ((*dims, "edge"), np.stack(edges, 1)),
        "box_label": (dims, np.stack(labels, 1)),
    }
    tree["observed_data"] = xr.DataTree(truth.drop_vars(own).assign(own))
    return tree


def shuffled(tree: xr.DataTree, seed: int) -> xr.DataTree:
    """The tree with the objects and the true boxes of every image in another order."""
    rng = np.random.default_rng(seed)
    result = tree.copy()
    for name in ("objects", "observed_data"):
        group = tree[name].to_dataset()
        rows = np.tile(np.arange(group.sizes["box"]), (group.sizes["case"], 1))
        places = {
            "case": xr.DataArray(np.arange(len(rows)), dims="case"),
            "box": xr.DataArray(rng.permuted(rows, axis=1), dims=("case", "box")),
        }
        moved = {
            str(key): (array.dims, array.isel(places).transpose(*array.dims).values)
            for key, array in group.data_vars.items()
            if "box" in array.dims
        }
        result[name] = xr.DataTree(group.assign(moved))
    return result


def drawn_boxes(number: int = 12, prefix: str = "c") -> xr.DataTree:
    """The tree of `predict` of a detector: two chains of three draws of up to three boxes."""
    random = np.random.default_rng(2)
    start = np.array([[2.0, 2], [20, 4], [6, 30]])
    true = np.concatenate([start, start + np.array([12, 10])], 1)
    sizes = (2, 3, number, 3)
    loc = true + random.normal(size=(*sizes, 4))
    probs = random.dirichlet([2, 2, 1], sizes)[..., :2]
    absent = random.random(sizes) < 0.2
    loc[absent], probs[absent] = np.nan, np.nan
    scale = np.where(absent[..., None], np.nan, random.uniform(0.5, 2, loc.shape))
    dims = ("chain", "draw", "case", "box")
    cases: dict[str, Any] = {
        "case": [f"{prefix}{index}" for index in range(number)],
        "age": ("case", 40.0 + np.arange(number)),
        "ward": ("case", ["a", "b"] * (number // 2)),
    }
    posterior = xr.Dataset(
        {
            "edge_loc": ((*dims, "edge"), loc),
            "edge_scale": ((*dims, "edge"), scale),
            "box_probs": ((*dims[:3], "class", "box"), np.swapaxes(probs, -1, -2)),
        },
        cases | {"class": ["red", "white"], "edge": EDGES},
    )
    label = np.tile([0, 1, -1], (number, 1))
    edges = np.where(label[..., None] < 0, np.nan, true)
    observed = xr.Dataset(
        {"box_edge": (("case", "box", "edge"), edges), "box_label": (("case", "box"), label)},
        cases | {"edge": EDGES},
    )
    return xr.DataTree.from_dict({"posterior": posterior, "observed_data": observed})
