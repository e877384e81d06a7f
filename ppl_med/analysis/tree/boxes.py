"""Boxes that `predict` stored for every draw, and boxes that were observed."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from ppl_med.analysis.tree.distinct_draws import drop_copies
from ppl_med.analysis.tree.groups import find_group, find_variable
from ppl_med.analysis.tree.left_out import known
from ppl_med.axes import SAMPLES

NOT_READ = -2  # label at every place of a reader who did not look at the case


@dataclass(frozen=True)
class BoxDraws:
    """Boxes of every draw, not yet read.

    Attributes:
        loc: Edges in pixels (chain, draw, case, box, edge), NaN where there is no box.
        variance: Of the noise on the edges, pixels squared, the same dims.
        probs: Probability of each class (chain, draw, case, box, class); their sum is that of an
            object.
        noise: "normal" or "laplace".
        aligned: Whether place a is the same anchor in every draw.
    """

    loc: xr.DataArray
    variance: xr.DataArray
    probs: xr.DataArray
    noise: str
    aligned: bool


def open_boxes(tree: xr.DataTree) -> BoxDraws:
    """Return the boxes of a detector's tree, of every function once.

    Raises:
        TypeError: ``tree`` is no DataTree.
        ValueError: It is not of a detector.
    """
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"tree must be the DataTree of predict, not {type(tree).__name__}.")
    loc, scale, probs = (
        find_variable(tree, "posterior", name, "detection")
        for name in ("edge_loc", "edge_scale", "box_probs")
    )
    group = find_group(tree, "posterior")
    aligned = "anchor" in loc.dims
    noise = "laplace" if "edge_variance" in group else "normal"
    variance = group["edge_variance"] if noise == "laplace" else scale**2
    order = (*SAMPLES, "case", "box")
    found = drop_copies(xr.Dataset({"loc": loc, "variance": variance, "probs": probs}))
    found = found.rename(anchor="box") if aligned else found
    return BoxDraws(
        found["loc"].transpose(*order, "edge"),
        found["variance"].transpose(*order, "edge"),
        found["probs"].transpose(*order, "class"),
        noise,
        aligned,
    )


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of all pairs: (..., a, 4) and (..., b, 4) give (..., a, b).

    Boxes without area overlap nothing; NaN gives NaN.
    """
    one, other = first[..., :, None, :], second[..., None, :, :]
    low = np.maximum(one[..., :2], other[..., :2])
    high = np.minimum(one[..., 2:], other[..., 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(box[..., 2:] - box[..., :2], 0, None).prod(-1) for box in (one, other)]
    union = areas[0] + areas[1] - common
    return common / np.where(union > 0, union, 1)


def observed_boxes(tree: xr.DataTree) -> tuple[xr.DataArray, xr.DataArray]:
    """Return edges (case, [grader,] box, edge) and labels that were observed, as they are.

    Labels are -1 after the last box, and ``NOT_READ`` where a reader did not look.

    Raises:
        ValueError: There are none.
    """
    edges = find_variable(tree, "observed_data", "box_edge", "detection")
    labels = find_variable(tree, "observed_data", "box_label", "detection")
    return edges, labels.where(known(labels), -1) if labels.dtype.kind == "f" else labels
