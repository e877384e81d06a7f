"""Does the model rank the cases of a class above the rest: AUROC, average precision, curves.

Each class is taken against all others by its probability in the mixture, the mean of ``probs``
over draws; the same figure of every single draw stands beside it. With two classes the headline
figures are of one of them, the last unless ``positive`` names it; with more they are the mean over
classes that occur (macro). Errors are over patients where the tree knows them, else over cases.
AUROC of a model that never sees the image is 0.5, its average precision the ``prevalence``.

Sources: Hanley and McNeil, Radiology 143, 1982 (AUROC); Fawcett, Pattern Recognition Letters 27,
2006 (curves, bands by vertical averaging); Davis and Goadrich, ICML 2006 (precision and recall).
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.scoring.events import Entries, Figure, open_entries, positive_class
from ppl_med.analysis.statistics import ranking
from ppl_med.analysis.statistics.group_resampling import named_errors
from ppl_med.analysis.tree import Posterior
from ppl_med.axes import SAMPLES

GRID = np.linspace(0, 1, 201)
_NAMES = ("auroc", "average_precision")
_INTERVAL = "percentiles of resamples of the units, with replacement"


def discrimination(
    tree: Posterior,
    *,
    positive: str | int | None = None,
    group: str | xr.DataArray | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Measure how well the mixture of the draws, and every draw, ranks each class above the rest.

    Args:
        tree: The tree of `predict` on labelled cases. What is -1 is left out; pixels of masks
            count one by one, and those of a case stay together in errors.
        positive: Class of the headline figures; by default the last of two, and of more all.
        group: Units of the errors: column of constant_data or coordinate of case, such as
            "patient", or the groups (case); "case" for single cases. By default patients where the
            tree has ``patient``.
        resamples: How often units are drawn for errors; 0 leaves the errors out.
        level: Probability of the intervals.
        seed: Seed of the resamples.

    Returns:
        Dataset of scalars ``auroc`` and ``average_precision`` (probability),
        ``<name>_per_class`` (class), NaN for a class that never or always occurs, and
        ``prevalence`` (class); each of the first two with ``_se``, ``_lower``, ``_upper`` over
        units, NaN for fewer than 5 of them, and ``<name>_per_draw`` (chain, draw).

    Raises:
        TypeError, ValueError: ``probs``, labels, groups or an argument are missing or malformed.
    """
    _check(resamples, level)
    entries = open_entries(tree, group)
    chosen = positive_class(entries.source, positive)
    mixture, single = entries.mixture(_areas), entries.draws(_areas)
    drawn = entries.resampled(_areas, resamples, seed) if resamples else None
    occurs = ~np.isnan(mixture[:, 0])
    result = xr.Dataset(coords={**entries.source.samples, "class": entries.source.names})
    for index, name in enumerate(_NAMES):
        one = None if drawn is None else drawn[..., index]
        overall = None if one is None else _overall(one, chosen, occurs)
        result = _add(result, name, (), _overall(mixture[:, index], chosen, occurs), overall, level)
        result = _add(result, f"{name}_per_class", ("class",), mixture[:, index], one, level)
        result[f"{name}_per_draw"] = (SAMPLES, _overall(single[..., index], chosen, occurs))
    count = np.bincount(entries.label, minlength=len(entries.source.names))
    result["prevalence"] = ("class", count / count.sum())
    return _describe(result, entries, chosen, level, resamples)


