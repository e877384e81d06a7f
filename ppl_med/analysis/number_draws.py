"""Reading numbers from a posterior tree: what was observed, what was drawn, means over cases.

Arrays and their dimensions:

    observed   (case, ...)                 NaN where an entry was not observed
    drawn      (chain, draw, case, ...)    finite
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.posterior import OBSERVATIONS, check_cases

_SAMPLES = ("chain", "draw")


def find_numbers(tree: xr.DataTree, site: str | None) -> tuple[xr.DataArray, xr.DataArray]:
    """Find what was observed and what was drawn at one site, without reading it.

    Args:
        tree: The tree of `predict` on cases with observations.
        site: Name of the site; None takes the only one.

    Returns:
        Observation (case, ...) and draws (chain, draw, case, ...).

    Raises:
        TypeError, ValueError: The site is missing, ambiguous or holds classes; dimensions or cases
            differ.
    """
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"tree must be the DataTree of predict, not {type(tree).__name__}.")
    groups = {}
    for name in ("observed_data", "posterior_predictive"):
        if name not in tree.children:
            raise ValueError(f"tree has no {name}; call predict on batches with observations.")
        groups[name] = tree[name].to_dataset()
    shared = sorted(set(map(str, groups["observed_data"])) & set(groups["posterior_predictive"]))
    if (site is None and len(shared) != 1) or (site is not None and site not in shared):
        raise ValueError(f"site is {site!r}; observed and predicted are {shared}: name one.")
    name = site or shared[0]
    value, drawn = (groups[group][name] for group in ("observed_data", "posterior_predictive"))
    classes = name in OBSERVATIONS and "posterior" in tree.children and "probs" in tree["posterior"]
    if classes or value.dtype.kind not in "fiu":
        raise TypeError(f"{name} holds classes or {value.dtype}; this is for numbers.")
    if set(drawn.dims) != {*_SAMPLES, *value.dims} or "case" not in value.dims:
        raise ValueError(f"{name} has dimensions {value.dims}, its draws {drawn.dims}.")
    check_cases(value, drawn, f"observed {name}")
    value = value.transpose("case", ...)
    return value, drawn.transpose(*_SAMPLES, *value.dims)


def check_observed(observed: xr.DataArray) -> xr.DataArray:
    """Read what was observed, float64.

    Args:
        observed: (case, ...), NaN where missing.

    Raises:
        ValueError: Nothing was observed, or an observation is infinite.
    """
    value = observed.astype(np.float64).load()
    if np.isnan(value.values).all() or np.isinf(value.values).any():
        raise ValueError(f"observed {value.name} is infinite somewhere, or NaN everywhere.")
    return value


def case_means(array: xr.DataArray) -> xr.DataArray:
    """Return the mean over all entries of a case ([chain, draw, level,] case), NaN left out."""
    return array.mean([dim for dim in array.dims if dim not in ("case", "level", *_SAMPLES)])


def over_cases(per_case: xr.DataArray) -> xr.DataArray:
    """Return the standard error of the mean over cases; NaN for a single one."""
    count = per_case.count("case")
    return per_case.std("case", ddof=1) / count**0.5 if int(count.min()) > 1 else count * np.nan


def add_mean(result: xr.Dataset, name: str) -> None:
    """Add ``<name>_mean`` over cases and its standard error ``<name>_mean_se``."""
    per_case = case_means(result[name])
    result[f"{name}_mean"] = per_case.mean("case")
    result[f"{name}_mean_se"] = over_cases(per_case).assign_attrs(note="over cases")


def describe(result: xr.Dataset, drawn: xr.DataArray, units: dict[str, str]) -> xr.Dataset:
    """Name units, by default that of the observation, and count chains, draws and cases."""
    for name, variable in result.data_vars.items():
        variable.attrs["units"] = units.get(str(name), "unit of the observation")
    result.attrs.update(num_chains=drawn.sizes["chain"], num_draws=drawn.sizes["draw"])
    result.attrs["num_cases"] = drawn.sizes["case"]
    return result
