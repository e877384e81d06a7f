"""Sections of a tree of boxes: the objects that its draws agree on, and how good they are."""

import numpy as np
import xarray as xr

from ppl_med.analysis import detection
from ppl_med.analysis.detection.open_objects import object_group, open_objects
from ppl_med.analysis.tree import find_group
from ppl_med.plots.detection import boxes, froc
from ppl_med.plots.report.images import CaseImages
from ppl_med.plots.report.page import data_table, paragraph, picture

_SHOWN = 4
_VARIANCES = ("score_aleatoric", "score_epistemic")
_LIMITS = ("edge_lower", "edge_upper")


def joined(tree: xr.DataTree) -> xr.DataTree:
    """The objects of a tree; of kept anchors by their means."""
    aligned = "anchor" in find_group(tree, "posterior")["edge_loc"].dims
    return detection.objects(tree, merge="anchors" if aligned else "boxes")


def box_scores(found: xr.DataTree, group: str | None) -> str:
    """Return precision, place and calibration, and the curve of free response."""
    if "box_edge" not in find_group(found, "observed_data"):
        raise ValueError("no boxes were observed")
    precision, error = detection.average_precision(found), detection.lrp(found)
    quality, curve = detection.pdq(found), detection.existence(found, group=group)
    edges = detection.edge_coverage(found, threshold=0.5, group=group)
    level = object_group(found).attrs["level"]
    rows: list[tuple[object, ...]] = [
        ("average precision at an overlap of 0.5", float(precision["map_50"])),
        ("average precision, mean of 0.5 to 0.95", float(precision["map"])),
        ("optimal LRP error, mean over classes", float(error["lrp_mean"])),
        ("PDQ of objects with a confidence of 0.5 or more", float(quality["pdq"])),
        ("calibration error of p(exists)", float(curve["ece"])),
        (f"edges inside their {level:.0%} intervals", float(edges["coverage"].mean())),
    ]
    free = detection.froc(found)
    alt = f"Sensitivity against false objects an image; mean CPM {float(free['cpm_mean']):.3f}."
    return data_table("Scores of objects", ("figure", "value"), rows) + picture(froc(free), alt)


def object_table(found: xr.DataTree) -> str:
    """Return every object with what is known of it, the most probable of each case first."""
    own = open_objects(found, *_VARIANCES, *_LIMITS, truth=False)
    edges = object_group(found)["edge"].values
    head = ["case", "class", "p(exists)", "aleatoric", "epistemic"]
    for edge in edges:
        head += [str(edge), f"{edge} lower", f"{edge} upper"]
    ids = _ids(found)
    lower, upper = (own.others[name] for name in _LIMITS)
    rows = [
        [str(ids[own.case[i]]), str(own.names[own.label[i]]), float(own.p_exists[i]),
         *(float(own.others[name][i]) for name in _VARIANCES),
         *np.stack([own.box[i], lower[i], upper[i]], 1).ravel().tolist()]
        for i in np.lexsort([-own.p_exists, own.case]).tolist()
    ]  # fmt: skip
    return data_table("Objects", head, rows, most=12)


def box_pictures(found: xr.DataTree, images: CaseImages | None) -> str:
    """Return the pictures of the cases whose number of objects is least sure."""
    if images is None:
        raise ValueError("pass images=..., one per case, to see the boxes over them")
    group = object_group(found)
    spread = (group["score_aleatoric"] + group["score_epistemic"]).sum("box").values
    ids, body = _ids(found), ""
    for case in np.argsort(-spread, kind="stable")[:_SHOWN].tolist():
        alt = f"Objects of {ids[case]} with the intervals of their edges."
        body += picture(boxes(images.slice(case)[None], found, ids[case]), alt, wide=True)
    return body


def told(found: xr.DataTree) -> str:
    """Return how many objects there are, in a sentence."""
    group = object_group(found)
    expected = float(group["p_exists"].sum("box").mean())
    return paragraph(
        f"{int(group.attrs['draws'])} draw(s) joined at an overlap of {group.attrs['overlap']:g}: "
        f"{expected:.1f} objects are expected in a case."
    )


def _ids(found: xr.DataTree) -> np.ndarray:
    group = object_group(found)
    return np.asarray(
        group["case"].values if "case" in group.coords else np.arange(group.sizes["case"])
    )
