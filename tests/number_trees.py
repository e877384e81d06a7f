"""Posterior trees of predicted numbers, with the laws they were drawn from."""

import numpy as np
import xarray as xr


def number_tree(
    value: np.ndarray,
    drawn: np.ndarray,
    posterior: dict[str, np.ndarray] | None = None,
    extra: tuple[str, ...] = (),
) -> xr.DataTree:
    """Observed values (case, *extra) and their draws (chain, draw, case, *extra)."""
    ids = {"case": [f"patient-{index}" for index in range(len(value))]}
    dims = ("chain", "draw", "case", *extra)
    groups = {
        "/observed_data": xr.Dataset({"value": (dims[2:], value)}, ids),
        "/posterior_predictive": xr.Dataset({"value": (dims, drawn)}, ids),
    }
    if posterior is not None:
        groups["/posterior"] = xr.Dataset({k: (dims, v) for k, v in posterior.items()}, ids)
    return xr.DataTree.from_dict(groups)
