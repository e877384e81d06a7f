"""Calibration of the confidence of objects after training, learnt on some images for others.

What the confidence is fitted to, of every class:

    precision       1 where the object is paired with a true box, else 0
    localisation    the IoU with it, 0 for a false object: then the confidence is the IoU to expect

and how:

    isotonic    the non-decreasing function of least squared error, linear between its pieces
    platt       sigmoid(a logit(confidence) + b) of least cross entropy, a at least 0

Learn on half of the validation images, after thresholds learnt on that half, and test on others: so
done, both do better than losses that calibrate in training.

Sources: Kuzucu, Oksuz et al., ECCV 2024, arXiv:2405.20459; Platt, 1999; Zadrozny and Elkan, KDD
2002.
"""

import numpy as np
import xarray as xr
from scipy.optimize import minimize
from scipy.special import expit, logit

from ppl_med.analysis.calibration.learnt_cases import check_other_cases, check_same_classes
from ppl_med.analysis.detection.box_matching import match
from ppl_med.analysis.detection.open_objects import (
    CONFIDENCE,
    known_cases,
    object_group,
    open_objects,
)
from ppl_med.analysis.statistics import isotonic
from ppl_med.checks import choice, reject, share

_FEWEST = 10
_EPSILON = 1e-12  # confidences of exactly 0 or 1 have no logit


def fit_confidence(
    tree: xr.DataTree, *, method: str = "isotonic", target: str = "precision", iou: float = 0.5
) -> xr.Dataset:
    """Learn a map of the confidence of every class.

    Args:
        tree: A tree of `objects` with true boxes, of images that are not tested on.
        method: "isotonic" or "platt".
        target: "precision", what D-ECE measures, or "localisation", what LaECE measures.
        iou: From which on an object is the true box, in [0, 1); at 0 any overlap will do.

    Returns:
        Dataset over class: ``knot`` and ``value`` (class, piece), NaN after the last, or ``slope``
        and ``intercept`` (class); ``count``, the objects of the class; the ids as ``case``. A class
        of fewer than 10 objects keeps its confidence (identity) and is named in the attribute
        ``too_few``.

    Raises:
        TypeError, ValueError: No tree of objects with true boxes, or a malformed argument.
    """
    choice("method", method, ("isotonic", "platt"))
    choice("target", target, ("precision", "localisation"))
    share("iou", iou)
    found = open_objects(tree)
    matches = match(found, np.array([iou])).first()
    outcome = matches.hit.astype(np.float64) if target == "precision" else matches.iou
    rows = [np.flatnonzero(found.label == label) for label in range(found.num_classes)]
    pairs = [(found.confidence[row], outcome[row]) for row in rows]
    few = [len(row) < _FEWEST for row in rows]
    result = xr.Dataset(coords={"class": found.names})
    if method == "isotonic":
        pieces = [(np.array([0.0, 1.0]),) * 2 if small else isotonic.knots(*pair)
                  for pair, small in zip(pairs, few, strict=True)]  # fmt: skip
        longest = max(len(knot) for knot, _ in pieces)
        table = np.full((2, len(pieces), longest), np.nan)
        for label, piece in enumerate(pieces):
            table[:, label, : len(piece[0])] = piece
        result["knot"], result["value"] = (
            (("class", "piece"), table[0]),
            (("class", "piece"), table[1]),
        )
    else:
        lines = [(1.0, 0.0) if small else _platt(*pair)
                 for pair, small in zip(pairs, few, strict=True)]  # fmt: skip
        result["slope"], result["intercept"] = (("class", one) for one in np.array(lines).T)
    result["count"] = ("class", np.array([len(row) for row in rows]))
    names = [name for name, small in zip(found.names, few, strict=True) if small]
    attrs = {"method": method, "target": target, "iou": iou, "too_few": ", ".join(names)}
    return result.assign_coords(known_cases(found)).assign_attrs(found.counts() | attrs)


def apply_confidence(learnt: xr.Dataset, tree: xr.DataTree) -> xr.DataTree:
    """Give the objects of other images a calibrated confidence.

    Args:
        learnt: As `fit_confidence` gives it.
        tree: A tree of `objects`.

    Returns:
        The tree with ``objects/confidence`` (case, box), which all figures read that ask for the
        confidence; p_exists, class_probs and the label stay as they are.

    Raises:
        TypeError, ValueError: No tree of objects, other classes, or images among those that the
            map was learnt on.
    """
    if not isinstance(learnt, xr.Dataset) or not {"knot", "slope"} & set(learnt):
        reject("learnt", "what ppl_med.analysis.detection.fit_confidence gives", type(learnt))
    found = open_objects(tree, truth=False)
    check_same_classes(learnt, found.names)
    check_other_cases(learnt, found.array)
    mapped = np.empty(found.case.size)
    for label in range(found.num_classes):
        rows = found.label == label
        one = learnt.isel({"class": label})
        if "knot" in learnt:
            known = one["knot"].notnull().values
            knots, values = one["knot"].values[known], one["value"].values[known]
            mapped[rows] = np.interp(found.confidence[rows], knots, values)
        else:
            odds = logit(found.confidence[rows].clip(_EPSILON, 1 - _EPSILON))
            mapped[rows] = expit(float(one["slope"]) * odds + float(one["intercept"]))
    table = np.full(found.array.shape, np.nan)
    table[found.case, found.place] = mapped.clip(0, 1)
    group = object_group(tree)
    about = {
        "units": "probability",
        "learnt_by": f"{learnt.attrs['method']} on {learnt.attrs['target']}",
    }
    result = tree.copy()
    result["objects"] = xr.DataTree(group.assign({CONFIDENCE: (("case", "box"), table, about)}))
    return result


def _platt(confidence: np.ndarray, outcome: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of least cross entropy; outcomes may be shares."""
    odds = logit(confidence.clip(_EPSILON, 1 - _EPSILON))
    scale = float(odds.std()) or 1.0
    centre = float(odds.mean())
    inputs = (odds - centre) / scale  # so that both parameters move alike

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        line = point[0] * inputs + point[1]
        gap = (expit(line) - outcome) / len(outcome)
        value = (np.logaddexp(0, line) - outcome * line).mean()
        return float(value), np.array([gap @ inputs, gap.sum()])

    limits = [(0.0, 50.0), (-50.0, 50.0)]  # outcomes all alike have no finite best
    start = np.array([scale, centre])
    found = minimize(loss, start.clip(0, 10), jac=True, method="L-BFGS-B", bounds=limits,
                     options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000})  # fmt: skip
    slope = float(found.x[0]) / scale
    return slope, float(found.x[1]) - slope * centre
