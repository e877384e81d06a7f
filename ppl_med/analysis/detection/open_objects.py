"""What the analyses of boxes read off a tree of objects, checked once.

An image whose annotation holds no box counts as one without objects: every object found there is a
false one. Leave images that nobody annotated out of the tree. True boxes without area are left out
and counted; no box overlaps with them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ppl_med.analysis.tree import (
    case_coords,
    case_ids,
    check_cases,
    class_names,
    find_group,
    observed_boxes,
)
from ppl_med.analysis.tree.boxes import NOT_READ
from ppl_med.checks import reject

CONFIDENCE = "confidence"
_SOURCE = "ppl_med.analysis.detection.objects(tree)"
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class FoundObjects:
    """Objects of all images in one row, image by image and in each by falling confidence.

    Objects of equal confidence are ordered by their corners, so that nothing hangs on the order in
    which they came.

    Args:
        names: Of the classes.
        array: ``p_exists`` (case, box), which knows the cases.
        case: Position of the image (object,).
        place: Position along box (object,).
        p_exists: Probability that an object is there (object,).
        confidence: That it is one of its class: p_exists times the probability of its class, or
            what `apply_confidence` made of it (object,).
        label: Most probable class (object,).
        class_probs: Of all classes, given that an object is there (object, class).
        box: Mean of the edges in pixels (object, edge).
        others: Further variables by name (object, ...).
        true_case: Position of the image (true,).
        true_label: Its class (true,).
        true_box: Its edges in pixels (true, edge).
        left_out: True boxes without area (case,).
    """

    names: list[str]
    array: xr.DataArray
    case: np.ndarray
    place: np.ndarray
    p_exists: np.ndarray
    confidence: np.ndarray
    label: np.ndarray
    class_probs: np.ndarray
    box: np.ndarray
    others: dict[str, np.ndarray]
    true_case: np.ndarray
    true_label: np.ndarray
    true_box: np.ndarray
    left_out: np.ndarray

    @property
    def num_cases(self) -> int:
        """Number of images."""
        return int(self.array.sizes["case"])

    @property
    def num_classes(self) -> int:
        """Number of classes, without a background."""
        return len(self.names)

    def images(self) -> Iterator[tuple[slice, slice]]:
        """Yield the objects and the true boxes of every image."""
        cases = np.arange(self.num_cases + 1)
        mine, true = np.searchsorted(self.case, cases), np.searchsorted(self.true_case, cases)
        for case in range(self.num_cases):
            yield slice(*mine[case : case + 2]), slice(*true[case : case + 2])

    def true_per_class(self) -> np.ndarray:
        """Count the true boxes (case, class)."""
        return counted(self.true_case, self.true_label, (self.num_cases, self.num_classes))

    def counts(self) -> dict[str, int]:
        """Attributes of a result: what counts, and what was left out."""
        with_truth = np.unique(self.true_case).size
        return {
            "num_cases": self.num_cases,
            "num_objects": self.case.size,
            "num_true": self.true_case.size,
            "left_out": int(self.left_out.sum()),
            "left_out_cases": 0,
            "cases_without_true_boxes": self.num_cases - with_truth,
        }


def counted(
    rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int], weight: np.ndarray | None = None
) -> np.ndarray:
    """Count entries, or add up their weights, by row and column (row, column)."""
    flat = np.bincount(rows * shape[1] + columns, weight, shape[0] * shape[1])
    return flat.reshape(shape).astype(np.float64)


def object_group(tree: object) -> xr.Dataset:
    """Return the group of objects, not yet read.

    Raises:
        TypeError: ``tree`` is no DataTree.
        ValueError: It has no objects.
    """
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"tree must be the DataTree of {_SOURCE}, not {type(tree).__name__}.")
    if "objects" not in tree.children:
        reject("tree", f"what {_SOURCE} gives", sorted(tree.children), "it has no group 'objects'")
    return find_group(tree, "objects")


def open_objects(tree: object, *needed: str, truth: bool = True) -> FoundObjects:
    """Read the objects of a tree, and the true boxes of its images.

    Args:
        tree: A tree of objects.
        needed: Further variables of the group ``objects``.
        truth: Whether true boxes must be there; without, there are none.

    Raises:
        TypeError: ``tree`` is no DataTree.
        ValueError: A variable is missing or malformed, or holds what it cannot.
    """
    group = object_group(tree)
    wanted = ("p_exists", "class_probs", "label", "edge_mean")
    missing = [name for name in (*wanted, *needed) if name not in group]
    if missing:
        reject("tree", f"what {_SOURCE} gives", sorted(map(str, group.data_vars)),
               f"its objects lack {', '.join(missing)}")  # fmt: skip
    p_exists = _in_order(group["p_exists"], ("case", "box"))
    if not p_exists.sizes["case"]:
        reject("tree", "of one image or more", "none", "look at what cases were chosen by")
    values = {
        "class_probs": _in_order(group["class_probs"], ("case", "box", "class")),
        "label": _in_order(group["label"], ("case", "box")),
        "edge_mean": _in_order(group["edge_mean"], ("case", "box", "edge")),
    }
    for name in needed:
        values[name] = group[name].transpose("case", "box", ...)
    case, place = np.nonzero(~np.isnan(p_exists.values))
    flat = {name: np.asarray(one.values)[case, place] for name, one in values.items()}
    flat["p_exists"] = p_exists.values[case, place].astype(np.float64)
    names = class_names(values["class_probs"])
    _check_objects(flat, len(names))
    flat["label"] = flat["label"].astype(np.int64)
    if CONFIDENCE in group:
        given = _in_order(group[CONFIDENCE], ("case", "box"))
        flat[CONFIDENCE] = given.values[case, place].astype(np.float64)
        _check_probability(CONFIDENCE, flat[CONFIDENCE])
    else:
        own = np.take_along_axis(flat["class_probs"], flat["label"][:, None], 1)[:, 0]
        flat[CONFIDENCE] = flat["p_exists"] * own
    order = np.lexsort((*flat["edge_mean"].T, flat["label"], -flat[CONFIDENCE], case))
    flat = {name: one[order] for name, one in flat.items()}
    true = true_boxes(tree, p_exists, len(names)) if truth else _no_boxes(p_exists)
    return FoundObjects(
        names,
        p_exists,
        case[order],
        place[order],
        flat.pop("p_exists"),
        flat.pop(CONFIDENCE),
        flat.pop("label"),
        flat.pop("class_probs").astype(np.float64),
        flat.pop("edge_mean").astype(np.float64),
        flat,
        *true,
    )


def known_cases(found: FoundObjects) -> dict[str, xr.Variable]:
    """Return the coordinates of the images something is learnt on.

    Raises:
        ValueError: They have no ids, one is missing or appears twice.
    """
    case_ids(found.array, "objects")
    return case_coords(found.array)


def _in_order(array: xr.DataArray, dims: tuple[str, ...]) -> xr.DataArray:
    if set(array.dims) != set(dims):
        reject(f"objects/{array.name}", f"an array over {dims}", array.dims)
    return array.transpose(*dims).load()


def _check_probability(name: str, values: np.ndarray) -> None:
    if not ((values >= -_TOLERANCE) & (values <= 1 + _TOLERANCE)).all():  # NaN compares as False
        reject(f"objects/{name}", "a probability wherever there is an object",
               (float(values.min()), float(values.max())))  # fmt: skip


def _check_objects(flat: dict[str, np.ndarray], num_classes: int) -> None:
    _check_probability("p_exists", flat["p_exists"])
    _check_probability("class_probs", flat["class_probs"])
    gap = np.abs(flat["class_probs"][flat["p_exists"] > 0].sum(1) - 1).max(initial=0)
    if gap > _TOLERANCE:
        reject("objects/class_probs", "of sum 1 over the classes", f"sums {gap:.3g} away from it")
    for name, values in flat.items():
        bad = ~np.isfinite(values.astype(np.float64))
        if bad.any():
            number = int(bad.reshape(len(values), -1).any(1).sum())
            reject(f"objects/{name}", "finite wherever p_exists is", f"{number} that are not")
    outside = (flat["label"] < 0) | (flat["label"] >= num_classes)
    if outside.any():
        reject("objects/label", f"a class from 0 to {num_classes - 1} wherever there is an object",
               np.unique(flat["label"][outside]).tolist())  # fmt: skip


def _no_boxes(p_exists: xr.DataArray) -> tuple[np.ndarray, ...]:
    none = np.zeros(0, np.int64)
    return none, none, np.zeros((0, 4)), np.zeros(p_exists.sizes["case"], np.int64)


def true_boxes(
    tree: Any, like: xr.DataArray, num_classes: int, *, all_read: bool = True
) -> tuple[np.ndarray, ...]:
    """Return image, class and edges of the true boxes, and how many of each image have no area.

    Args:
        tree: Holds the boxes of one reader.
        like: An array whose cases must be those of the boxes.
        num_classes: Number of classes.
        all_read: Whether the reader must have looked at every image; else one has no boxes.

    Raises:
        ValueError: There are none, the reader did not look at an image, those of several readers,
            or malformed ones.
    """
    box_edge, box_label = observed_boxes(tree)
    for array, dims in ((box_edge, ("case", "box", "edge")), (box_label, ("case", "box"))):
        name = f"observed_data/{array.name}"
        if "grader" in array.dims:
            reject(name, "of one reader", array.dims,
                   "choose one: tree.isel(grader=0, missing_dims='ignore')")  # fmt: skip
        if set(array.dims) != set(dims) or array.sizes.get("edge", 4) != 4:
            reject(name, f"an array over {dims}", dict(array.sizes))
        check_cases(array, like, name, "objects/p_exists")
    box = box_edge.transpose("case", "box", "edge").values.astype(np.float64)
    label = box_label.transpose("case", "box").values.astype(np.int64)
    unread = (label == NOT_READ).any(1)
    if unread.any() and all_read:
        reject("observed_data/box_label", "of a reader who looked at every image",
               f"{int(unread.sum())} image(s) with {NOT_READ}, where he did not",
               "choose the others by tree.isel(case=...)")  # fmt: skip
    label = np.where(label == NOT_READ, -1, label)
    if ((label < -1) | (label >= num_classes)).any():
        reject("observed_data/box_label", f"classes from 0 to {num_classes - 1}, -1 after the last",
               (int(label.min()), int(label.max())), "they count no background")  # fmt: skip
    there = np.isfinite(box).all(2)
    if (there != (label >= 0)).any() or (there != ~np.isnan(box).all(2)).any():
        reject("observed_data/box_edge", "finite where box_label is a class, NaN where it is -1",
               f"{int((there != (label >= 0)).sum())} boxes that are not")  # fmt: skip
    side = box[..., 2:] - box[..., :2]
    if (side < 0).any():
        reject("observed_data/box_edge", "x_min, y_min, x_max, y_max with each min at most its max",
               box[(side < 0).any(2)][0].tolist(), "exchange the two")  # fmt: skip
    empty = there & (side == 0).any(2)
    case, place = np.nonzero(there & ~empty)
    edges, labels = box[case, place], label[case, place]
    order = np.lexsort((labels, *edges.T, case))
    return case[order], labels[order], edges[order], empty.sum(1)
