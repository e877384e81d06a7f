"""Probability-based detection quality: boxes whose corners are uncertain, scored pixel by pixel.

The two corners of an object are independent normal variables with the blocks of its covariance; a
pixel belongs to it where its centre lies in the box. Of an object and a true box, with P the
probability that a pixel belongs to the object and n the number of pixels of the true box,

    foreground = exp(sum over its pixels of log P / n)
    background = exp(sum over the other pixels where P is not 0 of log(1 - P) / n)
    spatial    = foreground x background
    label      = probability that the object is there and of the true class
    quality    = sqrt(spatial x label)

and PDQ is the sum of the qualities of the best one-to-one pairs / (pairs + missed + false). It
knows no threshold of overlap. P below 0.0027 is taken as 0, logarithms are of P + 1e-14, and a
spatial quality below 1e-8 is 0, as in the reference code. A true box with no centre of a pixel
inside has one pixel, that of its own centre.

Source: Hall et al., WACV 2020, arXiv:1811.10800. Their figures may be multiplied by 100.
"""

from typing import NamedTuple

import numpy as np
import xarray as xr

from ppl_med.analysis.detection.box_matching import optimal
from ppl_med.analysis.detection.image_figures import Figures, ImageFigures, ratio
from ppl_med.analysis.detection.open_objects import FoundObjects, open_objects
from ppl_med.analysis.statistics.bivariate_normal import joint_below
from ppl_med.checks import finite, reject, whole

_COVARIANCE = "edge_covariance"
_NOTHING = 0.0027
_SMALL = 1e-14
_ZERO = 1e-8
_REACH = 4.0  # standard deviations; beyond, P is below what is taken as nothing
_MOST_PIXELS = 2.0**26  # of one object: half a gigabyte
_SUMS = ("quality", "spatial", "label", "foreground", "background", "hits", "false", "missed")


class PixelMap(NamedTuple):
    """Probability of pixels (row, col), and where the first one is."""

    probability: np.ndarray
    row: int
    col: int


def pdq(
    tree: xr.DataTree,
    *,
    threshold: float = 0.5,
    image_size: tuple[int, int] | None = None,
    covariance: bool = True,
) -> xr.Dataset:
    """Probability-based detection quality of the objects above a threshold.

    Args:
        tree: A tree of `objects` with true boxes.
        threshold: Least confidence of the objects that count: below it every object is a false
            one. 0 keeps all, such as what `apply_thresholds` has left.
        image_size: Rows and columns, so that probability beyond the border counts nowhere; None
            knows the borders at 0 only.
        covariance: Whether corners are uncertain; False scores the means alone, as of a detector
            that gives no covariance.

    Returns:
        Dataset of ``pdq``; of the pairs the means ``quality``, ``spatial``, ``label``,
        ``foreground`` and ``background`` (NaN without pairs); and counts ``hits``, ``false``,
        ``missed``. All but counts in [0, 1]. NaN where there are neither objects nor true boxes.

    Raises:
        TypeError, ValueError: No tree of objects with true boxes, or a malformed argument.
    """
    return plan(
        tree, threshold=threshold, image_size=image_size, covariance=covariance
    ).dataset()  # fmt: skip


def plan(
    tree: xr.DataTree,
    *,
    threshold: float = 0.5,
    image_size: tuple[int, int] | None = None,
    covariance: bool = True,
) -> ImageFigures:
    """The same, ready for other weights of the images."""
    finite("threshold", threshold, 0, 1)
    if image_size is not None:
        if len(image_size) != 2:
            reject("image_size", "rows and columns", image_size)
        for number in image_size:
            whole("image_size", number)
    found = open_objects(tree, *([_COVARIANCE] if covariance else []))
    spread = found.others[_COVARIANCE] if covariance else np.zeros((found.case.size, 4, 4))
    _check_covariance(spread)
    sums = np.stack([
        _image(found, spread, mine, true, threshold, image_size) for mine, true in found.images()
    ])  # fmt: skip

    def compute(weight: np.ndarray) -> Figures:
        total = dict(zip(_SUMS, weight @ sums, strict=True))
        whole_sum = total["hits"] + total["false"] + total["missed"]
        means = {name: ratio(total[name], total["hits"]) for name in _SUMS[:5]}
        return {"pdq": ratio(total["quality"], whole_sum), **means,
                **{name: np.asarray(total[name]) for name in _SUMS[5:]}}  # fmt: skip

    attrs = {"threshold": threshold, "image_size": image_size or "not given",
             "corners": "normal" if covariance else "certain"}  # fmt: skip
    dims: dict[str, tuple[str, ...]] = dict.fromkeys(("pdq", *_SUMS), ())
    return ImageFigures(found, compute, dims, {}, attrs, {})


