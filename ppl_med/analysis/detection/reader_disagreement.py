"""How far readers' boxes of the same object lie apart: the noise on their edges.

Boxes of one class, of all readers of an image, are joined by the rule by which `objects` joins
draws: readers who overlap are of one object, two boxes of one reader never. Of an object that m
readers marked, m >= 2, and their edges x_1..x_m,

    variance  =  sum over objects, readers (x - mean of the object)^2  /  sum over objects (m - 1)

which is unbiased for the variance of one reader's edge, whatever m, where readers err independently
about a common place. A bias that all readers share cannot be seen. Readers of whom no two overlap
by ``iou`` are taken to mean two objects, so that noise of the size of the objects is understated;
``num_alone`` counts the boxes that nobody shared.

Where the tree holds objects that a detector predicted, ``predicted`` is the root of their mean
aleatoric variance, of those that found such an object. A detector trained on all readers learns the
same noise from the images alone, besides what no image shows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ppl_med.analysis.detection.box_matching import greedy
from ppl_med.analysis.detection.draws_to_objects import joined_draws
from ppl_med.analysis.detection.image_figures import ratio
from ppl_med.analysis.detection.open_objects import FoundObjects, open_objects, true_boxes
from ppl_med.analysis.statistics.case_means import ratio_error
from ppl_med.analysis.tree import case_units, class_names, find_group, observed_boxes, overlaps
from ppl_med.analysis.tree.geometry import pixel_spacing
from ppl_med.axes import EDGES
from ppl_med.checks import different_names, inside, reject

_Sums = dict[str, np.ndarray]


def reader_spread(
    boxes: xr.DataTree | Mapping[str, Any],
    *,
    iou: float = 0.5,
    group: str | xr.DataArray | None = None,
    classes: Sequence[str] | None = None,
) -> xr.Dataset:
    """Standard deviation of each edge between readers of the same object, by class.

    Args:
        boxes: A tree of `predict` or of `objects` whose observed boxes have an axis ``grader``; or
            arrays as the readers of data give them: "box" (case, grader, box, 4) in pixels and
            "box_label" (case, grader, box), optionally "id", "spacing" (row, col) in mm, "patient".
        iou: From which on boxes of two readers are of one object, in (0, 1).
        group: What is independent: a column of constant_data, the groups (case), or "case"; None is
            the patient where there is such a column, and else the image.
        classes: Names of the classes of arrays; of a tree they are known.

    Returns:
        Dataset of ``spread`` and ``spread_se`` (class, edge) in pixels; ``num_objects`` that two or
        more readers marked and ``num_alone``, boxes of one reader alone (class). Where the spacing
        of pixels is known, ``spread_mm`` and ``spread_mm_se``. Of a tree of objects ``predicted``,
        ``predicted_se`` in pixels, and ``ratio`` = predicted / spread with ``ratio_se``. NaN where
        no two readers share an object.

    Raises:
        TypeError, ValueError: No boxes of several readers, or a malformed argument.
    """
    inside("iou", iou)
    tree = boxes if isinstance(boxes, xr.DataTree) else _tree(boxes)
    label = observed_boxes(tree)[1]
    if "grader" not in label.dims or label.sizes["grader"] < 2:
        reject("boxes", "of two readers or more, axis 'grader'", dict(label.sizes))
    names = _names(tree, label, classes)
    per_case, reference = label.isel(grader=0, drop=True), label.sizes["case"]
    marks = [
        true_boxes(tree.isel(grader=k, missing_dims="ignore"), per_case, len(names), all_read=False)
        for k in range(label.sizes["grader"])
    ]
    found = None
    if "objects" in tree.children:
        found = open_objects(tree, "edge_aleatoric", truth=False)
    spacing = pixel_spacing(tree, 2)
    scale = np.full((reference, 4), np.nan) if spacing is None else spacing[:, [1, 0, 1, 0]]
    sums = _sums(marks, found, scale, (reference, len(names)), iou)
    unit, kind = case_units(tree, group, per_case)
    member = (np.arange(unit.max(initial=-1) + 1)[:, None] == unit).astype(np.float64)
    by_unit = {name: np.tensordot(member, one, 1) for name, one in sums.items()}
    result = xr.Dataset(coords={"class": names, "edge": list(EDGES)})
    free = by_unit["free"][..., None]
    _add(result, "spread", by_unit["square"], free, "pixels")
    if spacing is not None:
        _add(result, "spread_mm", by_unit["square_mm"], free, "mm")
    for name in ("num_objects", "num_alone"):
        result[name] = ("class", sums[name].sum(0).astype(np.int64))
    if found is not None:
        number = by_unit["number"][..., None]
        _add(result, "predicted", by_unit["aleatoric"], number, "pixels")
        _add_ratio(result, by_unit)
    empty = np.sum([one[3] for one in marks])
    return result.assign_attrs(
        iou=iou, num_graders=len(marks), num_cases=reference, left_out=int(empty), left_out_cases=0,
        unit=kind, num_units=len(member),
    )  # fmt: skip


def _tree(arrays: Any) -> xr.DataTree:
    """Arrays of a data set as a tree."""
    if not isinstance(arrays, Mapping):
        raise TypeError(
            f"boxes must be a DataTree or a dict of arrays, not {type(arrays).__name__}"
        )
    if missing := {"box", "box_label"} - arrays.keys():
        raise ValueError(f"boxes lacks {sorted(missing)}; its keys are {sorted(arrays)}")
    box, label = (np.asarray(arrays[name]) for name in ("box", "box_label"))
    if label.ndim != 3 or box.shape != (*label.shape, 4):
        raise ValueError(
            f"box has shape {box.shape} and box_label {label.shape}; expected (case, grader, box, "
            "4) and (case, grader, box): boxes of two readers or more"
        )
    dims, ids = ("case", "grader", "box"), np.asarray(arrays.get("id", np.arange(len(label))))
    columns: dict[str, Any] = {}
    if "spacing" in arrays:
        columns["spacing"] = (("case", "axis"), np.asarray(arrays["spacing"]))
    if "patient" in arrays:
        columns["patient"] = ("case", np.asarray(arrays["patient"]))
    observed = {"box_edge": ((*dims, "edge"), box), "box_label": (dims, label)}
    return xr.DataTree.from_dict(
        {
            "observed_data": xr.Dataset(observed, {"case": ids}),
            "constant_data": xr.Dataset(columns, {"case": ids}),
        }
    )


def _names(tree: xr.DataTree, label: xr.DataArray, classes: Sequence[str] | None) -> list[str]:
    for group, name in (("objects", "class_probs"), ("posterior", "box_probs")):
        if name in find_group(tree, group):
            known = class_names(find_group(tree, group)[name])
            if classes is not None and list(classes) != known:
                reject("classes", f"those of the tree, {known}", list(classes))
            return known
    if classes is not None:
        return list(different_names("classes", classes))
    return [str(index) for index in range(max(1, int(label.max()) + 1))]


def _sums(
    marks: Sequence[tuple[np.ndarray, ...]],
    found: FoundObjects | None,
    scale: np.ndarray,
    shape: tuple[int, int],
    iou: float,
) -> _Sums:
    """What is added up, by image and class."""
    sums = {name: np.zeros(shape) for name in ("free", "number", "num_objects", "num_alone")}
    sums |= {name: np.zeros((*shape, 4)) for name in ("square", "square_mm", "aleatoric")}
    predicted = [] if found is None else [mine for mine, _ in found.images()]
    ends = [np.searchsorted(of, np.arange(shape[0] + 1)) for of, _, _, _ in marks]
    for case in range(shape[0]):
        rows = [slice(*end[case : case + 2]) for end in ends]
        mine_of = [(one[1][row], one[2][row]) for one, row in zip(marks, rows, strict=True)]
        for kind in np.unique(np.concatenate([label for label, _ in mine_of])):
            own = [box[label == kind] for label, box in mine_of]
            loc = np.full((len(own), max(map(len, own)), 4), np.nan)
            for reader, box in enumerate(own):
                loc[reader, : len(box)] = box
            sure = np.where(np.isnan(loc[..., :1]), np.nan, 1.0)
            joined = joined_draws(loc, loc, sure, iou)[0]
            count = np.isfinite(joined[..., 0]).sum(0)
            at = case, kind
            sums["num_alone"][at] = (count == 1).sum()
            joined, count = joined[:, count > 1], count[count > 1]
            middle = np.nanmean(joined, 0) if len(count) else np.zeros((0, 4))
            square = np.nansum((joined - middle) ** 2, (0, 1))
            sums["square"][at], sums["square_mm"][at] = square, square * scale[case] ** 2
            sums["free"][at], sums["num_objects"][at] = (count - 1).sum(), len(count)
            if found is not None:
                mine = predicted[case]
                pairs = greedy(overlaps(found.box[mine], middle), np.array([iou]))[0] >= 0
                sums["aleatoric"][at] = found.others["edge_aleatoric"][mine][pairs].sum(0)
                sums["number"][at] = pairs.sum()
    return sums


def _add(result: xr.Dataset, name: str, part: np.ndarray, whole: np.ndarray, units: str) -> None:
    """Add the root of a mean of squares, with its error over units."""
    whole = np.broadcast_to(whole, part.shape)
    root = np.sqrt(ratio(part.sum(0), whole.sum(0)))
    result[name] = (("class", "edge"), root, {"units": units})
    error = ratio(ratio_error(part, whole), 2 * root)
    result[f"{name}_se"] = (("class", "edge"), error, {"units": units})


def _add_ratio(result: xr.Dataset, sums: _Sums) -> None:
    """Add predicted / spread, with the error over units of both together."""
    parts = [sums["aleatoric"], sums["number"][..., None], sums["square"], sums["free"][..., None]]
    shares = [ratio(one, one.sum(0)) for one in parts]
    influence = shares[0] - shares[1] - shares[2] + shares[3]
    used = (sums["free"] > 0).sum(0)[:, None]
    square = (influence**2).sum(0) * ratio(used, used - 1.0)
    found = ratio(result["predicted"].values, result["spread"].values)
    result["ratio"] = (("class", "edge"), found, {"units": "1"})
    result["ratio_se"] = (("class", "edge"), found * np.sqrt(square) / 2, {"units": "1"})
