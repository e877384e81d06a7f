"""From boxes of every draw to objects: a posterior over sets of boxes.

Draws know nothing of each other, so which boxes are one object is a rule. Boxes of all draws of a
case are taken by falling probability of being an object, those of equal probability by their
edges, so that the order of draws does not matter, and each

    joins the object whose first, most probable box it overlaps most, by ``overlap`` or more,
          among those that have no box of its draw;
    or is a new object.

Then objects that no draw has both of, and whose mean boxes overlap by ``overlap`` or more, are one,
until there are none: a cloud of boxes wider than the rule would otherwise be split.

With S draws, p_s the probability that the box of draw s is an object (0 where the draw has none)
and e_s its edges,

    p_exists   =  mean_s p_s                     its variance  aleatoric  mean_s p_s (1 - p_s)
                                                               epistemic  var_s p_s
    edges      ~  sum_s w_s Noise(e_s, v_s)      w_s = p_s / sum p     aleatoric  sum_s w_s v_s
                                                               epistemic  sum_s w_s (e_s - mean)^2

What follows from the rule: two objects nearer to each other than ``overlap`` are one where every
draw found only one box (its own non-maximum suppression joined them), and stay two where draws
found both. Boxes below the least score of the likelihood are not seen, so p_exists of faint objects
is too small by at most that score.

Where the model kept its anchors (``Boxes(keep="anchors")``), boxes can be averaged anchor by anchor
before they are chosen (``merge="anchors"``): coherent and cheap, but with one noise for all.

References: Miller et al., "Evaluating merging strategies for sampling-based uncertainty techniques
in object detection", ICRA 2019; Harakeh et al., "BayesOD", ICRA 2020.
"""

from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.special import ndtr

from ppl_med.analysis.tree import (
    BoxDraws,
    case_coords,
    find_group,
    open_boxes,
    overlaps,
    split_blocks,
)
from ppl_med.analysis.tree.geometry import pixel_spacing
from ppl_med.axes import EDGES
from ppl_med.checks import choice, inside, reject

_STEPS = 50  # of the bisection that finds quantiles
Found = dict[str, NDArray[Any]]


def objects(
    tree: xr.DataTree,
    *,
    overlap: float = 0.5,
    merge: Literal["boxes", "anchors"] = "boxes",
    least: float = 0.01,
    level: float = 0.9,
) -> xr.DataTree:
    """Join the boxes of all draws into objects.

    Args:
        tree: The tree of `predict` of a detector.
        overlap: Intersection over union from which on boxes of two draws are one object.
        merge: ``"boxes"``: the rule above. ``"anchors"``: averages of each anchor over draws, then
            non-maximum suppression by ``overlap``; needs ``Boxes(keep="anchors")``.
        least: Objects with a smaller p_exists are left out; of anchors those below 0.001 always.
        level: Level of the intervals.

    Returns:
        A tree with the group ``objects``, padded with NaN and -1 after the last of a case, by
        falling ``p_exists``: ``p_exists``, ``score_aleatoric`` and ``score_epistemic`` (case, box);
        ``class_probs`` (case, box, class), given that it exists, and ``label``, the most probable;
        ``edge_mean``, ``edge_lower``, ``edge_upper`` (case, box, edge) in pixels;
        ``edge_aleatoric``, ``edge_epistemic``, variances in pixels squared, and
        ``edge_covariance`` (case, box, edge, other_edge), of both; ``num_members`` (case, box),
        draws that have it; ``num_objects`` (case). Where the spacing of pixels is known, means and
        limits also in mm (``edge_mean_mm``, ...). The groups ``observed_data`` and
        ``constant_data`` are those of ``tree``.

    Raises:
        TypeError: ``tree`` is no DataTree.
        ValueError: It is not of a detector, an argument is out of range, or anchors were not kept.
    """
    inside("overlap", overlap)
    inside("level", level)
    choice("merge", merge, ("boxes", "anchors"))
    if not 0 <= least < 1:
        reject("least", "in [0, 1)", least)
    boxes = open_boxes(tree)
    if (merge == "anchors") != boxes.aligned:
        raise ValueError(
            f"merge is {merge!r}, but the model kept its "
            + ("anchors" if boxes.aligned else "boxes of every draw alone")
            + "; build it with Boxes(classes, keep="
            + ("'boxes')" if boxes.aligned else "'anchors')")
            + ", or use the other way"
        )
    found = [one for block in _blocks(boxes) for one in _of_block(boxes, block, overlap, level)]
    found = [_sorted(one, least) for one in found]
    groups = {"objects": _dataset(found, boxes, level, overlap)}
    spacing = pixel_spacing(tree, 2)
    if spacing is not None:
        groups["objects"].update(_in_mm(groups["objects"], spacing))
    for name in ("observed_data", "constant_data"):
        if group := find_group(tree, name):
            groups[name] = group
    result = xr.DataTree.from_dict(groups)
    result.attrs = dict(tree.attrs)
    return result


