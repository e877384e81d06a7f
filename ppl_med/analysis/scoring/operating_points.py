"""Sensitivity, specificity and predictive values at a stated threshold.

An entry is called a case of class k where the probability of k, the mean over draws, is at least
the threshold:

    sensitivity   share of the entries of k that are called k
    specificity   share of the others that are not
    ppv, npv      share of those called k that are k; of those not called k that are not

Predictive values are those at the ``prevalence`` of this tree, and elsewhere are others.
A threshold that was chosen by looking at the tree's own labels makes the figures too good: choose
it on other cases, by `choose_threshold`.

Source: Altman and Bland, BMJ 308, 1994. Intervals: `ppl_med.analysis.statistics.shares`.
"""

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.scoring.events import Entries, open_entries
from ppl_med.analysis.statistics.shares import share_interval
from ppl_med.analysis.tree import Posterior, case_ids, check_disjoint, known
from ppl_med.axes import SAMPLES

_RATES = {
    "sensitivity": ("true_positive", "false_negative"),
    "specificity": ("true_negative", "false_positive"),
    "ppv": ("true_positive", "false_positive"),
    "npv": ("true_negative", "false_negative"),
}


def operating_point(
    tree: Posterior,
    threshold: float | xr.Dataset = 0.5,
    *,
    group: str | xr.DataArray | None = None,
    level: float = 0.95,
) -> xr.Dataset:
    """Count right and wrong calls of every class at a threshold of its probability.

    Args:
        tree: The tree of `predict` on labelled cases. What is -1 is left out; pixels count one by
            one, and those of a case stay together in intervals.
        threshold: Probability in (0, 1), the same for all classes, or what `choose_threshold`
            learnt on other cases.
        group: Units of the intervals: column of constant_data or coordinate of case, such as
            "patient", or the groups (case); "case" for single cases. By default patients where the
            tree has ``patient``.
        level: Probability of the intervals.

    Returns:
        Dataset over class of ``sensitivity``, ``specificity``, ``ppv``, ``npv`` with ``_lower``,
        ``_upper``, NaN where nothing is counted, and ``_per_draw`` (chain, draw, class); the counts
        ``true_positive``, ``false_positive``, ``true_negative``, ``false_negative``;
        ``threshold`` and ``prevalence``.

    Raises:
        TypeError, ValueError: ``probs``, labels, groups or an argument are missing or malformed,
            or the threshold was chosen on a case of the tree.
    """
    checks.inside("level", level)
    entries = open_entries(tree, group)
    limits = _limits(threshold, entries)
    calls = _counts(entries, entries.source.mixture(), limits)
    names = entries.source.names
    result = xr.Dataset(coords={**entries.source.samples, "class": names})
    rows = [
        {name: count.sum(0) for name, count in _counts(entries, table, limits).items()}
        for table in entries.source.draws()
    ]
    for rate, (right, wrong) in _RATES.items():
        value, low, high = share_interval(calls[right], calls[right] + calls[wrong], level)
        for suffix, part in (("", value), ("_lower", low), ("_upper", high)):
            result[rate + suffix] = ("class", part)
        total = np.array([row[right] + row[wrong] for row in rows], np.float64)
        single = np.array([row[right] for row in rows]) / np.where(total > 0, total, np.nan)
        shape = (*entries.source.num_samples, -1)
        result[f"{rate}_per_draw"] = ((*SAMPLES, "class"), single.reshape(shape))
    events = calls["true_positive"].sum(0) + calls["false_negative"].sum(0)
    result["threshold"] = ("class", limits)
    result["prevalence"] = ("class", events / len(entries.label))
    for variable in result.data_vars.values():
        variable.attrs["units"] = "probability"
    for name, count in calls.items():
        result[name] = ("class", count.sum(0).astype(np.int64), {"units": "entries"})
    result.attrs |= {**entries.attrs, "level": level}
    result.attrs["mixture"] = "mean of probs over chain and draw"
    return result


def choose_threshold(
    tree: Posterior, *, sensitivity: float | None = None, specificity: float | None = None
) -> xr.Dataset:
    """Choose the threshold of every class that reaches a sensitivity, or a specificity.

    Args:
        tree: The tree of `predict` on labelled cases that are not those of the test.
        sensitivity: Share of the entries of a class to call; the highest such threshold is taken.
        specificity: Share of the others not to call; the lowest such threshold is taken.

    Returns:
        Dataset of ``threshold`` (class) with the ids of its cases, for `operating_point`.

    Raises:
        TypeError, ValueError: Neither or both are given, a class never or always occurs, or the
            cases have no ids.
    """
    given = {"sensitivity": sensitivity, "specificity": specificity}
    asked = {name: value for name, value in given.items() if value is not None}
    if len(asked) != 1:
        checks.reject("sensitivity, specificity", "one of the two", given)
    ((name, value),) = asked.items()
    share = checks.inside(name, value)
    entries = open_entries(tree, "case")
    labelled = known(entries.source.labels())
    rows = np.flatnonzero(labelled.any([dim for dim in labelled.dims if dim != "case"]))
    ids = case_ids(entries.source.array)[rows]
    limits = []
    for index, score in enumerate(entries.scores(entries.source.mixture())):
        of_class = (entries.label == index) == (name == "sensitivity")
        if of_class.all() or not of_class.any():
            raise ValueError(
                f"class {entries.source.names[index]!r} never or always occurs, so no threshold "
                "can be chosen for it; choose it on cases of every class"
            )
        counted = np.sort(score[of_class])
        number = int(np.ceil(share * len(counted) - 1e-9))
        reached = counted[-number] if name == "sensitivity" else counted[number - 1]
        limits.append(reached if name == "sensitivity" else np.nextafter(reached, 2))
    result = xr.Dataset({"threshold": ("class", limits, {"units": "probability"})})
    result = result.assign_coords({"class": entries.source.names, "case": ids})
    return result.assign_attrs(entries.attrs | asked)


def _limits(threshold: float | xr.Dataset, entries: Entries) -> np.ndarray:
    names = entries.source.names
    if not isinstance(threshold, xr.Dataset):
        return np.full(len(names), checks.inside("threshold", threshold))
    if not {"threshold", "class", "case"} <= set(threshold.variables):
        checks.reject("threshold", "a number, or the Dataset of choose_threshold", threshold)
    if threshold["class"].values.tolist() != names:
        raise ValueError(
            f"threshold was chosen for the classes {threshold['class'].values.tolist()}; the tree "
            f"has {names}"
        )
    check_disjoint(threshold["case"].values, case_ids(entries.source.array))
    return threshold["threshold"].values


def _counts(entries: Entries, table: xr.DataArray, limits: np.ndarray) -> dict[str, np.ndarray]:
    """Right and wrong calls of every unit (unit, class)."""
    found: dict[str, list[np.ndarray]] = {name: [] for pair in _RATES.values() for name in pair}
    for index, score in enumerate(entries.scores(table)):
        called, true = score >= limits[index], entries.label == index
        for name in found:
            kind = called == name.endswith("positive")
            chosen = kind & ((called == true) == name.startswith("true"))
            found[name].append(np.bincount(entries.group, chosen, entries.num_groups))
    return {name: np.stack(rows, 1) for name, rows in found.items()}
