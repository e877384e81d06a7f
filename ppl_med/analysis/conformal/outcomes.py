"""Reading a regression tree: predicted means, spreads and quantiles, and the observed outcome.

    loc, scale    (chain, draw, case)            posterior, the law of the outcome under every draw
    quantile      (chain, draw, case, level)     posterior, of models that predict quantiles
    <outcome>     (chain, draw, case)            posterior_predictive, one draw of the outcome each
    <outcome>     (case)                         observed_data

All in the unit of the outcome.
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.posterior import Posterior, check_cases

SAMPLES = ("chain", "draw")
_LEADING = (*SAMPLES, "case")


def variable(
    tree: Posterior, group: str, name: str, extra: tuple[str, ...] = ()
) -> xr.DataArray | None:
    """Return a variable of a group as float64, or None where the tree has none of that name.

    Args:
        tree: The tree of `predict`.
        group: "posterior" or "posterior_predictive".
        name: Of the variable.
        extra: Dimensions it has beyond chain, draw and case.

    Returns:
        (chain, draw, case, *extra), in memory.

    Raises:
        TypeError: ``tree`` is no DataTree.
        ValueError: Other dimensions, no cases or draws, or values that are not finite.
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
    array = array.transpose(*wanted).astype(np.float64).load()
    if not array.size:
        raise ValueError(f"{group}/{name} is empty: {dict(array.sizes)}.")
    if not np.isfinite(array.values).all():
        raise ValueError(f"{group}/{name} holds NaN or infinite values; drop those cases or draws.")
    return array


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


def required(tree: Posterior, name: str, why: str) -> xr.DataArray:
    """Return posterior/``name`` (chain, draw, case), which must be there.

    Raises:
        TypeError, ValueError: It is missing or malformed.
    """
    array = variable(tree, "posterior", name)
    if array is None:
        raise ValueError(f"The posterior holds no {name}, which {why} needs.")
    return array


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
