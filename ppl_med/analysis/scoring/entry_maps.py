"""Scores of every entry, a case or a pixel, and counts of the classes they were taken for.

The intersection over union of a class is its count on the diagonal of the confusion matrix over
all entries that are, or are predicted to be, of the class; the mean is over classes that occur.

Source: Everingham et al., IJCV 111, 2015 (IoU from counts over a data set).
"""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from ppl_med.analysis.scoring.class_scores import terms
from ppl_med.analysis.statistics import monte_carlo
from ppl_med.analysis.tree import (
    UNANNOTATED,
    Block,
    Classes,
    Posterior,
    count_left_out,
    join_blocks,
    open_classes,
)

_UNITS = {"nll": "nats", "brier": "1", "predicted": "class index"}


def entry_scores(tree: Posterior) -> xr.Dataset:
    """Score the mixture of the draws at every entry: maps, where there is a class per pixel.

    Args:
        tree: The tree of `predict` on labelled cases; -1 where not annotated.

    Returns:
        Dataset over (case, ...): ``predicted``, the most probable class (first on a tie), its
        probability ``confidence``; and NaN where not annotated ``correct``, ``nll`` in nats, of
        the mixture of ``probs``, and ``brier``. Behind the end of a case smaller than others
        ``predicted`` is -1 and the rest NaN.

    Raises:
        TypeError, ValueError: ``probs`` or the labels are missing or malformed.
    """
    source = open_classes(tree)
    counts = count_left_out(source.labels(), empty=True)
    parts = []
    for block, mean, label in _mixtures(source):
        found = xr.Dataset(terms(mean, label)._asdict())
        found["confidence"], found["predicted"] = mean.max("class"), mean.argmax("class")
        inside = source.inside(block)
        if inside is not None:
            found["confidence"] = found["confidence"].where(inside)
            found["predicted"] = found["predicted"].where(inside, UNANNOTATED)
        parts.append((block, found))
    result = join_blocks(parts)
    for name, variable in result.data_vars.items():
        variable.attrs["units"] = _UNITS.get(str(name), "probability")
    return result.assign_attrs(counts)


def confusion(tree: Posterior) -> xr.Dataset:
    """Count what every class was taken for by the mixture of the draws.

    Args:
        tree: The tree of `predict` on labelled cases; what is -1 is not counted.

    Returns:
        Dataset of ``confusion`` (case, class, predicted), entries of a class by the class that is
        most probable; ``iou_per_class`` (class), NaN for a class that neither occurs nor is
        predicted, and its mean ``iou``; both with ``_se`` over cases (jackknife; NaN for one).

    Raises:
        TypeError, ValueError: ``probs`` or the labels are missing or malformed.
    """
    source = open_classes(tree)
    label, names = source.labels(), source.names
    counts, size = count_left_out(label, empty=True), len(names)
    found = np.zeros((source.sizes["case"], size, size), np.int64)
    for block, mean, truth in _mixtures(source):
        guess = mean.argmax("class").transpose(*truth.dims)
        for case, one, other in zip(found[block["case"]], truth.values, guess.values, strict=True):
            seen = one >= 0
            flat = np.bincount(size * one[seen] + other[seen], minlength=size**2)
            case += flat.reshape(size, size)
    coords = {**label["case"].coords, "class": names, "predicted": names}
    result = xr.Dataset({"confusion": (("case", "class", "predicted"), found)}, coords)
    result["confusion"].attrs["units"] = "entries"
    annotated = found[found.any((1, 2))]
    without = annotated.sum(0) - annotated  # each case in turn
    for name, of, dims in (("iou_per_class", class_iou, ("class",)), ("iou", mean_iou, ())):
        result[name] = (dims, of(annotated.sum(0)))
        spread = np.full(result[name].shape, np.nan)
        if len(annotated) > 1:
            spread = np.sqrt(
                (len(annotated) - 1) * of(without).var(0)
            )  # NaN if one case has it all
        result[f"{name}_se"] = (dims, spread, {"note": "over cases, jackknife"})
    for name in ("iou_per_class", "iou_per_class_se", "iou", "iou_se"):
        result[name].attrs["units"] = "1"
    return result.assign_attrs(counts)


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """Return the IoU (..., class) from counts (..., class, predicted); NaN where there are none."""
    both = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    union = confusion.sum(-1) + confusion.sum(-2) - both
    return np.divide(both, union, out=np.full(both.shape, np.nan), where=union > 0)


def mean_iou(confusion: np.ndarray) -> np.ndarray:
    """Return the mean IoU (...) over classes that occur; counts as for `class_iou`."""
    per_class = class_iou(confusion)
    occurs = ~np.isnan(per_class)
    number = occurs.sum(-1)
    total = np.where(occurs, per_class, 0.0).sum(-1)
    return np.divide(total, number, out=np.full(np.shape(number), np.nan), where=number > 0)


def _mixtures(source: Classes) -> Iterator[tuple[Block, xr.DataArray, xr.DataArray]]:
    """Mixture and observed class of every block."""
    for block, probs in source.blocks():
        yield block, monte_carlo.mean(probs), source.labels(block)
