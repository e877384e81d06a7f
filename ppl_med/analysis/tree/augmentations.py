"""Trees of `predict_augmented`: all draws under all augmentations, read or averaged."""

from collections.abc import Iterator

import numpy as np
import xarray as xr
from scipy.special import logsumexp

from ppl_med.analysis.statistics.weight_draws import one_of_each
from ppl_med.analysis.tree.blocks import Block, split_blocks
from ppl_med.analysis.tree.classes import Posterior
from ppl_med.analysis.tree.distinct_draws import drop_copies
from ppl_med.analysis.tree.groups import check_predictive
from ppl_med.analysis.tree.simplex import check_simplex
from ppl_med.axes import AUGMENTATION, SAMPLES

_PREDICTED = ("probs", "loc", "mean")  # the mean of what is predicted
_FRONT = (*SAMPLES, AUGMENTATION, "case")


def open_augmented(tree: Posterior) -> xr.DataArray:
    """Find what was predicted under augmentations, not yet read; copies of draws are dropped.

    Of several draws that share their weights, the first is taken.

    Args:
        tree: The tree of `predict_augmented`, its posterior group, or a variable of it.

    Returns:
        ``probs``, or of numbers ``loc`` or ``mean`` (chain, draw, augmentation, case, [class,]
        ...), with two or more functions and augmentations.

    Raises:
        TypeError: None of these.
        ValueError: No axis of augmentations, or only one function or augmentation.
    """
    array = _predicted(tree)
    check_predictive(array, f"posterior/{array.name}")
    missing = [dim for dim in _FRONT if dim not in array.dims]
    if missing:
        raise ValueError(
            f"{array.name} lacks the dimension(s) {', '.join(missing)}; predict by "
            "ppl_med.inference.predict_augmented(model, guide, batches, symmetries(8))."
        )
    if array.sizes[AUGMENTATION] < 2:
        raise ValueError(
            "tree has one augmentation, which has no variance; predict under two or more."
        )
    array = drop_copies(array.transpose(*_FRONT, *(d for d in ("class",) if d in array.dims), ...))
    array = one_of_each(array)  # the rows of the table are independent
    if array.sizes["chain"] * array.sizes["draw"] < 2:
        raise ValueError(
            "tree has one draw, or copies of one: without two functions, the model has no variance "
            "to tell apart. Predict draws=32 of a posterior, or an Ensemble."
        )
    return array


def augmented_blocks(array: xr.DataArray) -> Iterator[tuple[Block, np.ndarray]]:
    """Yield blocks, and what was predicted there, float64 (function, augmentation, case, ...).

    Args:
        array: What `open_augmented` found.

    Raises:
        ValueError: Values that are no probabilities, or not finite in some draws only.
    """
    inner = {str(d): size for d, size in array.sizes.items() if d not in (*_FRONT[:3], "class")}
    of_classes = "class" in array.dims
    others = int(np.prod([array.sizes[dim] for dim in array.dims[:3]]))
    for block in split_blocks(inner, others * array.sizes.get("class", 1)):
        values = array.isel(block).values.astype(np.float64)
        unknown = np.isnan(values)
        if not np.isfinite(values[~unknown]).all() or (unknown != unknown[:1, :1]).any():
            raise ValueError(
                f"{array.name} holds values that are not finite in some draws; drop those cases or "
                "find the draw that diverged."
            )
        if of_classes and not unknown.any():
            check_simplex(values, 4)
        yield block, values.reshape(-1, *values.shape[2:])


def average_augmentations(tree: xr.DataTree) -> xr.DataTree:
    """Average class probabilities over augmentations, draw by draw: a tree as of `predict`.

    Draw s becomes one function again, the mean of its probabilities over the augmentations under
    which the entry is known, and its likelihood the mean of the likelihoods. What no average over
    augmentations speaks of (predicted labels, logits, features, latents of a case) is left out.

    Args:
        tree: The tree of `predict_augmented` of a model of classes.

    Returns:
        The tree, which all analyses take.

    Raises:
        TypeError: No DataTree.
        ValueError: No axis of augmentations, or no class probabilities.
    """
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"tree must be the DataTree of predict, not {type(tree).__name__}.")
    probs = _predicted(tree)
    if probs.name != "probs":
        raise ValueError(
            "tree has no class probabilities, and of numbers no mean over augmentations is the "
            "prediction: choose one augmentation by tree.isel(augmentation=0)."
        )
    if AUGMENTATION not in probs.dims:
        raise ValueError("tree has no axis of augmentations: it is a plain tree already.")
    groups = {}
    for name, node in tree.children.items():
        group = node.to_dataset()
        own = [n for n, one in group.items() if AUGMENTATION in one.dims]
        kept = group.drop_vars([*own, *([AUGMENTATION] if AUGMENTATION in group.coords else [])])
        if name == "posterior":
            kept["probs"] = probs.mean(AUGMENTATION, keep_attrs=True)
        elif name == "log_likelihood":
            for one in own:
                kept[one] = _log_mean(group[one])
        if kept.data_vars:
            groups[f"/{name}"] = kept
    result = xr.DataTree.from_dict(groups)
    result.attrs = {**tree.attrs, "averaged": f"{probs.sizes[AUGMENTATION]} augmentations"}
    return result


def _log_mean(logs: xr.DataArray) -> xr.DataArray:
    """Log of the mean of what these are the logs of."""
    if logs.chunks is not None:
        logs = logs.chunk({AUGMENTATION: -1})
    total = xr.apply_ufunc(
        logsumexp,
        logs,
        input_core_dims=[[AUGMENTATION]],
        kwargs={"axis": -1},
        dask="parallelized",
        output_dtypes=[logs.dtype],
        keep_attrs=True,
    )
    return (total - np.log(logs.sizes[AUGMENTATION])).assign_attrs(logs.attrs)


def _predicted(tree: Posterior) -> xr.DataArray:
    if isinstance(tree, xr.DataArray):
        return tree
    if isinstance(tree, xr.DataTree) and "posterior" in tree.children:
        tree = tree["posterior"].to_dataset()
    if not isinstance(tree, xr.Dataset):
        raise TypeError(
            f"tree must be what predict_augmented gave, not {type(tree).__name__} without a "
            "posterior group."
        )
    found = [name for name in _PREDICTED if name in tree]
    if not found:
        raise ValueError(
            f"The posterior group holds none of {_PREDICTED}, only "
            f"{sorted(map(str, tree.data_vars))}."
        )
    return tree[found[0]]
