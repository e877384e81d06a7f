"""Calibration within groups of cases: sites, scanners, sexes; overall can hide what each lacks.

Source: Hébert-Johnson et al., ICML 2018, arXiv:1711.08513 (calibration of every group).
"""

from typing import Any

import numpy as np
import xarray as xr

from ppl_med.analysis.calibration.class_errors import errors
from ppl_med.analysis.tree import metadata_groups, open_classes


def errors_by_group(tree: xr.DataTree, by: str | xr.DataArray, **options: Any) -> xr.Dataset:
    """Measure the calibration of every group of cases by itself.

    Args:
        tree: The tree of `predict` on labelled cases, one label per case, -1 left out.
        by: Name of a column of constant_data, or the groups themselves (case).
        **options: Options of `errors`, for every group. Errors of small groups are large by chance:
            read them beside ``_null`` and ``_pvalue``.

    Returns:
        What `errors` returns, with group as a further dimension, first, and ``count`` (group).

    Raises:
        TypeError, ValueError: As for `errors`; no such column, or a case without a group.
    """
    source = open_classes(tree)
    label, known, counts = source.labelled_cases()
    group = metadata_groups(tree, by, source.array, "by").values[known]
    names, count = np.unique(group, return_counts=True)
    parts = []
    for name in names:
        rows = known[group == name]
        part = {
            "/posterior": source.array.isel(case=rows).to_dataset(name="probs"),
            "/observed_data": xr.Dataset({"label": ("case", label[group == name])}),
        }
        parts.append(errors(xr.DataTree.from_dict(part), **options))
    result = xr.concat(parts, xr.IndexVariable("group", names), combine_attrs="drop_conflicts")
    result["count"] = ("group", count)
    result.attrs.update(counts)
    return result
