"""Does a score find what it should: cases from elsewhere, and cases that are predicted wrongly?

The orientation is fixed, larger is more unlike: a score that is lower off the data has an AUROC
below 0.5 and is reported so. A constant score has 0.5.
"""

from collections.abc import Iterable

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.ood.found import check_alike
from ppl_med.analysis.statistics import ranking
from ppl_med.analysis.statistics.group_resampling import group_weights, named_errors
from ppl_med.analysis.tree import case_units, check_disjoint, metadata_groups, open_classes

RECALL = 0.95
_NAMES = ("auroc", "average_precision", "false_alarms_at_95")


def evaluate(
    inside: xr.Dataset,
    outside: xr.Dataset,
    *,
    group_inside: xr.DataArray | None = None,
    group_outside: xr.DataArray | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Compare scores of in-distribution cases with those of cases from elsewhere.

    Args:
        inside: What `score` gave for in-distribution cases, not those of the reference.
        outside: The same for cases from elsewhere.
        group_inside: Units of the errors, such as patients (case); cases without it.
        group_outside: Likewise.
        resamples: How often units of both are drawn for the errors.
        level: Probability of the intervals.
        seed: Seed of the resamples.

    Returns:
        Dataset of ``auroc``: probability that a case from elsewhere scores higher, ties count half;
        ``average_precision`` of finding those from elsewhere, and ``prevalence``, what chance
        gives; ``false_alarms_at_95``: share of the in-distribution cases at or above the threshold
        that finds 95 % of the others; each with ``_se``, ``_lower``, ``_upper``, NaN for fewer than
        5 units.

    Raises:
        TypeError, ValueError: Malformed arguments, or scores that were not made in the same way.
    """
    checks.whole("resamples", resamples, least=0)
    checks.inside("level", level)
    scores = [_values(inside, "inside"), _values(outside, "outside")]
    check_alike(inside, outside, ("inside", "outside"))
    if all("case" in one.coords for one in (inside, outside)):
        ids = inside["case"].values, outside["case"].values
        check_disjoint(*ids, "inside and outside", "a case is either of the same kind or not")
    units = [
        _units(inside, group_inside, "group_inside"),
        _units(outside, group_outside, "group_outside"),
    ]
    event = np.repeat([False, True], [len(one) for one in scores])
    groups = np.concatenate([units[0], units[1] + 1 + units[0].max(initial=-1)])
    table = ranking.rank(np.concatenate(scores), event, groups)
    sizes = [len(np.unique(one)) for one in units]
    pairs = zip(  # of none, where either has too few units
        group_weights(sizes[0], resamples, seed),
        group_weights(sizes[1], resamples, seed + 1),
        strict=False,
    )
    result = _with_errors(table, map(np.concatenate, pairs), level)
    result.attrs = {"score": inside.attrs.get("score", ""), "level": level}
    result["prevalence"] = event.mean()
    result.attrs |= {"num_inside": len(scores[0]), "num_outside": len(scores[1])}
    result.attrs |= {"units_inside": sizes[0], "units_outside": sizes[1]}
    return result


def evaluate_failures(
    found: xr.Dataset,
    tree: xr.DataTree,
    *,
    group: str | xr.DataArray | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Compare scores of cases that are predicted wrongly with those of the others.

    Args:
        found: What `score` gave.
        tree: The tree that was scored, with labels; cases of -1 are left out.
        group: Units of the errors: a column such as "patient", or the groups (case).
        resamples: How often units are drawn for the errors.
        level: Probability of the intervals.
        seed: Seed of the resamples.

    Returns:
        As for `evaluate`, of finding wrong predictions; NaN where all are right or all wrong.

    Raises:
        TypeError, ValueError: Malformed arguments, or other cases.
    """
    source = open_classes(tree)
    label, rows, counts = source.labelled_cases()
    values = _values(found, "found")
    if "case" in found.coords and not np.array_equal(found["case"], source.array["case"]):
        raise ValueError("found and tree hold other cases; score the same tree.")
    wrong = source.mixture().values[rows].argmax(1) != label
    by = "case" if group is None else group
    units = np.unique(case_units(tree, by, source.array)[0][rows], return_inverse=True)[1]
    table = ranking.rank(values[rows], wrong, units)
    weights = group_weights(len(np.unique(units)), resamples, seed)
    result = _with_errors(table, weights, level)
    result.attrs = {"score": found.attrs.get("score", ""), "level": level, **counts}
    result["prevalence"] = wrong.mean()
    return result


def _with_errors(table: ranking.Ranking, weights: Iterable[np.ndarray], level: float) -> xr.Dataset:
    """Every figure with the errors that resamples of the units give; NaN without resamples."""
    point = _figures(*table.counts())
    drawn = np.array([_figures(*table.counts(weight)) for weight in weights])
    drawn = drawn.reshape(-1, len(_NAMES))
    result = xr.Dataset()
    for index, name in enumerate(_NAMES):
        result[name] = point[index]
        result = result.assign(named_errors(name, drawn[:, index], level))
    return result


def _values(found: xr.Dataset, name: str) -> np.ndarray:
    if not isinstance(found, xr.Dataset) or "score" not in found:
        raise TypeError(f"{name} must be what ood.score gave, not {type(found).__name__}.")
    values = found["score"].values
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has scores that are NaN or infinite.")
    return values


def _units(found: xr.Dataset, group: xr.DataArray | None, name: str) -> np.ndarray:
    if group is None:
        return case_units(None, "case", found["score"])[0]
    names = metadata_groups(None, group, found["score"], name).values
    return np.unique(names, return_inverse=True)[1]


def _figures(events: np.ndarray, others: np.ndarray) -> list[float]:
    """AUROC, average precision, false alarms, from counts by falling score."""
    alarms = float("nan")
    if events.sum() and others.sum():
        hits = events.cumsum() / events.sum()
        place = int(np.searchsorted(hits, RECALL - 1e-12))
        alarms = float(others.cumsum()[place] / others.sum())
    precision = ranking.average_precision(events, others) if others.sum() else float("nan")
    return [ranking.auroc(events, others), precision, alarms]
