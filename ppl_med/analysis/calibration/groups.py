"""Calibration within groups of cases: sites, scanners, sexes; overall can hide what each lacks.

Source: Hébert-Johnson et al., ICML 2018, arXiv:1711.08513 (calibration of every group).
"""

from typing import Any

import numpy as np
import xarray as xr

from ppl_med.analysis.calibration.cases import case_labels
from ppl_med.analysis.calibration.errors import errors
from ppl_med.analysis.conformal.cases import metadata_groups
from ppl_med.analysis.posterior import find_probabilities


def errors_by_group(tree: xr.DataTree, by: str | xr.DataArray, **options: Any) -> xr.Dataset:
    """Measure the calibration of every group of cases by itself.

    Args:
        tree: The tree of `predict` on labelled cases, one label per case.
        by: Name of a column of constant_data, or the groups themselves (case).
        **options: Of `errors`, for every group. Errors of small groups are large by chance: read
            them beside ``_null`` and ``_pvalue``.

    Returns:
        What `errors` returns, with group as a further dimension, first, and ``count`` (group).

    Raises:
        TypeError, ValueError: As for `errors`; no such column, or a case without a group.
    """
    probs = find_probabilities(tree)
    label = case_labels(tree, probs)
    group = metadata_groups(tree, by, probs, "by").values
    names, count = np.unique(group, return_counts=True)
    parts = []
    for name in names:
        rows = np.flatnonzero(group == name)
        part = {
            "/posterior": probs.isel(case=rows).to_dataset(name="probs"),
            "/observed_data": label.isel(case=rows).to_dataset(name="label"),
        }
        parts.append(errors(xr.DataTree.from_dict(part), **options))
    result = xr.concat(parts, xr.IndexVariable("group", names), combine_attrs="drop_conflicts")
    result["count"] = ("group", count)
    result.attrs["num_cases"] = int(count.sum())
    return result
