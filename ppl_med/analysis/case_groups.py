"""Errors of any figure where cases come in groups: the films of a patient, the slices of a volume.

Cases of one patient are alike, so a standard error over cases is too small. Here whole groups are
drawn again with replacement and the analysis is run anew on each such tree, which serves every
analysis and every figure that is one number for all cases.

Source: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8: resample
the highest level alone.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.statistics.group_resampling import FEWEST, chosen_groups
from ppl_med.analysis.tree import blocks, find_group, metadata_groups

__all__ = ["bootstrap"]

_SUFFIXES = ("_se", "_mcse", "_lower", "_upper")


def bootstrap(
    analysis: Callable[[xr.DataTree], xr.Dataset],
    tree: xr.DataTree,
    group: str | xr.DataArray,
    *,
    resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Standard errors and intervals over groups of cases, by resampling whole groups.

    ``bootstrap(scoring.score, tree, group="patient")`` is the accuracy with the error over
    patients. For the coverage of prediction sets over new patients, at the calibration there was:
    ``bootstrap(lambda part: conformal.predict_sets(calibration, part), tree, group="patient")``.

    Args:
        analysis: From a tree to a Dataset; set its other arguments with ``functools.partial``. It
            is called once for every resample, so reduce large trees before.
        tree: The tree of `predict`.
        group: Column of constant_data, such as "patient", or the groups (case).
        resamples: How often groups are drawn.
        level: Probability of the percentile intervals, in (0, 1).
        seed: Seed of the draws.

    Returns:
        Dataset with every number that has no dimension case, draw or chain: ``<name>``, of the
        tree itself, ``<name>_se``, ``<name>_lower`` and ``<name>_upper``. NaN where a resample has
        no such figure does not count. Attributes say how many groups there are. With fewer than
        some 20 groups the intervals are too short, and figures that are biased in small samples
        (an expected calibration error near 0) are biased in the resamples once more: for these take
        `calibration.errors`.

    Raises:
        TypeError, ValueError: Fewer than 5 groups, a malformed group or argument, or the analysis
            fails on a resample.
    """
    checks.whole("resamples", resamples, 20)
    checks.inside("level", level)
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"tree must be the DataTree of predict, not {type(tree).__name__}.")
    cases = _any_with_cases(tree)
    groups = metadata_groups(tree, group, cases, "group").values
    names, index = np.unique(groups, return_inverse=True)
    if len(names) < FEWEST:
        raise ValueError(
            f"group has {len(names)} different values in {len(groups)} cases; an error over groups "
            f"needs {FEWEST} or more, and is worth something from 20 on."
        )
    if tree.nbytes <= blocks.BLOCK_BYTES:
        tree = tree.compute()  # a lazy one would be read for every resample
    members = [np.flatnonzero(index == number) for number in range(len(names))]
    whole = analysis(tree)
    point = _figures(whole)
    found = []
    for chosen in chosen_groups(len(names), int(resamples), seed):
        rows = np.concatenate([members[number] for number in chosen])
        found.append(_figures(analysis(_again(tree, rows)))[list(point)])
    joined = xr.concat(found, "resample", join="outer")
    tail = (1 - level) / 2
    parts: dict[str, Any] = {}
    for name, figure in point.items():
        drawn = joined[name].astype(np.float64)
        known = drawn.notnull().any("resample")  # NumPy warns of a quantile of nothing but NaN
        ends = drawn.where(known, 0).quantile([tail, 1 - tail], "resample").where(known)
        parts |= {
            str(name): figure,
            f"{name}_se": drawn.std("resample", ddof=1).assign_attrs(figure.attrs),
            f"{name}_lower": ends[0].drop_vars("quantile").assign_attrs(figure.attrs),
            f"{name}_upper": ends[1].drop_vars("quantile").assign_attrs(figure.attrs),
        }
    about = {"num_groups": len(names), "level": level}
    by = group if isinstance(group, str) else "array"
    own = {"group": by, "resamples": int(resamples), **about}
    return xr.Dataset(parts, attrs={**whole.attrs, **own})


def _any_with_cases(tree: xr.DataTree) -> xr.DataArray:
    for name in tree.children:
        for array in find_group(tree, name).values():
            if "case" in array.dims:
                return array
    raise ValueError("tree has no variable with the dimension case.")


def _again(tree: xr.DataTree, rows: np.ndarray) -> xr.DataTree:
    """The cases of a resample, each with an id of its own."""
    count: dict[int, int] = {}
    numbers = []
    for row in rows.tolist():
        count[row] = count.get(row, 0) + 1
        numbers.append(count[row])
    groups = {"/": tree.to_dataset()}
    for name in tree.children:
        part = find_group(tree, name)
        if "case" in part.dims:
            part = part.isel(case=rows)
            if "case" in part.coords:
                ids = [f"{case}#{n}" for case, n in zip(part["case"].values, numbers, strict=True)]
                part = part.assign_coords(case=ids)
        groups[f"/{name}"] = part
    return xr.DataTree.from_dict(groups)


def _figures(result: xr.Dataset) -> xr.Dataset:
    """What is one number for all cases, not an error or the end of an interval."""
    names = [
        str(name)
        for name, array in result.data_vars.items()
        if not {"case", "chain", "draw"} & set(array.dims)
        and array.dtype.kind in "fiu"
        and not str(name).endswith(_SUFFIXES)
    ]
    kept = result[names]
    return kept.drop_vars([name for name in kept.coords if "case" in kept[name].dims])
