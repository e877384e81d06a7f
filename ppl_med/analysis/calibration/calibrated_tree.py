"""A posterior tree with calibrated probabilities, and only what still belongs to them."""

from typing import Any

import numpy as np
import xarray as xr

from ppl_med.analysis import monte_carlo
from ppl_med.analysis.posterior import OBSERVATIONS, Posterior, check_cases
from ppl_med.analysis.probability_blocks import Probabilities

_KEPT = ("observed_data", "constant_data")


def calibrated_tree(
    tree: Posterior, source: Probabilities, logs: np.ndarray, method: str
) -> xr.DataTree:
    """Build the tree.

    Args:
        tree: The tree before, or its posterior group or ``probs``.
        source: Its probabilities.
        logs: New log-probabilities (chain, draw, case and pixels, class); with one chain and one
            draw they are those of the mixture.
        method: Name of the map.

    Returns:
        Tree with ``probs``, ``log_likelihood`` where there are labels, observations, metadata,
        and attributes that say what changed.
    """
    probs = source.array
    new = _named(logs, probs)
    groups = {"/posterior": xr.Dataset({"probs": xr.ufuncs.exp(new)})}
    before, after = source.mixture(), monte_carlo.mean(groups["/posterior"]["probs"])
    decisions = before.argmax("class"), after.argmax("class")
    attrs: dict[Any, Any] = {
        "calibration": method,
        "decisions_changed": int((decisions[0] != decisions[1]).sum()),
        "undetermined": int((logs == logs[..., :1]).all((0, 1, 3)).sum()),
    }
    if isinstance(tree, xr.DataTree):
        attrs = {**tree.attrs, **attrs}
        groups |= {f"/{n}": tree[n].to_dataset() for n in _KEPT if n in tree.children}
        label = _labels(tree, probs)
        if label is not None:
            chosen = new.isel({"class": label.drop_vars(list(label.coords))})
            chosen = chosen.drop_vars("class", errors="ignore")
            groups["/log_likelihood"] = xr.Dataset({label.name: chosen})
            for name, decision in zip(("before", "after"), decisions, strict=True):
                attrs[f"accuracy_{name}"] = float((decision == label).mean())
    groups["/"] = xr.Dataset(attrs=attrs)
    return xr.DataTree.from_dict(groups)


def _named(logs: np.ndarray, probs: xr.DataArray) -> xr.DataArray:
    template = probs
    if logs.shape[:2] != probs.shape[:2]:
        template = probs.isel(chain=[0], draw=[0])
        for dim in ("chain", "draw"):
            if dim in template.coords:
                template = template.assign_coords({dim: [0]})
    dims = ("chain", "draw", "case", *probs.dims[4:], "class")
    template = template.transpose(*dims)
    return template.copy(data=logs.reshape(template.shape)).transpose(*probs.dims)


def _labels(tree: xr.DataTree, probs: xr.DataArray) -> xr.DataArray | None:
    """One observed class for every probability, if the tree has that."""
    group = tree["observed_data"].to_dataset() if "observed_data" in tree.children else {}
    name = next((name for name in OBSERVATIONS if name in group), None)
    if name is None or set(group[name].dims) != {"case", *probs.dims[4:]}:
        return None
    check_cases(group[name], probs, name)
    label = group[name].transpose("case", *probs.dims[4:]).load()
    if label.dtype.kind not in "iu" or not 0 <= int(label.min()) <= int(label.max()):
        return None
    return label if int(label.max()) < probs.sizes["class"] else None