def _blocks(boxes: BoxDraws) -> Any:
    sizes = boxes.probs.sizes
    per_case = sizes["chain"] * sizes["draw"] * sizes["box"] * (8 + sizes["class"])
    return split_blocks({"case": sizes["case"]}, per_case)


def _of_block(boxes: BoxDraws, block: Any, overlap: float, level: float) -> Any:
    """The objects of some cases."""
    loc, variance, probs = (
        one.isel(block).values.astype(float) for one in (boxes.loc, boxes.variance, boxes.probs)
    )
    num_draws = loc.shape[0] * loc.shape[1]
    for case in range(loc.shape[2]):
        own = [one[:, :, case].reshape(num_draws, *one.shape[3:]) for one in (loc, variance, probs)]
        join = _by_anchor if boxes.aligned else joined_draws
        joined = join(own[0], own[1], own[2], overlap)
        yield _summary(*joined, boxes.noise, level)


def joined_draws(
    loc: NDArray, variance: NDArray, probs: NDArray, overlap: float
) -> tuple[NDArray, NDArray, NDArray]:
    """Return boxes (draw, object, ...) by the rule of the module's text; NaN where a draw has none.

    Args:
        loc: Edges (draw, box, 4), NaN where there is no box.
        variance: Of their noise, the same dims.
        probs: Of the classes (draw, box, class).
        overlap: From which on boxes are joined.
    """
    score = probs.sum(-1)
    draw, place = np.nonzero(np.isfinite(score))
    order = np.lexsort((*loc[draw, place].T, -score[draw, place]))
    draw, place = draw[order], place[order]
    seeds = np.empty((len(draw), 4))
    member = np.full((len(loc), len(draw)), -1)
    number = 0
    for one, at in zip(draw, place, strict=True):
        shared = overlaps(loc[one, at][None], seeds[:number])[0]
        shared = np.where(member[one, :number] < 0, shared, -1)
        best = int(shared.argmax()) if number else -1
        if number == 0 or shared[best] < overlap:
            best, number = number, number + 1
            seeds[best] = loc[one, at]
        member[one, best] = at
    member = _rejoined(member[:, :number], loc, score, overlap)
    rows = np.arange(len(loc))[:, None]
    gone = (member < 0)[..., None]
    return tuple(np.where(gone, np.nan, one[rows, member]) for one in (loc, variance, probs))  # type: ignore[return-value]


def _rejoined(member: NDArray, loc: NDArray, score: NDArray, overlap: float) -> NDArray:
    """Objects without a common draw, whose means overlap, as one; the stronger ones first."""
    rows = np.arange(len(loc))[:, None]

    def means(which: NDArray) -> NDArray:
        weight = np.where(which < 0, 0, np.nan_to_num(score[rows, which]))[..., None]
        total = np.maximum(weight.sum(0), 1e-300)
        return (weight * np.nan_to_num(loc[rows, which])).sum(0) / total

    at, middle = 0, means(member)
    while at < member.shape[1]:
        shared = overlaps(middle[at][None], middle)[0]
        apart = ~((member >= 0) & (member[:, [at]] >= 0)).any(0)
        shared = np.where(apart, shared, -1)
        best = int(shared.argmax())
        if shared[best] < overlap:
            at += 1
            continue
        at, gone = sorted((at, best))  # the union may now join one that came before
        member[:, at] = np.maximum(member[:, at], member[:, gone])
        middle[at] = means(member[:, [at]])[0]
        member, middle = np.delete(member, gone, 1), np.delete(middle, gone, 0)
    return member


def _by_anchor(
    loc: NDArray, variance: NDArray, probs: NDArray, overlap: float
) -> tuple[NDArray, NDArray, NDArray]:
    """Boxes (draw, object, ...) of the anchors that are left by suppression of the means."""
    weight = probs.sum(-1)
    score = weight.mean(0)
    usable = np.flatnonzero(np.isfinite(score))
    weight = weight[:, usable] / np.maximum(weight[:, usable].sum(0), 1e-300)
    middle = (weight[..., None] * loc[:, usable]).sum(0)
    order, kept = np.argsort(-score[usable], kind="stable"), []
    order = order[score[usable][order] > 1e-3]
    while len(order):
        kept.append(order[0])
        order = order[overlaps(middle[order[:1]], middle[order])[0] < overlap]
    chosen = usable[np.array(kept, int)]
    return loc[:, chosen], variance[:, chosen], probs[:, chosen]


