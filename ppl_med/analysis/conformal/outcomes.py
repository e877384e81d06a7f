"""Reading a regression tree: predicted means, spreads and quantiles, and the observed outcome.

    loc, scale    (chain, draw, case)            posterior, the law of the outcome under every draw
    quantile      (chain, draw, case, level)     posterior, of models that predict quantiles
    <outcome>     (chain, draw, case)            posterior_predictive, one draw of the outcome each
    <outcome>     (case)                         observed_data

All in the unit of the outcome. Draws are read by runs of cases that fit in memory (`runs`).
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import xarray as xr

from ppl_med.analysis.tree import Block, Posterior, check_cases, join_blocks, split_blocks

SAMPLES = ("chain", "draw")
_LEADING = (*SAMPLES, "case")
_GROUPS = ("posterior", "posterior_predictive")

Part = TypeVar("Part", xr.DataArray, xr.Dataset)


def runs(tree: Posterior, name: str, function: Callable[[xr.DataTree], Part]) -> Part:
    """Apply a function to runs of cases whose draws fit in memory, and put the results together.

    Args:
        tree: The tree of `predict`.
        name: Of the outcome.
        function: Of a tree with the law and the draws of the outcome; its result has the
            dimension case.

    Raises:
        TypeError: ``tree`` is no DataTree.
        ValueError: It predicts no numbers.
    """
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"tree must be the DataTree of predict, not {type(tree).__name__}.")
    wanted = ("loc", "scale", "variance", "quantile", name)
    kept = {}
    for group in _GROUPS:
        found = tree[group].to_dataset() if group in tree.children else xr.Dataset()
        kept[group] = found[[n for n in wanted if n in found and "case" in found[n].dims]]
    arrays = [array for part in kept.values() for array in part.data_vars.values()]
    cases = max((array.sizes["case"] for array in arrays), default=0)
    if not cases:
        return function(tree)  # which says what is missing
    per_case = sum(array.size for array in arrays) // cases
    return join_blocks(
        (block, function(_isel(kept, block))) for block in split_blocks({"case": cases}, per_case)
    )


def _isel(groups: dict[str, xr.Dataset], block: Block) -> xr.DataTree:
    """Some cases of all groups; one of which nothing was kept has no cases."""
    parts = {name: part.isel(block, missing_dims="ignore") for name, part in groups.items()}
    return xr.DataTree.from_dict(parts)


def find(
    tree: Posterior, group: str, name: str, extra: tuple[str, ...] = ()
) -> xr.DataArray | None:
    """Return a variable of a group, not yet read, or None where the tree has none of that name.

    Args:
        tree: The tree of `predict`.
        group: "posterior" or "posterior_predictive".
        name: Of the variable.
        extra: Dimensions it has beyond chain, draw and case.

    Returns:
        (chain, draw, case, *extra), as stored.

    Raises:
        TypeError: ``tree`` is no DataTree.
        ValueError: Other dimensions, no cases or draws.
    """
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"tree must be the DataTree of predict, not {type(tree).__name__}.")
    found = tree[group].to_dataset() if group in tree.children else {}
    if name not in found:
        return None
    array = found[name]
    wanted = (*_LEADING, *extra)
    if set(array.dims) != set(wanted):
        raise ValueError(
            f"{group}/{name} has dimensions {array.dims}; expected {wanted}: one number per case."
        )
    if not array.size:
        raise ValueError(f"{group}/{name} is empty: {dict(array.sizes)}.")
    return array.transpose(*wanted)


def variable(
    tree: Posterior, group: str, name: str, extra: tuple[str, ...] = ()
) -> xr.DataArray | None:
    """Return what `find` finds in memory, float64.

    Raises:
        TypeError, ValueError: As for `find`, or values that are not finite.
    """
    array = find(tree, group, name, extra)
    return None if array is None else _read(array, f"{group}/{name}")


def outcome_name(tree: Posterior, outcome: str | None) -> str:
    """Return the name of the outcome: the only variable of observed_data or posterior_predictive.

    Raises:
        ValueError: None or several, and ``outcome`` does not choose.
    """
    if outcome is not None:
        return outcome
    for group in ("observed_data", "posterior_predictive"):
        if isinstance(tree, xr.DataTree) and group in tree.children:
            names = sorted(map(str, tree[group].to_dataset().data_vars))
            if len(names) == 1:
                return names[0]
            if names:
                raise ValueError(f"{group} holds {names}; choose one with outcome=.")
    raise ValueError("tree has no observed_data and no posterior_predictive; name the outcome.")


def outcome_values(tree: Posterior, name: str, predicted: xr.DataArray) -> xr.DataArray | None:
    """Return the observed outcome (case), float64, or None where there is none.

    Raises:
        ValueError: More than one number per case, other cases, or values that are not finite.
    """
    if not isinstance(tree, xr.DataTree) or "observed_data" not in tree.children:
        return None
    found = tree["observed_data"].to_dataset()
    if name not in found:
        return None
    array = found[name]
    if array.dims != ("case",):
        raise ValueError(f"observed {name} has dimensions {array.dims}; expected ('case',).")
    check_cases(array, predicted, f"observed {name}")
    array = array.astype(np.float64).load()
    if not np.isfinite(array.values).all():
        raise ValueError(f"observed {name} holds NaN or infinite values; drop those cases.")
    return array


def find_required(tree: Posterior, name: str, why: str) -> xr.DataArray:
    """Return posterior/``name`` (chain, draw, case), which must be there, not yet read.

    Raises:
        TypeError, ValueError: It is missing, or of other dimensions.
    """
    array = find(tree, "posterior", name)
    if array is None:
        raise ValueError(f"The posterior holds no {name}, which {why} needs.")
    return array


def required(tree: Posterior, name: str, why: str) -> xr.DataArray:
    """Return posterior/``name`` (chain, draw, case), which must be there.

    Raises:
        TypeError, ValueError: It is missing or malformed.
    """
    return _read(find_required(tree, name, why), f"posterior/{name}")


def predictive_quantiles(tree: Posterior, name: str, levels: np.ndarray) -> xr.DataArray:
    """Return quantiles of the outcome under every draw, or of all draws together.

    Args:
        tree: The tree of `predict`.
        name: Of the outcome.
        levels: Probabilities.

    Returns:
        (chain, draw, case, quantile) where the model predicts quantiles; else (case, quantile),
        those of the draws of posterior_predictive.

    Raises:
        ValueError: Neither is there, or the model predicts other levels.
    """
    own = variable(tree, "posterior", "quantile", ("level",))
    if own is not None:
        own = own.rename(level="quantile")
        known = own["quantile"].values if "quantile" in own.coords else np.array([])
        place = [np.flatnonzero(np.isclose(known, level, rtol=0, atol=1e-9)) for level in levels]
        if any(len(index) != 1 for index in place):
            raise ValueError(
                f"posterior/quantile has the levels {known.tolist()}; alpha needs "
                f"{levels.tolist()}. Choose alpha to match."
            )
        return own.isel(quantile=[int(index[0]) for index in place])
    draws = variable(tree, "posterior_predictive", name)
    if draws is None:
        raise ValueError(
            f"tree has neither posterior/quantile nor posterior_predictive/{name}; "
            "quantile intervals need one of them. Use method='absolute' or 'normalised'."
        )
    if draws.sizes["chain"] * draws.sizes["draw"] < 2:
        raise ValueError("Quantiles of posterior_predictive need more than one draw.")
    return draws.quantile(levels, SAMPLES).transpose("case", "quantile")


def _read(array: xr.DataArray, name: str) -> xr.DataArray:
    array = array.astype(np.float64).load()
    if not np.isfinite(array.values).all():
        raise ValueError(f"{name} holds NaN or infinite values; drop those cases or draws.")
    return array
