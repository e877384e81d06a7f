"""Free-response ROC: the share of true boxes found at a number of false objects an image.

An object hits every true box of its class in which its centre lies, or with which it overlaps by
enough. A true box is found with the largest confidence among the objects that hit it: further hits
are dropped, they count neither as found nor as false. What hits nothing is false. So no order of
the objects matters, and overlapping true boxes may be found by one object.

Between two thresholds sensitivity is linear in the number of false objects, as in LUNA16; where all
objects together make fewer, it stays at its last value. The mean at 1/8, 1/4, 1/2, 1, 2, 4 and 8
false objects an image is the competition performance metric, CPM.

Sources: Bunch et al., J. Applied Photographic Engineering 4, 1978; Niemeijer et al., IEEE TMI 30,
2011 (CPM); Setio et al., Medical Image Analysis 42, 2017 (LUNA16).
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from ppl_med.analysis.detection.image_figures import Figures, ImageFigures, mean_of_known
from ppl_med.analysis.detection.open_objects import FoundObjects, open_objects
from ppl_med.analysis.statistics.ranking import Ranking, rank, roc
from ppl_med.analysis.tree import overlaps
from ppl_med.checks import choice, inside, positive, reject

RATES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
_POINTS = 120


def froc(
    tree: xr.DataTree, *, rates: Sequence[float] = RATES, hit: str = "centre", iou: float = 0.5
) -> xr.Dataset:
    """Sensitivity at given numbers of false objects an image, and their mean.

    Args:
        tree: A tree of `objects` with true boxes.
        rates: False objects an image, rising.
        hit: "centre": the centre of the object lies in the true box; "iou": they overlap by ``iou``
            or more.
        iou: Least IoU of a hit, in (0, 1), where ``hit`` is "iou".

    Returns:
        Dataset of ``sensitivity`` (class, false_objects), ``threshold``, the least confidence at
        which there are no more false objects (infinite where the first object is one too many),
        ``cpm`` (class), ``cpm_mean`` over classes, and the whole curve ``curve`` (class,
        false_objects_of_curve). NaN for a class without true boxes.

    Raises:
        TypeError, ValueError: No tree of objects with true boxes, or a malformed argument.
    """
    return plan(tree, rates=rates, hit=hit, iou=iou).dataset()


def plan(
    tree: xr.DataTree, *, rates: Sequence[float] = RATES, hit: str = "centre", iou: float = 0.5
) -> ImageFigures:
    """The same, ready for other weights of the images."""
    grid = np.array([positive("rates", one) for one in rates])
    if not len(grid) or (np.diff(grid) <= 0).any():
        reject("rates", "one or more rising numbers above 0", list(rates))
    choice("hit", hit, ("centre", "iou"))
    inside("iou", iou)
    found = open_objects(tree)
    score, false = _hits(found, hit, iou)
    classes = [_ranked(found, label, score, false) for label in range(found.num_classes)]
    true = found.true_per_class()
    fine = np.geomspace(grid[0] / 2, 2 * grid[-1], _POINTS)

    def compute(weight: np.ndarray) -> Figures:
        totals, images = weight @ true, weight.sum()
        rows = [one.counts(weight) for one, _ in classes]
        curves = [
            [
                _sensitivity(*row, total, images * at)
                for row, total in zip(rows, totals, strict=True)
            ]
            for at in (grid, fine)
        ]
        least = [_least(row[1], one[1], images * grid)
                 for row, one in zip(rows, classes, strict=True)]  # fmt: skip
        value, curve = (np.stack(one) for one in curves)
        limit = np.where(np.isnan(value), np.nan, np.stack(least))
        cpm = value.mean(1)
        return {"sensitivity": value, "threshold": limit, "cpm": cpm,
                "cpm_mean": mean_of_known(cpm), "curve": curve}  # fmt: skip

    dims: dict[str, tuple[str, ...]] = {
        **dict.fromkeys(("sensitivity", "threshold"), ("class", "false_objects")),
        "cpm": ("class",),
        "cpm_mean": (),
        "curve": ("class", "false_objects_of_curve"),
    }
    per_image = {"units": "false objects an image"}
    coords = {
        "class": found.names,
        "false_objects": ("false_objects", grid, per_image),
        "false_objects_of_curve": ("false_objects_of_curve", fine, per_image),
    }
    rule = "centre in the true box" if hit == "centre" else f"IoU of {iou:g} or more"
    attrs = {"hit": rule, "further_hits": "dropped"}
    return ImageFigures(found, compute, dims, coords, attrs, {"threshold": "probability"})


def _hits(found: FoundObjects, hit: str, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """Confidence with which every true box was found, -inf for none; which objects are false."""
    score = np.full(found.true_case.size, -np.inf)
    false = np.ones(found.case.size, bool)
    for mine, true in found.images():
        box, truth = found.box[mine], found.true_box[true]
        if hit == "iou":
            hits = overlaps(box, truth) >= iou
        else:
            centre = (box[:, None, :2] + box[:, None, 2:]) / 2
            hits = ((centre >= truth[None, :, :2]) & (centre <= truth[None, :, 2:])).all(-1)
        hits &= found.label[mine][:, None] == found.true_label[true]
        confidence = np.where(hits, found.confidence[mine][:, None], -np.inf)
        score[true] = confidence.max(0, initial=-np.inf)
        false[mine] = ~hits.any(1)
    return score, false


def _ranked(
    found: FoundObjects, label: int, score: np.ndarray, false: np.ndarray
) -> tuple[Ranking, np.ndarray]:
    """Found true boxes and false objects of a class, by falling confidence; and its levels."""
    own = (found.true_label == label) & np.isfinite(score)
    wrong = (found.label == label) & false
    all_scores = np.concatenate([score[own], found.confidence[wrong]])
    event = np.arange(all_scores.size) < own.sum()
    group = np.concatenate([found.true_case[own], found.case[wrong]])
    return rank(all_scores, event, group), np.unique(all_scores)[::-1]


def _sensitivity(
    events: np.ndarray, others: np.ndarray, total: float, number: np.ndarray
) -> np.ndarray:
    """Share of true boxes found where there are so many false objects."""
    if not total:
        return np.full(len(number), np.nan)
    if not (events.sum() and others.sum()):
        return np.full(len(number), events.sum() / total)
    return roc(events, others, number / others.sum()) * events.sum() / total


def _least(others: np.ndarray, level: np.ndarray, number: np.ndarray) -> np.ndarray:
    """The lowest level down to which there are no more than so many false objects."""
    place = np.searchsorted(others.cumsum(), number + 1e-9, "right")
    return np.append(np.inf, level)[place]
