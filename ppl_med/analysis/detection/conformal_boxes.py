"""Which objects to keep, and how far around their edges to look: promises of recall and of edges.

Two levels are learnt from images that the detector was not trained on. Objects are kept whose score
is at least t, and the edges of an object lie within q units of its mean edges. For an image with m
true boxes, of which box j is paired with an object of score s_j (none: minus infinity) whose edges
are r_j units away, the largest of the four,

    missed(t)       = share of the true boxes with s_j < t
    outside(t, q)   = share of the true boxes with s_j < t or r_j > q        (promise "all")
    outside(t, q)   = share of those with s_j >= t that have r_j > q         (promise "found")

With n calibration images, of which each holds true boxes, t is the largest with

    sum missed(t) + 1 <= missed (n + 1)

"all": with t' the largest for which the sum alone is at most missed (n + 1), q is the least with
sum outside(t', q) + 1 <= (missed + outside) (n + 1). Both promises hold together: of the objects of
a test image, on average at most ``missed`` are missed, and at most ``missed + outside`` are missed
or have an edge outside. "found": half of the images, drawn at random, learn t, and those of the
other half in which an object is found learn q with sum outside(t, q) + 1 <= outside (n + 1): of the
objects found in a test image on average at most ``outside`` have an edge outside.

With margins by "max_rank", r_j is the largest of the ranks that the four distances of an object
have among those of all found objects, each edge by itself, and q = R + m: R is the least rank that
the rule gives, and m the most found objects of a calibration image, since a test image with as many
may move ranks by m. The margin of each edge is its q-th smallest distance. The promise is of images
with at most m found objects.

What is exchangeable are images: not their objects, of which one image may hold thirty. Images
without true boxes do not calibrate and do not count, and the promises are over images that have
some. An object is paired with a true box by overlap, so that edges are promised of objects that
overlap by as much. Nothing limits false objects: look at ``num_kept``.

Sources: Angelopoulos et al., Conformal Risk Control, ICLR 2024, arXiv:2208.02814; Andeol et al.,
arXiv:2505.24038 (two parameters in sequence); Andeol et al., COPA 2023 (margins of boxes, largest
of four or Bonferroni); Timans et al., ECCV 2024, arXiv:2403.07263 (margins in units of the sd,
and by the largest rank; the m is ours).
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.calibration.learnt_cases import check_other_cases, check_same_classes
from ppl_med.analysis.conformal import exchangeability
from ppl_med.analysis.conformal.compared import Compared
from ppl_med.analysis.detection.box_promises import (
    VARIANCES,
    Pairs,
    learn_all,
    learn_found,
    learn_threshold,
    mean_by_image,
    pair_up,
    random_halves,
    unit_of,
)
from ppl_med.analysis.detection.open_objects import FoundObjects, known_cases, open_objects
from ppl_med.analysis.statistics.case_means import over_cases, ratio_error
from ppl_med.analysis.tree import case_coords, case_units, find_group
from ppl_med.axes import EDGES
from ppl_med.checks import choice, finite, inside, reject, share, whole

PROMISES, SCALES = ("all", "found"), ("sd", "size", "pixels")
SIDES, MARGINS = ("both", "outer"), ("max", "max_rank", "bonferroni")
_SETTINGS = ("promise", "scale", "sides", "margins", "iou", "by_class")


def calibrate_boxes(
    tree: xr.DataTree,
    *,
    missed: float = 0.1,
    outside: float = 0.1,
    promise: str = "all",
    scale: str = "sd",
    sides: str = "both",
    margins: str = "max",
    iou: float = 0.5,
    by_class: bool = True,
    threshold: float | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Learn the least score of objects to keep, and the margins of their edges.

    Args:
        tree: A tree of `objects` with true boxes, of images that the detector was not trained on
            and that are not tested on.
        missed: Largest expected share of the objects of an image that are missed, in (0, 1).
        outside: Largest expected share of objects with an edge outside, in (0, 1); see the module.
        promise: "all" or "found".
        scale: Unit of the margins: "sd" of the edge, aleatoric and epistemic; "size", width or
            height of the box; "pixels".
        sides: "both": each true edge lies between two limits. "outer": the true box lies inside.
        margins: "max": one margin for the largest of the four. "max_rank": one for each edge, all
            at one rank, so that edges that are worse placed have wider ones; see the module.
            "bonferroni": one for each edge, at
            a quarter of ``outside``; with the promise "found".
        iou: From which on an object is a true box, in (0, 1).
        by_class: Whether an object must be of the class of the true box; the score then is the
            confidence, and else p_exists.
        threshold: With the promise "found": a least score learnt on other images, in place of
            learning it on half of these.
        seed: Of the halves.

    Returns:
        Dataset with ``threshold`` (probability) and ``margin`` (edge) in units of the scale;
        ``missed`` and ``outside``, the levels; ``num_missed`` and ``num_outside``, the images that
        learnt each; ``missed_share`` (case) at the threshold, NaN for images without true boxes;
        ``expected_objects`` (case), the sum of p_exists; the ids as ``case``.

    Raises:
        TypeError: No tree of objects.
        ValueError: A malformed argument, an sd of 0, or no threshold or margin that can promise so
            much: too few images, or too many objects that the detector misses at any threshold.
    """
    inside("missed", missed)
    inside("outside", outside)
    choice("promise", promise, PROMISES)
    choice("scale", scale, SCALES)
    choice("sides", sides, SIDES)
    choice("margins", margins, MARGINS)
    inside("iou", iou)
    whole("seed", seed, 0)
    if promise == "all" and (margins != "max" or threshold is not None):
        raise ValueError(
            "promise='all' learns one margin, and the threshold with it; give promise='found' for "
            "margins='bonferroni' or 'max_rank', or for a threshold learnt elsewhere"
        )
    if promise == "all" and missed + outside >= 1:
        reject("missed + outside", "below 1", missed + outside)
    found = open_objects(tree, *(VARIANCES if scale == "sd" else ()))
    coords = known_cases(found)
    pairs = pair_up(found, scale, sides, iou, by_class)
    holds = np.bincount(pairs.case, minlength=found.num_cases) > 0
    learns = edges = holds
    if promise == "all":
        least, margin = learn_all(found, pairs, holds, missed, outside)
    else:
        if threshold is None:
            learns, edges = random_halves(found, holds, seed)
            least = learn_threshold(found, pairs, learns, missed)
        else:
            learns, least = np.zeros_like(holds), finite("threshold", threshold, 0, 1)
        margin = learn_found(found, pairs, edges, least, outside, margins)
        reached = pairs.case[pairs.score >= least]
        edges = edges & (np.bincount(reached, minlength=found.num_cases) > 0)
    missed_share = mean_by_image(found, pairs, pairs.score < least)
    expected = np.bincount(found.case, found.p_exists, minlength=found.num_cases)
    settings = dict(
        zip(_SETTINGS, (promise, scale, sides, margins, iou, int(by_class)), strict=True)
    )
    result = xr.Dataset(
        {
            "threshold": ((), least, {"units": "probability"}),
            "margin": ("edge", margin, {"units": "pixels" if scale == "pixels" else "1"}),
            "missed": missed,
            "outside": outside,
            "num_missed": int(learns.sum()),
            "num_outside": int(edges.sum()),
            "missed_share": ("case", missed_share, {"units": "probability"}),
            "expected_objects": ("case", expected, {"units": "1"}),
        },
        {"edge": list(EDGES), "class": found.names},
    )
    return result.assign_coords(coords).assign_attrs(found.counts() | settings)


