"""Prediction sets that are never empty: the most probable class stands in for no class.

A set of scores below a threshold is empty where no class is likely enough. With a level below the
accuracy of the model that happens for the most ambiguous cases, of which an empty list says nothing
that a reader can use. A set only grows, so it covers whenever it did, and the guarantee of at least
1 - alpha stays; its upper limit does not.

Source: Sadinle, Lei and Wasserman, Least ambiguous set-valued classifiers, JASA 114, 2019,
who call empty sets null regions and fill them.
"""

import xarray as xr

from ppl_med import checks
from ppl_med.analysis.conformal.hits import label_hits
from ppl_med.analysis.tree import Posterior, check_cases, open_classes


def fill_empty_sets(sets: xr.Dataset, tree: Posterior) -> xr.Dataset:
    """Put the most probable class into every empty prediction set.

    Args:
        sets: As `predict_sets`, `leave_one_out_sets` or `bayes_sets` return them:
            ``prediction_set`` (case, class).
        tree: The tree they were made of.

    Returns:
        The same Dataset with ``prediction_set`` and ``set_size`` and, where it was there,
        ``covered`` and ``coverage`` computed anew. ``coverage_upper`` is 1: filling can only raise
        the coverage. The attribute ``filled`` counts the sets that were empty.

    Raises:
        TypeError: ``sets`` is no Dataset.
        ValueError: It holds no sets, or other cases or classes than the tree.
    """
    if not isinstance(sets, xr.Dataset) or "prediction_set" not in sets:
        checks.reject("sets", "the Dataset of predict_sets", type(sets).__name__)
    classes = open_classes(tree)
    member = sets["prediction_set"].transpose("case", "class")
    check_cases(member, classes.array, "sets")
    if member.sizes["class"] != classes.array.sizes["class"]:
        raise ValueError(
            f"sets have {member.sizes['class']} classes, the tree {classes.array.sizes['class']}; "
            "pass the tree they were made of."
        )
    empty = ~member.any("class")
    best = classes.mixture().transpose("case", "class").argmax("class")
    filled = member.copy()
    rows = empty.values.nonzero()[0]
    filled.values[rows, best.values[rows]] = True
    size = filled.sum("class").assign_attrs(units="classes")
    result = sets.assign(prediction_set=filled, set_size=size)
    hits = label_hits(classes, filled) if "covered" in sets else None
    if hits is not None:
        result["covered"] = sets["covered"].copy(data=hits)
        result["coverage"] = result["covered"].mean("case").assign_attrs(sets["coverage"].attrs)
        if "coverage_upper" in result:
            result["coverage_upper"] = xr.ones_like(sets["coverage_upper"])
    return result.assign_attrs(filled=len(rows))
