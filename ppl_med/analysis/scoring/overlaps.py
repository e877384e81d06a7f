"""Dice and IoU of the predicted mask with the observed one, class by class.

    Dice = 2 |A and B| / (|A| + |B|)          IoU = |A and B| / |A or B|

The mask is the most probable class under the mean of the draws. Figures are taken case by case and
averaged over cases, so that large structures weigh as much as small ones; IoU from the pixels of
all cases together stands in `confusion`. For masks of several graders see
`ppl_med.analysis.segmentation`.

Source: Dice, Ecology 26, 1945; Maier-Hein et al., Metrics reloaded, Nature Methods 21, 2024.
"""

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.segmentation.overlap import check_empty
from ppl_med.analysis.statistics import monte_carlo
from ppl_med.analysis.statistics.group_resampling import group_weights, named_errors
from ppl_med.analysis.tree import (
    Classes,
    ClassList,
    Posterior,
    case_coords,
    case_units,
    class_indices,
    count_left_out,
    known,
    open_classes,
    open_probabilities,
)
from ppl_med.axes import SAMPLES

_NAMES = ("dice", "iou")


def overlap(
    tree: Posterior,
    *,
    classes: ClassList = None,
    empty: float = np.nan,
    group: str | xr.DataArray | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Compare the predicted mask of every case with the observed one.

    Args:
        tree: The tree of `predict` on cases with one mask each; pixels of -1 count nowhere.
        classes: Names or indices of the classes to score; by default all but the first.
        empty: Figure of a class that both masks lack: NaN leaves the case out of its mean, 1 counts
            it as right. A class that only one of them has is 0.
        group: Units of the errors, as for `discrimination`.
        resamples: How often units are drawn for errors; 0 leaves the errors out.
        level: Probability of the intervals.
        seed: Seed of the resamples.

    Returns:
        Dataset of ``dice``, ``iou`` (case, class), 0..1; ``dice_per_class``, ``iou_per_class``
        (class), their means over cases; ``dice_mean``, ``iou_mean``, the means of those; the last
        four with ``_se``, ``_lower``, ``_upper`` over units, NaN for fewer than 5 of them; and
        ``<name>_mean_per_draw`` (chain, draw) of the masks of single draws.

    Raises:
        TypeError, ValueError: ``probs``, masks or an argument are missing or malformed, or there
            is one label per case.
    """
    empty = check_empty(empty)
    checks.whole("resamples", resamples, 0)
    checks.inside("level", level)
    source = open_classes(tree)
    label = source.labels()
    if label.ndim < 2:
        raise ValueError(
            "tree has one label per case, and overlap is of masks; use scoring.confusion or "
            "scoring.operating_point"
        )
    counts = count_left_out(label, empty=True)
    numbers = class_indices(classes, open_probabilities(tree))
    units, unit = case_units(tree, group, source.array)
    mixture, single = _count(source, numbers)
    nobody = ~known(label).values.reshape(len(label), -1).any(1)
    figures, of_draws = _figures(mixture, empty), _figures(single, empty)
    figures[:, nobody], of_draws[..., nobody, :] = np.nan, np.nan
    result = xr.Dataset(coords={**case_coords(label), **source.samples})
    result = result.assign_coords({"class": [source.names[index] for index in numbers]})
    num_units = len(np.unique(units))
    each = [weight[units] for weight in group_weights(num_units, resamples, seed)]
    for index, name in enumerate(_NAMES):
        per_class = _mean(figures[index])
        again = np.array([_mean(figures[index], weight) for weight in each])
        again = again.reshape(-1, len(numbers))
        result[name] = (("case", "class"), figures[index])
        result[f"{name}_mean_per_draw"] = (SAMPLES, _mean(of_draws[index]).mean(-1))
        for suffix, dims, value, drawn in (
            ("per_class", ("class",), per_class, again),
            ("mean", (), per_class.mean(), again.mean(-1)),
        ):
            result[f"{name}_{suffix}"] = (dims, value)
            if resamples:
                for key, part in named_errors(f"{name}_{suffix}", drawn, level).items():
                    result[key] = (dims, part)
    for variable in result.data_vars.values():
        variable.attrs["units"] = "1"
    about = {"unit": unit, "num_units": num_units, "empty": float(empty)}
    result.attrs |= {**counts, **about, "mask": "most probable class of the mean over draws"}
    if resamples:
        result.attrs |= {"level": level, "resamples": resamples}
    return result


def _count(source: Classes, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels that both masks have, and those of each, of the mixture and of every draw.

    Dims (count, case, class) and (count, chain, draw, case, class).
    """
    shape = (source.sizes["case"], len(numbers))
    mixture = np.zeros((3, *shape))
    single = np.zeros((3, *source.num_samples, *shape))
    for block, probs in source.blocks():
        truth = source.labels(block)
        seen = known(truth)
        for total, table in ((mixture, monte_carlo.mean(probs)), (single, probs)):
            guess = table.argmax("class")
            pixels = [dim for dim in truth.dims if dim != "case"]
            for index, number in enumerate(numbers):
                mine, theirs = (guess == number) & seen, truth == number
                for row, mask in zip(total, (mine & theirs, mine, theirs), strict=True):
                    row[..., block["case"], index] += mask.sum(pixels).values
    return mixture, single


def _figures(counts: np.ndarray, empty: float) -> np.ndarray:
    """Dice and IoU (figure, ..., case, class) from the counts of `_count`."""
    both, mine, theirs = counts
    total = mine + theirs
    blank = np.full(total.shape, float(empty))
    dice = np.divide(2 * both, total, out=blank.copy(), where=total > 0)
    return np.stack([dice, np.divide(both, total - both, out=blank, where=total > 0)])


def _mean(figures: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Mean over cases (..., class) of figures (..., case, class), NaN left out."""
    defined = ~np.isnan(figures)
    weighted = defined if weight is None else defined * weight[:, None]
    total = (np.where(defined, figures, 0.0) * weighted).sum(-2)
    number = weighted.sum(-2)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
