"""Which objects to keep: thresholds of the confidence, learnt on some images, applied to others.

Every class keeps the threshold of least LRP. Figures of calibration and of quality are compared at
those, as a detector that keeps all its doubtful objects, or nearly none, would look better or worse
for that alone.

Source: Kuzucu, Oksuz et al., ECCV 2024, arXiv:2405.20459.
"""

from typing import Any

import numpy as np
import xarray as xr

from ppl_med.analysis.calibration.learnt_cases import check_other_cases, check_same_classes
from ppl_med.analysis.detection.localisation_recall import plan
from ppl_med.analysis.detection.open_objects import known_cases, object_group, open_objects
from ppl_med.checks import finite, reject


def thresholds(
    tree: xr.DataTree, *, iou: float = 0.5, otherwise: float | None = None
) -> xr.Dataset:
    """Learn the confidence threshold of least LRP of every class.

    Args:
        tree: A tree of `objects` with true boxes, of images that are not tested on.
        iou: From which on an object is the true box, in (0, 1).
        otherwise: Threshold of a class without true boxes here; None refuses such classes.

    Returns:
        Dataset of ``threshold`` (class), infinite where it is best to keep nothing, and ``lrp``
        (class), with the ids of the cases as ``case``.

    Raises:
        TypeError, ValueError: No tree of objects with true boxes, cases without ids, or a class
            without true boxes.
    """
    if otherwise is not None:
        finite("otherwise", otherwise, 0, 1)
    figures = plan(tree, iou=iou)
    found = figures.dataset()[["threshold", "lrp"]]
    unknown = found["threshold"].isnull()
    if unknown.any() and otherwise is None:
        names = found["class"].values[unknown.values].tolist()
        raise ValueError(
            f"tree has no true box of {names} in its {found.attrs['num_cases']} case(s), so no "
            "threshold can be learnt; use more images, or say what to take by otherwise=0.5"
        )
    found["threshold"] = found["threshold"].fillna(otherwise if otherwise is not None else np.nan)
    return found.assign_coords(known_cases(figures.found))


def apply_thresholds(learnt: xr.Dataset | float, tree: xr.DataTree) -> xr.DataTree:
    """Leave out the objects below the threshold of their class.

    Args:
        learnt: As `thresholds` gives it, or one number for all classes.
        tree: A tree of `objects`, of other images.

    Returns:
        The tree with the objects that are left moved together, and the attribute ``thresholds``.

    Raises:
        TypeError, ValueError: No tree of objects, other classes, or images among those that the
            thresholds were learnt on.
    """
    found = open_objects(tree, truth=False)
    if isinstance(learnt, xr.Dataset):
        if "threshold" not in learnt:
            reject("learnt", "what ppl_med.analysis.detection.thresholds gives", list(learnt))
        check_same_classes(learnt, found.names)
        check_other_cases(learnt, found.array)
        limit = learnt["threshold"].values
        text = ", ".join(f"{name} {one:.4g}" for name, one in zip(found.names, limit, strict=True))
    else:
        limit = np.full(found.num_classes, finite("learnt", learnt, 0, 1))
        text = f"{float(learnt):g}"
    kept = np.zeros(found.array.shape, bool)
    kept[found.case, found.place] = found.confidence >= limit[found.label]
    result = tree.copy()
    result["objects"] = xr.DataTree(_only(object_group(tree), kept))
    result.attrs = {**tree.attrs, "thresholds": text}
    return result


def _only(group: xr.Dataset, kept: np.ndarray) -> xr.Dataset:
    """The objects kept, in their order from the front of the axis on."""
    count = kept.sum(1)
    room = max(1, int(count.max(initial=0)))
    order = np.argsort(~kept, axis=1, kind="stable")[:, :room]
    places = {"case": xr.DataArray(np.arange(len(kept)), dims="case"),
              "box": xr.DataArray(order, dims=("case", "box"))}  # fmt: skip
    there = xr.DataArray(np.arange(room) < count[:, None], dims=("case", "box"))
    found: dict[str, Any] = {}
    for name, array in group.data_vars.items():
        if not {"case", "box"} <= set(array.dims):
            found[str(name)] = array
            continue
        bare = array.drop_vars([n for n in array.coords if {"case", "box"} & set(array[n].dims)])
        moved = bare.load().isel(places)
        filled = moved.where(there, -1 if array.dtype.kind == "i" else np.nan)
        found[str(name)] = filled.transpose(*array.dims)
    if "num_objects" in found:
        found["num_objects"] = group["num_objects"].copy(data=count)
    coords = {n: one for n, one in group.coords.items() if "box" not in one.dims}
    return xr.Dataset(found, coords, group.attrs)