def roc(
    tree: Posterior,
    *,
    group: str | xr.DataArray | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Trace the ROC curve of every class against the rest, with a band over units.

    Args:
        tree: The tree of `predict` on labelled cases.
        group: As for `discrimination`.
        resamples: Likewise; 0 leaves the band out.
        level: Probability of the band, point by point.
        seed: Seed of the resamples.

    Returns:
        Dataset over ``false_positive_rate``, 201 values from 0 to 1: ``true_positive_rate`` (class,
        false_positive_rate) of the mixture, linear between thresholds, with ``_lower``, ``_upper``,
        and ``_per_draw`` (chain, draw, class, false_positive_rate); ``auroc`` (class) with
        ``_lower``, ``_upper``.

    Raises:
        TypeError, ValueError: As for `discrimination`.
    """
    _check(resamples, level)
    entries = open_entries(tree, group)
    names = {"auroc": slice(0, 1), "true_positive_rate": slice(1, None)}
    axis = "false_positive_rate"
    found = _curve(entries, _roc_points, names, axis, resamples, level, seed)
    return _describe(found, entries, None, level, resamples)


def precision_recall(
    tree: Posterior,
    *,
    group: str | xr.DataArray | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Trace precision (PPV) against recall (sensitivity) of every class, with a band over units.

    Args:
        tree: The tree of `predict` on labelled cases.
        group: As for `discrimination`.
        resamples: Likewise; 0 leaves the band out.
        level: Probability of the band, point by point.
        seed: Seed of the resamples.

    Returns:
        Dataset over ``recall``, 200 values from 0.005 to 1: ``precision`` (class, recall) at the
        highest threshold that reaches it, with ``_lower``, ``_upper`` and ``_per_draw`` (chain,
        draw, class, recall); ``average_precision`` (class) with ``_lower``, ``_upper``; and
        ``prevalence`` (class), the precision of a model that never sees the image.

    Raises:
        TypeError, ValueError: As for `discrimination`.
    """
    _check(resamples, level)
    entries = open_entries(tree, group)
    names = {"average_precision": slice(0, 1), "precision": slice(1, None)}
    result = _curve(entries, _precision_points, names, "recall", resamples, level, seed)
    count = np.bincount(entries.label, minlength=len(entries.source.names))
    result["prevalence"] = ("class", count / count.sum(), {"units": "probability"})
    return _describe(result, entries, None, level, resamples)


def _areas(events: np.ndarray, others: np.ndarray) -> np.ndarray:
    if not others.any():  # a class that every entry has: nothing is ranked
        return np.full(2, np.nan)
    return np.array([ranking.auroc(events, others), ranking.average_precision(events, others)])


def _roc_points(events: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.append(ranking.auroc(events, others), ranking.roc(events, others, GRID))


def _precision_points(events: np.ndarray, others: np.ndarray) -> np.ndarray:
    area = _areas(events, others)[1]
    return np.append(area, ranking.precision_at_recall(events, others, GRID[1:]))


def _overall(values: np.ndarray, chosen: int | None, occurs: np.ndarray) -> np.ndarray:
    """One figure of those per class (..., class): of one class, or the mean over those there are.

    A resample that lacks a class has no mean.
    """
    if chosen is not None:
        return np.asarray(values[..., chosen])
    return np.asarray(values[..., occurs].mean(-1) if occurs.any() else values[..., 0])


def _curve(
    entries: Entries,
    figure: Figure,
    names: Mapping[str, slice],
    axis: str,
    resamples: int,
    level: float,
    seed: int,
) -> xr.Dataset:
    """An area per class and a curve, from a function that gives both."""
    mixture, single = entries.mixture(figure), entries.draws(figure)
    drawn = entries.resampled(figure, resamples, seed) if resamples else None
    area, curve = names
    grid = GRID[-(mixture.shape[1] - 1) :]
    coords = {**entries.source.samples, "class": entries.source.names, axis: grid}
    result = xr.Dataset(coords=coords)
    part = None if drawn is None else drawn[..., 0]
    result = _add(result, area, ("class",), mixture[:, 0], part, level)
    part = None if drawn is None else drawn[..., 1:]
    result = _add(result, curve, ("class", axis), mixture[:, 1:], part, level)
    result[f"{curve}_per_draw"] = ((*SAMPLES, "class", axis), single[..., 1:])
    result[axis].attrs["units"] = "probability"
    return result


def _add(
    result: xr.Dataset,
    name: str,
    dims: tuple[str, ...],
    value: np.ndarray,
    drawn: np.ndarray | None,
    level: float,
) -> xr.Dataset:
    result[name] = (dims, value)
    if drawn is not None:
        for key, part in named_errors(name, drawn, level).items():
            result[key] = (dims, np.where(np.isnan(value), np.nan, part))
    return result


def _describe(
    result: xr.Dataset, entries: Entries, chosen: int | None, level: float, resamples: int
) -> xr.Dataset:
    for variable in result.data_vars.values():
        variable.attrs["units"] = "probability"
    names = entries.source.names
    result.attrs |= entries.attrs
    result.attrs["mixture"] = "mean of probs over chain and draw"
    if "auroc_per_class" in result:
        mean = "mean over classes that occur"
        result.attrs["headline"] = mean if chosen is None else f"class {names[chosen]}"
    if resamples:
        result.attrs |= {"level": level, "resamples": resamples, "interval": _INTERVAL}
    return result


def _check(resamples: int, level: float) -> None:
    checks.whole("resamples", resamples, 0)
    checks.inside("level", level)
