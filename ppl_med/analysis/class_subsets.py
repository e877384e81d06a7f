"""Some of the classes, as if it were known that a case is of one of them.

    tree = class_subsets.select(tree, ["benign", "malignant"])

Probabilities are divided by their sum over the classes that stay, under every draw: p(k | draw, one
of these). Analyses refuse probabilities that do not sum to one, because what ``tree.sel`` leaves of
them are no probabilities of anything.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from ppl_med.analysis.tree import UNANNOTATED, class_site, find_group, open_classes
from ppl_med.checks import different_names
from ppl_med.storage.chains import MOMENTS

__all__ = ["select"]

_OF_ALL = ("_predictive", MOMENTS)  # groups that tell nothing of some of the classes


def select(tree: xr.DataTree, classes: Sequence[str]) -> xr.DataTree:
    """Return the tree of some of the classes.

    Args:
        tree: The tree of `predict`, with observations or not.
        classes: Their names, two or more; also their new order.

    Returns:
        A tree of the cases of these classes and of those without a label; labels are numbered anew,
        pixels of masks that are of another class become -1. The log-likelihood is that among these
        classes; draws of labels, which may be of others, and moments of all draws, which are of all
        classes, are left out.

    Raises:
        TypeError, ValueError: ``tree`` is no tree of classes, has no such class, or none of the
            draws gives these classes any probability in some entry.
    """
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"tree must be the DataTree of predict, not {type(tree).__name__}.")
    source = open_classes(tree, copies=True)
    chosen = different_names("classes", classes, 2)
    unknown = [name for name in chosen if name not in source.names]
    if unknown:
        raise ValueError(
            f"classes names {unknown}, of which the tree has none; it has {source.names}"
        )
    numbers = [source.names.index(name) for name in chosen]
    probs = source.array.isel({"class": numbers})
    total = probs.sum("class", skipna=False)
    if bool((total <= 0).any()):
        raise ValueError(
            f"classes: {int((total <= 0).sum())} entries have probability 0 for all of {chosen} "
            "under a draw, so that there is nothing to divide by; leave these cases out"
        )
    probs = (probs / total).assign_coords({"class": list(chosen)}).assign_attrs(source.array.attrs)
    groups = {node.path: node.to_dataset(inherit=False) for node in tree.subtree}
    kept = {path: one for path, one in groups.items() if not path.endswith(_OF_ALL)}
    posterior = kept["/posterior"].drop_dims("class")
    kept["/posterior"] = posterior.assign(probs=probs)
    name = class_site(tree, "observed_data")
    if name is not None:
        label = find_group(tree, "observed_data")[name].load()
        new = np.full(len(source.names) + 1, UNANNOTATED)  # the last is that of -1
        new[numbers] = np.arange(len(numbers))
        fresh = label.copy(data=new[label.values].astype(label.dtype))
        kept["/observed_data"] = kept["/observed_data"].assign({name: fresh})
        if name in kept.get("/log_likelihood", xr.Dataset()):
            kept["/log_likelihood"] = kept["/log_likelihood"].drop_vars(name)
            if set(label.dims) == set(source.sizes):
                kept["/log_likelihood"][name] = _log_likelihood(probs, fresh)
        spatial = [dim for dim in label.dims if dim != "case"]
        of_these = ((fresh != UNANNOTATED) | (label == UNANNOTATED)).any(spatial)
        rows = np.flatnonzero(of_these.values)
        kept = {path: group.isel(case=rows, missing_dims="ignore") for path, group in kept.items()}
    return xr.DataTree.from_dict(kept, name=tree.name)


def _log_likelihood(probs: xr.DataArray, label: xr.DataArray) -> xr.DataArray:
    """Nats (chain, draw, case, ...), 0 where nothing was observed."""
    index = label.clip(min=0).reset_coords(drop=True)
    hit = probs.isel({"class": index}).drop_vars("class").astype(np.float64)
    with np.errstate(divide="ignore"):
        return xr.ufuncs.log(hit).where(label != UNANNOTATED, 0.0)