def predict_boxes(
    calibration: xr.Dataset,
    tree: xr.DataTree,
    *,
    group: str | xr.DataArray | None = None,
    shift_alarm: float = exchangeability.FALSE_ALARM,
) -> xr.Dataset:
    """Give the kept objects of other images the limits of their edges, and count what they achieve.

    Args:
        calibration: What `calibrate_boxes` returned.
        tree: A tree of `objects` of other images, with or without true boxes.
        group: What is independent in the errors: a column of constant_data, the groups (case), or
            "case"; None is the patient where the tree has such a column, and else the image.
        shift_alarm: Warn when the numbers of expected objects of calibration and test images differ
            with a p-value below this; 0 never warns.

    Returns:
        Dataset with ``kept`` (case, box); ``edge_lower`` and ``edge_upper`` (case, box, edge) in
        pixels, NaN for objects that are not kept, with infinite inner limits where ``sides`` is
        "outer"; ``num_kept`` (case); ``width`` (edge), the mean distance of the limits;
        ``threshold``, ``margin``; ``shift_pvalue``. With true boxes: ``missed_share`` and
        ``outside_share`` (case), NaN where an image has nothing to count; ``recall``, 1 minus the
        mean of the former, and ``coverage``, 1 minus that of the latter, with ``_se`` over images
        or patients: what the promises say is 1 - missed, and 1 - missed - outside or 1 - outside.
        ``found_coverage`` with ``_se``: all edges inside, of the found objects of all images
        together; ``edge_coverage`` (edge) with ``_se``: each edge. Attributes count what was left
        out.

    Raises:
        TypeError: No calibration or no tree of objects.
        ValueError: Other classes, images among those calibrated on, or an sd of 0.

    Warns:
        RuntimeWarning: Calibration and test images look different.
    """
    if not isinstance(calibration, xr.Dataset) or not {"margin", "missed_share"} <= set(
        calibration
    ):
        raise TypeError("calibration must be the Dataset that calibrate_boxes returned.")
    share("shift_alarm", shift_alarm, "0 never warns")
    settings = {name: calibration.attrs[name] for name in _SETTINGS}
    scale, sides, by_class = settings["scale"], settings["sides"], bool(settings["by_class"])
    truth = bool(find_group(tree, "observed_data"))
    found = open_objects(tree, *(VARIANCES if scale == "sd" else ()), truth=truth)
    check_same_classes(calibration, found.names)
    check_other_cases(calibration, found.array)
    least, margin = float(calibration["threshold"]), calibration["margin"].values
    kept = (found.confidence if by_class else found.p_exists) >= least
    reach = margin * unit_of(found, scale)
    ends = [found.box - reach, found.box + reach]
    if sides == "outer":
        ends[0][:, 2:], ends[1][:, :2] = -np.inf, np.inf
    result = xr.Dataset(
        {"kept": (("case", "box"), _table(found, kept, kept, False))},
        {"edge": list(EDGES), "class": found.names} | case_coords(found.array),
    )
    for name, values in zip(("edge_lower", "edge_upper"), ends, strict=True):
        table = _table(found, values, kept, np.nan)
        result[name] = (("case", "box", "edge"), table, {"units": "pixels"})
    counts = np.bincount(found.case[kept], minlength=found.num_cases)
    width = (ends[1] - ends[0])[kept]
    mean = width.mean(0) if len(width) else np.full(4, np.nan)
    expected = np.bincount(found.case, found.p_exists, minlength=found.num_cases)
    result = result.assign(
        num_kept=("case", counts),
        width=("edge", mean, {"units": "pixels"}),
        threshold=calibration["threshold"],
        margin=calibration["margin"],
    ).assign_attrs(found.counts() | settings)
    if truth:
        pairs = pair_up(found, scale, sides, float(settings["iou"]), by_class)
        units, kind = case_units(tree, group, found.array)
        figures = _figures(found, pairs, least, margin, str(settings["promise"]), units)
        result = result.assign(figures).assign_attrs(unit=kind)
    first, second = (
        Compared(values[:, None]) for values in (calibration["expected_objects"].values, expected)
    )
    result["shift_pvalue"] = exchangeability.compare(first, second, shift_alarm)
    return result


