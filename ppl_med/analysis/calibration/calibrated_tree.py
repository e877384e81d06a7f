"""A posterior tree with calibrated probabilities, and only what still belongs to them."""

from typing import Any

import numpy as np
import xarray as xr

from ppl_med.analysis.statistics import monte_carlo
from ppl_med.analysis.tree import Classes, count_left_out, known
from ppl_med.axes import SAMPLES

_KEPT = ("observed_data", "constant_data")


def calibrated_tree(source: Classes, logs: np.ndarray, method: str) -> xr.DataTree:
    """Build the tree.

    Args:
        source: The tree before.
        logs: New log-probabilities (chain, draw, case and pixels, class); with one chain and one
            draw they are those of the mixture.
        method: Name of the map.

    Returns:
        Tree with ``probs``, ``log_likelihood`` where there are labels, observations, metadata,
        and attributes that say what changed.
    """
    probs, tree = source.array, source.tree
    new = _named(logs, probs)
    calibrated, inside = xr.ufuncs.exp(new), source.inside()
    before, after = source.mixture(), monte_carlo.mean(calibrated)
    if inside is not None:  # what smaller cases are filled up with stays empty
        calibrated = calibrated.where(inside).transpose(*calibrated.dims)
    groups = {"/posterior": xr.Dataset({"probs": calibrated})}
    decisions = before.argmax("class"), after.argmax("class")
    attrs: dict[Any, Any] = {
        "calibration": method,
        "decisions_changed": int((decisions[0] != decisions[1]).sum()),
        "undetermined": int((logs == logs[..., :1]).all((0, 1, 3)).sum()),
    }
    if isinstance(tree, xr.DataTree):
        attrs = {**tree.attrs, **attrs}
        groups |= {f"/{n}": tree[n].to_dataset() for n in _KEPT if n in tree.children}
        label = _labels(source)
        if label is not None:
            seen = known(label)
            attrs.update(count_left_out(label, empty=True))
            index = label.where(seen, 0).drop_vars(list(label.coords)).astype(np.int64)
            chosen = new.isel({"class": index}).drop_vars("class", errors="ignore").where(seen)
            groups["/log_likelihood"] = xr.Dataset({label.name: chosen})
            for name, decision in zip(("before", "after"), decisions, strict=True):
                attrs[f"accuracy_{name}"] = float((decision == label).where(seen).mean())
    groups["/"] = xr.Dataset(attrs=attrs)
    return xr.DataTree.from_dict(groups)


def _named(logs: np.ndarray, probs: xr.DataArray) -> xr.DataArray:
    template = probs
    if logs.shape[:2] != probs.shape[:2]:
        template = probs.isel(chain=[0], draw=[0])
        for dim in SAMPLES:
            if dim in template.coords:
                template = template.assign_coords({dim: [0]})
    dims = (*SAMPLES, "case", *probs.dims[4:], "class")
    template = template.transpose(*dims)
    return template.copy(data=logs.reshape(template.shape)).transpose(*probs.dims)


def _labels(source: Classes) -> xr.DataArray | None:
    """One observed class for every probability, -1 where there is none, if the tree has that."""
    label = source.observation()
    return source.labels() if label is not None and set(label.dims) == set(source.sizes) else None
