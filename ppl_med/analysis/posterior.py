"""Reading a posterior tree: class probabilities, labels and log-likelihoods, checked once.

Every analysis starts here, so that a missing dimension, a NaN or unnormalised probabilities
stop it with a message before anything is computed.

Arrays and their dimensions:

    probs           (chain, draw, case, class, ...)  probability, sums to 1 over class
    label or mask   (case, ...)                      index of the observed class, 0..K-1
    log_likelihood  (chain, draw, case, ...)         nats

where ... stands for further dimensions such as row and col.
"""

from typing import TypeAlias

import numpy as np
import xarray as xr

Posterior: TypeAlias = xr.DataTree | xr.Dataset | xr.DataArray

OBSERVATIONS = ("label", "mask")
_SUM_TOLERANCE = 1e-5  # float32 softmax over a few hundred classes is off by about 1e-6


def probabilities(tree: Posterior) -> xr.DataArray:
    """Return the class probabilities of every draw.

    Args:
        tree: The tree of `predict`, its posterior group as a Dataset, or ``probs`` itself.

    Returns:
        ``probs`` (chain, draw, case, class, ...), float64, in memory.

    Raises:
        TypeError: ``tree`` is none of the three.
        ValueError: ``probs`` is absent, lacks a dimension, holds NaN or negative values, or
            does not sum to one over class.
    """
    probs = find_probabilities(tree).astype(np.float64).load()
    check_simplex(probs)
    return probs


def find_probabilities(tree: Posterior) -> xr.DataArray:
    """Return the class probabilities of every draw, not yet read.

    Returns:
        ``probs`` (chain, draw, case, class, ...), as stored.

    Raises:
        TypeError, ValueError: As for `probabilities`, but for the values.
    """
    probs = _find_probs(tree)
    required = ("chain", "draw", "case", "class")
    missing = [dim for dim in required if dim not in probs.dims]
    if missing:
        raise ValueError(
            f"probs lacks the dimension(s) {', '.join(missing)}; it has {probs.dims}. "
            "Name or add them, e.g. probs.expand_dims('chain') for a single chain."
        )
    probs = probs.transpose(*required, ...)
    empty = [str(dim) for dim, size in probs.sizes.items() if size == 0]
    if empty:
        raise ValueError(f"probs is empty along {', '.join(empty)}; predict at least one.")
    return probs


def _find_probs(tree: Posterior) -> xr.DataArray:
    if isinstance(tree, xr.DataArray):
        return tree
    if isinstance(tree, xr.DataTree):
        if "posterior" not in tree.children:
            raise ValueError(
                f"tree has no posterior group, only {sorted(tree.children)}; "
                "pass the DataTree that predict returned."
            )
        group = tree["posterior"].to_dataset()
    elif isinstance(tree, xr.Dataset):
        group = tree
    else:
        raise TypeError(
            f"tree must be a DataTree, Dataset or DataArray, not {type(tree).__name__}."
        )
    if "probs" not in group:
        raise ValueError(
            f"The posterior holds no probs, only {sorted(map(str, group.data_vars))}; "
            "this analysis needs a classification model."
        )
    return group["probs"]


def check_simplex(probs: xr.DataArray) -> None:
    """Raise unless values in memory are finite, not negative, and sum to one over class."""
    if not np.isfinite(probs.values).all():
        count = int((~np.isfinite(probs.values)).sum())
        raise ValueError(
            f"probs holds {count} NaN or infinite values; drop those cases or find the draw "
            "that diverged."
        )
    if (probs.values < 0).any():
        raise ValueError(
            f"probs has negative values (smallest {probs.values.min():.3g}); were logits passed?"
        )
    error = float(np.abs(probs.sum("class") - 1).max())
    if error > _SUM_TOLERANCE:
        raise ValueError(
            f"probs must sum to one over class; the largest error is {error:.3g}. Pass "
            "probabilities, not logits, and one column per class also for two classes."
        )


