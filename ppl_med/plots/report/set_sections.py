"""Prediction sets of a report, learnt from other cases."""

import warnings

import xarray as xr

from ppl_med import checks
from ppl_med.analysis import conformal
from ppl_med.plots.report.kinds import kind_of


def check_calibration(calibration: object, tree: xr.DataTree, alpha: float) -> None:
    """Raise unless a tree can be given prediction sets from another."""
    checks.inside("alpha", alpha)
    if calibration is None:
        return
    if not isinstance(calibration, xr.DataTree):
        raise TypeError(
            "calibration must be the tree of predict on labelled cases, got "
            f"{type(calibration).__name__}"
        )
    for name, one in {"tree": tree, "calibration": calibration}.items():
        kind = kind_of(one)
        if kind != "classes":
            raise ValueError(
                f"{name} is of {kind}, and prediction sets are of one class per case; leave "
                "calibration out, or see ppl_med.analysis.conformal for intervals and masks"
            )


def learn_sets(
    tree: xr.DataTree, calibration: xr.DataTree, alpha: float
) -> tuple[xr.Dataset, list[str]]:
    """Return prediction sets, none of them empty, and what a reader must know of them."""
    learnt = conformal.calibrate(calibration, alpha)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", RuntimeWarning)
        sets = conformal.predict_sets(learnt, tree)
    notes = [f"Of the prediction sets: {one.message}" for one in told]
    return conformal.fill_empty_sets(sets, tree), notes
