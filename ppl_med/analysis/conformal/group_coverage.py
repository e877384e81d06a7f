"""Coverage group by group, with exact bands, and how large the sets are."""

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.conformal import order_statistics, thresholds
from ppl_med.analysis.conformal.achieved import group_counts
from ppl_med.analysis.statistics import binning
from ppl_med.analysis.tree import (
    Posterior,
    check_cases,
    count_left_out,
    metadata_groups,
    open_classes,
)


def coverage(
    sets: xr.Dataset,
    tree: Posterior | None = None,
    by: str | xr.DataArray = "class",
    *,
    level: float = order_statistics.LEVEL,
) -> xr.Dataset:
    """Return the coverage of every group of test cases.

    Args:
        sets: What `predict_sets`, `predict_intervals` or a function for training cases returned
            for labelled cases.
        tree: The tree the sets were made for; needed unless ``by`` is an array or "set_size".
        by: "class" (the true class), "set_size", a column of constant_data, or groups (case).
        level: Probability of the band of each group.

    Returns:
        Dataset over ``group``: ``coverage``, ``count``, ``expected``, ``lower``, ``upper``, the
        band of the Beta-binomial distribution given n and k, and ``interval_lower``,
        ``interval_upper``, the exact (Clopper-Pearson) 95 % interval of the group's own coverage
        with these thresholds. The band is what a group must show that is exchangeable with the
        calibration cases: for groups that had thresholds of their own (attribute ``promised`` is
        1), whatever the model; for others it is no promise, and a group outside is one that the
        model treats worse or better. ``mean_size`` or ``mean_width`` where sets or intervals were
        made. With weights, or from training cases, there is no such distribution and no band. Cases
        without an observation are left out.

    Raises:
        TypeError, ValueError: ``sets`` holds no ``covered``, or the groups are malformed.
    """
    if not isinstance(sets, xr.Dataset) or "covered" not in sets:
        raise TypeError("sets must be the Dataset of predict_sets for cases with labels.")
    checks.inside("level", level)
    groups, seen = _groups(sets, tree, by), sets["covered"].notnull()
    left_out = count_left_out(seen)
    if not seen.all():
        kept = np.flatnonzero(seen)
        groups, sets = groups.isel(case=kept), sets.isel(case=kept)
    names = _ordered(groups.values)
    member = [groups.values == name for name in names]
    count = np.array([part.sum() for part in member])
    hits = np.array([sets["covered"].values[part].sum() for part in member])
    low, high = binning.clopper_pearson(hits, count)
    figures = {"coverage": hits / count, "interval_lower": low, "interval_upper": high}
    if "threshold" in sets:  # the distribution is that of split calibration alone
        figures |= _bands(sets, member, level)
    result = xr.Dataset(
        {name: ("group", values, {"units": "probability"}) for name, values in figures.items()},
        coords={"group": names},
    )
    result["count"] = ("group", count)
    for source, name in (("set_size", "mean_size"), ("width", "mean_width")):
        if source in sets:
            means = [float(sets[source].values[part].mean()) for part in member]
            result[name] = ("group", means, {"units": sets[source].attrs.get("units", "1")})
    own = sets.attrs.get("within", "")
    result.attrs.update(left_out, by=by if isinstance(by, str) else "array", level=level)
    result.attrs.update(alpha=float(sets.attrs["alpha"]), within=own)
    result.attrs["promised"] = int(bool(own) and _refines(sets, groups))
    return result


def set_sizes(sets: xr.Dataset) -> xr.Dataset:
    """Return how large the prediction sets are.

    Args:
        sets: What `predict_sets` returned.

    Returns:
        ``count`` and ``share`` over ``size`` (0 to the number of classes), and scalars ``mean``
        with ``mean_se`` over cases, ``empty``, ``single``, the shares of those sizes; with labels
        also ``coverage`` over ``size``, NaN where no set has it.

    Raises:
        TypeError: ``sets`` is something else.
    """
    if not isinstance(sets, xr.Dataset) or "prediction_set" not in sets:
        raise TypeError("sets must be the Dataset of predict_sets.")
    sizes = sets["prediction_set"].sum("class").values
    total = sets["prediction_set"].sizes["class"] + 1
    count = np.bincount(sizes, minlength=total)
    error = sizes.std(ddof=1) / len(sizes) ** 0.5 if len(sizes) > 1 else np.nan
    share = count / len(sizes)
    result = xr.Dataset(
        {
            "count": ("size", count),
            "share": ("size", share, {"units": "probability"}),
            "mean": sizes.mean(),
            "mean_se": error,
            "empty": share[0],
            "single": share[1],
        },
        coords={"size": np.arange(total)},
    )
    if "covered" in sets:
        seen = sets["covered"].notnull().values
        hits = np.bincount(sizes[seen], sets["covered"].values[seen], minlength=total)
        count = np.bincount(sizes[seen], minlength=total)
        rate = np.divide(hits, count, out=np.full(total, np.nan), where=count > 0)
        result["coverage"] = ("size", rate, {"units": "probability"})
    for name in ("mean", "mean_se"):
        result[name].attrs["units"] = "classes"
    return result


def _groups(sets: xr.Dataset, tree: Posterior | None, by: str | xr.DataArray) -> xr.DataArray:
    if not isinstance(by, str):
        return metadata_groups(xr.DataTree(), by, sets["covered"], "by")
    if by == "set_size":
        if "set_size" not in sets:
            raise ValueError("by='set_size' needs sets of classes; these are intervals.")
        return xr.DataArray(sets["set_size"].values.astype(str), dims="case")
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"by={by!r} needs the tree the sets were made for.")
    if by != "class":
        return metadata_groups(tree, by, sets["covered"], "by")
    classes = open_classes(tree)
    check_cases(classes.array, sets["covered"], "tree")
    return thresholds.class_groups(classes, classes.case_labels())


def _ordered(values: np.ndarray) -> list[str]:
    """Sort names, numbers by value."""
    names = sorted(set(values.tolist()))
    return sorted(names, key=float) if all(name.isdigit() for name in names) else names


def _bands(sets: xr.Dataset, member: list[np.ndarray], level: float) -> dict[str, np.ndarray]:
    if "group" in sets["n"].dims and "case_group" not in sets:
        return {}
    parts = []
    for part in member:
        own = sets["case_group"][part] if "case_group" in sets else None
        parts.append(group_counts(sets, int(part.sum()), own))
    bands = np.array([order_statistics.joint_band(part, level) for part in parts])
    expected = np.array([order_statistics.expected_coverage(part) for part in parts])
    return {"expected": expected, "lower": bands[:, 0], "upper": bands[:, 1]}


def _refines(sets: xr.Dataset, groups: xr.DataArray) -> bool:
    """Whether every group is made of whole groups that had a threshold of their own."""
    if "case_group" not in sets:
        return False
    pairs = set(zip(sets["case_group"].values.tolist(), groups.values.tolist(), strict=True))
    return len(pairs) == len({own for own, _ in pairs})