def observed(tree: Posterior, probs: xr.DataArray) -> xr.DataArray:
    """Return the observed class of every case, aligned with ``probs``.

    Args:
        tree: A tree with an observed_data group that holds ``label`` or ``mask``.
        probs: What `probabilities` or `find_probabilities` returned for this tree.

    Returns:
        Class index in 0..K-1 (case, ...), int64; the dimensions of ``probs`` after class.

    Raises:
        TypeError: ``tree`` is not a DataTree, so it carries no observations.
        ValueError: No observation, other cases than ``probs``, or a value that is no class.
    """
    if not isinstance(tree, xr.DataTree):
        raise TypeError(
            f"tree must be a DataTree with observed_data, not {type(tree).__name__}: "
            "this analysis compares probabilities with labels."
        )
    group = tree["observed_data"].to_dataset() if "observed_data" in tree.children else {}
    name = next((name for name in OBSERVATIONS if name in group), None)
    if name is None:
        raise ValueError(
            "tree has no observed label or mask in observed_data; call predict on batches "
            "that hold labels."
        )
    label = group[name]
    wanted = ("case", *probs.dims[4:])
    if set(label.dims) != set(wanted):
        raise ValueError(f"observed {name} has dimensions {label.dims}; expected {wanted}.")
    label = label.transpose(*wanted).load()
    check_cases(label, probs, f"observed {name}")
    if label.dtype.kind not in "iu":
        raise ValueError(f"observed {name} must hold integers (class indices), not {label.dtype}.")
    num_classes = probs.sizes["class"]
    if int(label.min()) < 0 or int(label.max()) >= num_classes:
        raise ValueError(
            f"observed {name} runs from {int(label.min())} to {int(label.max())}, outside "
            f"0..{num_classes - 1}; drop unlabelled cases or use class indices."
        )
    return label.astype(np.int64)


def check_cases(array: xr.DataArray, probs: xr.DataArray, name: str, other: str = "probs") -> None:
    """Raise unless ``array`` holds the cases of ``probs`` in the same order.

    Args:
        array: Has the dimension case.
        probs: Likewise.
        name: Of the first, for the error.
        other: Of the second.
    """
    same = array.sizes["case"] == probs.sizes["case"]
    if same and "case" in array.coords and "case" in probs.coords:
        same = bool(np.all(array["case"].values == probs["case"].values))
    if not same:
        raise ValueError(
            f"{name} and {other} do not hold the same cases in the same order; select the same "
            "cases in every group of the tree, and in every tree."
        )


def log_likelihood(tree: Posterior) -> xr.DataArray | None:
    """Return the log-likelihood of the observation under every draw, if the tree has it.

    Args:
        tree: A tree; anything else carries no log-likelihood.

    Returns:
        Nats (chain, draw, case, ...), float64, or None when the group is absent.

    Raises:
        ValueError: A dimension is missing, or values are NaN or +infinity.
    """
    array = find_log_likelihood(tree)
    return None if array is None else read_log_likelihood(array)


def find_log_likelihood(tree: Posterior) -> xr.DataArray | None:
    """Return the log-likelihood (chain, draw, case, ...), not yet read, or None.

    Raises:
        ValueError: A dimension is missing.
    """
    if not isinstance(tree, xr.DataTree) or "log_likelihood" not in tree.children:
        return None
    group = tree["log_likelihood"].to_dataset()
    name = next((name for name in OBSERVATIONS if name in group), None)
    if name is None:
        return None
    array = group[name]
    missing = [dim for dim in ("chain", "draw", "case") if dim not in array.dims]
    if missing:
        raise ValueError(f"log_likelihood {name} lacks the dimension(s) {', '.join(missing)}.")
    return array.transpose("chain", "draw", "case", ...)


def read_log_likelihood(array: xr.DataArray) -> xr.DataArray:
    """Return log-likelihoods in memory, float64.

    Raises:
        ValueError: Values are NaN or +infinity.
    """
    array = array.astype(np.float64).load()
    if np.isnan(array.values).any() or np.isposinf(array.values).any():
        raise ValueError(
            f"log_likelihood {array.name} holds NaN or +infinity; predict again in float64 or drop "
            "those cases."
        )
    return array


def class_names(probs: xr.DataArray) -> list[str]:
    """Return the name of every class, or its index as text where the axis has no names."""
    if "class" in probs.coords:
        return [str(name) for name in probs["class"].values]
    return [str(index) for index in range(probs.sizes["class"])]