def pixel_map(
    box: np.ndarray, covariance: np.ndarray, image_size: tuple[int, int] | None
) -> PixelMap:
    """Return the probability that a pixel belongs to an object, where it can be more than 0.

    Args:
        box: Means of its edges in pixels (edge,).
        covariance: Of its edges; between the corners none is used (edge, other_edge), pixels^2.
        image_size: Rows and columns, or None.
    """
    scale = np.sqrt(np.diagonal(covariance))
    first = np.floor(box[:2] - _REACH * scale[:2] - 1).clip(0).astype(int)
    last = np.ceil(box[2:] + _REACH * scale[2:] + 1).astype(int)
    if image_size is not None:
        last = np.minimum(last, image_size[::-1])
    size = np.maximum(last - first, 0)
    if float(size[0]) * float(size[1]) > _MOST_PIXELS:
        raise ValueError(
            f"an object may reach over {size[1]} rows and {size[0]} columns, too many to go "
            "through; give image_size, its rows and columns, where the image ends"
        )
    cols, rows = (np.arange(a, max(a, b)) + 0.5 for a, b in zip(first, last, strict=True))
    upper = _corner(cols - box[0], rows - box[1], covariance[:2, :2])
    lower = _corner(box[2] - cols, box[3] - rows, covariance[2:, 2:])
    probability = (upper * lower).T
    kept = np.where(probability < _NOTHING, 0.0, probability)
    return PixelMap(kept, int(first[1]), int(first[0]))


def true_pixels(box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first column and row of the pixels of true boxes, and those behind the last.

    Args:
        box: Edges in pixels (..., edge).

    Returns:
        Two arrays of whole numbers (..., 2), column first; a box has one pixel at least.
    """
    first = np.ceil(box[..., :2] - 0.5).astype(int)
    stop = np.floor(box[..., 2:] - 0.5).astype(int) + 1
    centre = np.floor((box[..., :2] + box[..., 2:]) / 2).astype(int)
    none = stop <= first
    return np.where(none, centre, first), np.where(none, centre + 1, stop)


def _corner(x: np.ndarray, y: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """P(X <= x, Y <= y) of a corner whose mean is 0 (x, y)."""
    scale = np.sqrt(np.diagonal(covariance))
    with np.errstate(divide="ignore"):
        reach = [one / part if part > 0 else np.where(one >= 0, np.inf, -np.inf)
                 for one, part in zip((x, y), scale, strict=True)]  # fmt: skip
    both = scale.prod()
    tilt = float(np.clip(covariance[0, 1] / both, -1, 1)) if both > 0 else 0.0
    return joint_below(reach[0], reach[1], tilt)


def _image(
    found: FoundObjects,
    spread: np.ndarray,
    mine: slice,
    true: slice,
    threshold: float,
    image_size: tuple[int, int] | None,
) -> np.ndarray:
    """Sums of one image, in the order of ``_SUMS``."""
    kept = np.arange(mine.start, mine.stop)[found.confidence[mine] >= threshold]
    targets = np.arange(true.start, true.stop)
    first, stop = true_pixels(found.true_box[targets])
    number = (stop - first).prod(1)
    parts = np.zeros((4, kept.size, targets.size))  # foreground, background, spatial, label
    for row, index in enumerate(kept if targets.size else ()):
        drawn = pixel_map(found.box[index], spread[index], image_size)
        corner = np.array([drawn.col, drawn.row])
        window = (first - corner, stop - corner)
        logs = np.log(drawn.probability + _SMALL)
        others = np.where(drawn.probability > 0, np.log(1 - drawn.probability + _SMALL), 0.0)
        inside, within = (_over_windows(one, *window) for one in (logs, others))
        size = np.array(logs.shape[::-1])
        shared = (window[1].clip(0, size) - window[0].clip(0, size)).prod(1)
        inside += (number - shared) * np.log(_SMALL)
        parts[0, row] = np.exp(inside / number)
        parts[1, row] = np.exp((others.sum() - within) / number)
    parts[2] = np.where(parts[0] * parts[1] < _ZERO, 0.0, parts[0] * parts[1]).clip(0, 1)
    probability = found.p_exists[kept][:, None] * found.class_probs[kept]
    parts[3] = probability[:, found.true_label[targets]].clip(0, 1)
    quality = np.sqrt(parts[2] * parts[3])
    pairs = optimal(quality)
    hits = len(pairs[0])
    sums = [quality[pairs].sum(), *(parts[place][pairs].sum() for place in (2, 3, 0, 1))]
    return np.array([*sums, hits, kept.size - hits, targets.size - hits])


def _over_windows(values: np.ndarray, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Sums of values (row, col) over windows (window, col and row), cut at the ends."""
    total = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    ends = [part.clip(0, np.array(values.shape[::-1])) for part in (first, stop)]
    (left, top), (right, bottom) = (end.T for end in ends)
    return np.asarray(
        total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    )


def _check_covariance(spread: np.ndarray) -> None:
    variance = np.diagonal(spread, axis1=1, axis2=2)
    if spread.shape[1:] != (4, 4) or (variance < 0).any():
        reject("objects/edge_covariance", "covariances (case, box, edge, other_edge)",
               f"a least variance of {variance.min(initial=0):.3g}")  # fmt: skip