def _figures(
    found: FoundObjects,
    pairs: Pairs,
    least: float,
    margin: np.ndarray,
    promise: str,
    units: np.ndarray,
) -> dict[str, xr.DataArray]:
    """Achieved recall and coverage, with errors over units."""
    is_found = pairs.score >= least
    beyond = pairs.away > margin
    bad = np.asarray(beyond.any(1))
    per_image = {
        "missed_share": mean_by_image(found, pairs, ~is_found),
        "outside_share": mean_by_image(found, pairs, ~is_found | bad)
        if promise == "all"
        else mean_by_image(found, pairs, bad, is_found),
    }
    result: dict[str, xr.DataArray] = {}
    for name, figure in (("missed_share", "recall"), ("outside_share", "coverage")):
        array = xr.DataArray(per_image[name], dims="case")
        result[name] = array
        result[figure] = 1 - array.mean("case")
        result[f"{figure}_se"] = over_cases(array, units)
    number = units.max(initial=-1) + 1
    owner = units[pairs.case[is_found]]
    whole_ = np.bincount(owner, minlength=number).astype(float)[:, None]
    for name, held in (("found_coverage", ~bad[:, None]), ("edge_coverage", ~beyond)):
        part = np.zeros((number, held.shape[1]))
        np.add.at(part, owner, held[is_found].astype(float))
        total = whole_.sum()
        mean = part.sum(0) / total if total else np.full(held.shape[1], np.nan)
        error = ratio_error(part, np.broadcast_to(whole_, part.shape))
        dims = ("edge",) if held.shape[1] > 1 else ()
        for end, values in (("", mean), ("_se", error)):
            result[name + end] = xr.DataArray(values if dims else values[0], dims=dims)
    for array in result.values():
        array.attrs["units"] = "probability"
    return result


def _table(found: FoundObjects, values: np.ndarray, kept: np.ndarray, fill: object) -> np.ndarray:
    """Values of objects (object, ...) at their places (case, box, ...); fill elsewhere."""
    table = np.full((*found.array.shape, *values.shape[1:]), fill, values.dtype)
    table[found.case[kept], found.place[kept]] = values[kept]
    return table