def _summary(loc: NDArray, variance: NDArray, probs: NDArray, noise: str, level: float) -> Found:
    """Moments and limits of objects, from their boxes (draw, object, ...)."""
    there = np.isfinite(loc[..., 0])
    score = np.where(there, np.nan_to_num(probs).sum(-1), 0.0)
    total = np.maximum(score.sum(0), 1e-300)
    weight = score / total
    loc, variance, probs = (np.where(there[..., None], one, 0.0) for one in (loc, variance, probs))
    mean = (weight[..., None] * loc).sum(0)
    away = np.where(there[..., None], loc - mean, 0.0)
    aleatoric = (weight[..., None] * variance).sum(0)
    covariance = np.einsum("sb,sbe,sbf->bef", weight, away, away)
    epistemic = np.diagonal(covariance, axis1=1, axis2=2).copy()
    covariance = covariance + aleatoric[..., None] * np.eye(4)
    tail = (1 - level) / 2
    lower, upper = (_quantile(weight, loc, variance, noise, q) for q in (tail, 1 - tail))
    return {
        "p_exists": score.mean(0),
        "score_aleatoric": (score * (1 - score)).mean(0),
        "score_epistemic": score.var(0),
        "class_probs": probs.sum(0) / total[:, None],
        "edge_mean": mean,
        "edge_lower": lower,
        "edge_upper": upper,
        "edge_aleatoric": aleatoric,
        "edge_epistemic": epistemic,
        "edge_covariance": covariance,
        "num_members": there.sum(0),
    }


def _quantile(
    weight: NDArray, loc: NDArray, variance: NDArray, noise: str, q: float
) -> NDArray[np.float64]:
    """Quantile of a mixture over draws, dims (object, edge), by bisection."""
    sd = np.sqrt(variance)
    used = (weight > 0)[..., None]
    reach = 12 * sd + 1e-9
    low = np.where(used, loc - reach, np.inf).min(0, initial=np.inf)
    high = np.where(used, loc + reach, -np.inf).max(0, initial=-np.inf)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        below = (weight[..., None] * _below((middle - loc) / np.maximum(sd, 1e-12), noise)).sum(0)
        low, high = np.where(below < q, middle, low), np.where(below < q, high, middle)
    return (low + high) / 2


def _below(z: NDArray, noise: str) -> NDArray[np.float64]:
    """Distribution function of a noise of mean 0 and variance 1."""
    if noise == "normal":
        return ndtr(z)
    tail = 0.5 * np.exp(-np.sqrt(2) * np.abs(z))
    return np.where(z < 0, tail, 1 - tail)


def _sorted(found: Found, least: float) -> Found:
    order = np.argsort(-found["p_exists"], kind="stable")
    order = order[found["p_exists"][order] >= least]
    return {name: values[order] for name, values in found.items()}


def _dataset(found: list[Found], boxes: BoxDraws, level: float, overlap: float) -> xr.Dataset:
    axes = {
        **dict.fromkeys(("p_exists", "score_aleatoric", "score_epistemic", "num_members"), ()),
        **dict.fromkeys(
            ("edge_mean", "edge_lower", "edge_upper", "edge_aleatoric", "edge_epistemic"), ("edge",)
        ),
        "class_probs": ("class",),
        "edge_covariance": ("edge", "other_edge"),
    }
    counts = np.array([len(one["p_exists"]) for one in found])
    most = max(1, int(counts.max(initial=0)))
    variables: dict[str, Any] = {"num_objects": ("case", counts)}
    for name, dims in axes.items():
        shape = found[0][name].shape[1:]
        fill, dtype = (-1, np.int64) if name == "num_members" else (np.nan, np.float64)
        values = np.full((len(found), most, *shape), fill, dtype)
        for case, one in enumerate(found):
            values[case, : counts[case]] = one[name]
        variables[name] = (("case", "box", *dims), values)
    label = np.nan_to_num(variables["class_probs"][1], nan=-1.0).argmax(-1)
    label = np.where(np.arange(most) < counts[:, None], label, -1)
    variables["label"] = (("case", "box"), label)
    coords: dict[str, Any] = {"edge": list(EDGES), "other_edge": list(EDGES)}
    coords |= case_coords(boxes.probs, "class")
    sizes = boxes.probs.sizes
    result = xr.Dataset(variables, coords)
    for variable in result.data_vars:
        result[variable].attrs["units"] = _unit(str(variable))
    return result.assign_attrs(
        draws=sizes["chain"] * sizes["draw"], level=level, overlap=overlap, noise=boxes.noise,
        merge="anchors" if boxes.aligned else "boxes",
    )  # fmt: skip


def _unit(name: str) -> str:
    if name.startswith("edge"):
        squared = name.endswith(("aleatoric", "epistemic", "covariance"))
        return "pixel^2" if squared else "pixel"
    return "probability" if name in ("p_exists", "class_probs") else "1"


def _in_mm(found: xr.Dataset, spacing: NDArray) -> dict[str, xr.DataArray]:
    """Means and limits of edges in mm from the corner of the image."""
    per_edge = xr.DataArray(spacing[:, [1, 0, 1, 0]], dims=("case", "edge"))
    result = {}
    for name in ("edge_mean", "edge_lower", "edge_upper"):
        result[f"{name}_mm"] = (found[name] * per_edge.values[:, None]).assign_attrs(units="mm")
    return result
