"""Groups of a tree: the one place of the analyses that looks into them."""

from collections.abc import Sequence
from typing import Any

import xarray as xr

from ppl_med.axes import AUGMENTATION, AXES
from ppl_med.storage import class_modes, log_float16

OBSERVATIONS = ("label", "mask")
"""Usual names of sites of classes."""


def find_group(tree: object, name: str) -> xr.Dataset:
    """Return a group of a tree, not yet read; an empty Dataset where there is none.

    A case chosen by ``tree.sel(case=...)`` or ``isel``, which takes the axis away, is one case.

    Args:
        tree: The tree of `predict`, or a Dataset, which stands for a posterior group.
        name: Such as "observed_data".

    Raises:
        ValueError: The group has an axis of augmentations.
    """
    if isinstance(tree, xr.DataTree) and name in tree.children:
        return with_probs(_with_case_axis(check_plain(tree[name].to_dataset(), name)))
    if isinstance(tree, xr.Dataset) and name == "posterior":
        return with_probs(_with_case_axis(check_plain(tree, name)))
    return xr.Dataset()


def with_probs(group: xr.Dataset) -> xr.Dataset:
    """Return a group with probabilities, not yet computed, in the place of their logs."""
    if not log_float16.stored_in(group):
        return group
    probs = log_float16.decoded(group[log_float16.NAME])
    return group.drop_vars(log_float16.NAME).assign(probs=probs)


def check_plain(found: Any, name: str) -> Any:
    """Return a group or variable; raise where it has an axis of augmentations.

    Raises:
        ValueError: It has one: draws under several augmentations are not as many draws.
    """
    if AUGMENTATION in found.dims:
        raise ValueError(
            f"{name} has an axis of augmentations, of which this analysis knows nothing: average "
            "their probabilities by ppl_med.analysis.tree.average_augmentations(tree), choose one "
            "by tree.isel(augmentation=0), or split the variance by "
            "ppl_med.analysis.augmentation.variance(tree)."
        )
    return found


def _with_case_axis(group: xr.Dataset) -> xr.Dataset:
    if "case" not in group.coords or group["case"].dims:
        return group
    own = [str(n) for n, one in group.coords.items() if not one.dims and n not in AXES]
    return group.reset_coords(own).expand_dims("case").set_coords(own)


def check_not_lost(group: xr.Dataset) -> None:
    """Raise a ValueError where probabilities were stored as the most probable class alone."""
    if class_modes.stored_in(group):
        raise ValueError(
            "The tree was stored by Lossy(probs='argmax'), which keeps the most probable class of "
            "every draw and no probabilities, and this analysis needs them: predict without, or "
            "with probs='float16'. Analyses of sampled masks, samples='mode', read it."
        )


def check_predictive(array: xr.DataArray, name: str) -> None:
    """Raise where `predict` has marked a variable as conditional on what the image tells of.

    Raises:
        ValueError: The attribute ``given`` or ``given_itself`` names latents.
    """
    given = array.attrs.get("given")
    if given:
        raise ValueError(
            f"{name} is given {given}, drawn from the prior and not for the image, so its mean "
            "over draws is no prediction of the case. Use "
            "ppl_med.explain.counterfactuals.class_probabilities(model, guide, image), or a "
            "classifier."
        )
    itself = array.attrs.get("given_itself")
    if itself:
        raise ValueError(
            f"{name} is given {itself}, which the guide draws after it has seen this very "
            "observation, so its mean over draws is neither prediction nor density of the case. "
            "ppl_med.analysis.ood has scores of such models, 'likelihood' among them."
        )


def find_variable(tree: object, group: str, name: str, model: str) -> xr.DataArray:
    """Return a variable of a group, not yet read. An array stands for itself.

    Args:
        tree: The tree of `predict`, the group as a Dataset, or the variable as a DataArray.
        group: Name of the group.
        name: Name of the variable.
        model: What predicts it, for the error, such as "classification".

    Raises:
        TypeError: ``tree`` is none of the three.
        ValueError: The group or the variable is absent, or has an axis of augmentations.
    """
    if isinstance(tree, xr.DataArray):
        return check_plain(log_float16.decoded(tree) if log_float16.is_stored(tree) else tree, name)
    if not isinstance(tree, xr.DataTree | xr.Dataset):
        raise TypeError(
            f"tree must be a DataTree, Dataset or DataArray, not {type(tree).__name__}."
        )
    if isinstance(tree, xr.DataTree) and group not in tree.children:
        raise ValueError(
            f"tree has no {group} group, only {sorted(tree.children)}; pass the DataTree that "
            "predict returned."
        )
    own = isinstance(tree, xr.Dataset)
    found = with_probs(check_plain(tree, group)) if own else find_group(tree, group)
    if name == "probs" and name not in found:
        check_not_lost(found)
    if name not in found:
        raise ValueError(
            f"The {group} group holds no {name}, only {sorted(map(str, found.data_vars))}; this "
            f"analysis needs a {model} model."
        )
    return found[name]


def class_site(tree: object, group: str, usual: Sequence[str] = OBSERVATIONS) -> str | None:
    """Return the name of the site of classes in a group; None where none can be told.

    It is one of the usual names, or, as users' own programs may call theirs otherwise, the only
    variable over cases there is.

    Args:
        tree: The tree of `predict`.
        group: Such as "observed_data".
        usual: Names that are taken first.
    """
    found = find_group(tree, group)
    known = [name for name in usual if name in found]
    others = [str(name) for name, values in found.data_vars.items() if "case" in values.dims]
    return known[0] if known else others[0] if len(others) == 1 else None
