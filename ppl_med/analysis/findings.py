"""Several findings per case, one at a time: trees that all analyses of labels and numbers take.

    scores = findings.each(scoring.score, tree)                  # Dataset, a row a finding
    learnt = calibration.fit(findings.select(tree, "Effusion"))

A tree of several findings has ``probs`` (chain, draw, case, class, finding), or the parameters of
numbers (chain, draw, case, finding). Analyses that take maps take it whole as well: an entry is
then a finding of a case.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from ppl_med.analysis.tree import count_left_out, find_group, known
from ppl_med.analysis.tree.groups import with_probs
from ppl_med.axes import SAMPLES
from ppl_med.checks import reject
from ppl_med.storage.chains import MOMENTS

__all__ = ["each", "select"]

_COUNTS = ("num_cases", "left_out", "left_out_cases")
_SITES = ("observed_data", "log_likelihood", "posterior_predictive", "prior_predictive")
_HALF_LOG_TWO_PI = 0.5 * np.log(2 * np.pi)


def select(tree: xr.DataTree, finding: str) -> xr.DataTree:
    """Return the tree of one finding, as a classifier or regressor of this finding alone gives it.

    Args:
        tree: The tree of `predict`, with observations or not.
        finding: Its name.

    Returns:
        The tree without the axis finding; what is lazy stays so. Observations and draws of classes
        are called ``label``. The log-likelihood of a case, which is that of all findings together,
        is that of this finding where it can be told: of classes and of normal numbers; elsewhere it
        is left out, as moments of all draws are.

    Raises:
        TypeError: ``tree`` is no DataTree.
        ValueError: It has no such finding.
    """
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"tree must be the DataTree of predict, not {type(tree).__name__}.")
    if finding not in (names := _names(tree)):
        reject("finding", f"one of {names}", finding)
    groups = {
        node.path: _of_finding(with_probs(node.to_dataset(inherit=False)), finding)
        for node in tree.subtree
        if not node.path.endswith(MOMENTS)
    }
    posterior = groups.get("/posterior", xr.Dataset())
    kept = groups.pop("/log_likelihood", xr.Dataset())
    observed = groups.get("/observed_data", xr.Dataset())
    for name in set(kept) & set(observed):
        found = _log_likelihood(posterior, observed[name])
        if found is not None:
            found.attrs = kept[name].attrs
            groups["/log_likelihood"] = kept.assign({name: found})
    if "probs" in posterior:
        groups = {path: _as_label(path, group) for path, group in groups.items()}
    return xr.DataTree.from_dict(groups, name=tree.name)


def each(
    analysis: Callable[..., xr.Dataset], tree: xr.DataTree, *args: Any, **options: Any
) -> xr.Dataset:
    """Run an analysis on every finding.

    Args:
        analysis: From the tree of one finding to a Dataset, such as ``scoring.score``.
        tree: The tree of `predict`.
        *args: Further arguments of the analysis.
        **options: Likewise, by name.

    Returns:
        The results along ``finding``; NaN where an analysis gives more entries for another finding.
        ``num_cases`` and what was left out are coordinates, and of all findings attributes.

    Raises:
        ValueError: As the analysis does, with the name of the finding.
    """
    names, results = _names(tree), []
    for name in names:
        try:
            results.append(analysis(select(tree, name), *args, **options))
        except ValueError as error:
            raise ValueError(f"finding {name!r}: {error}") from error
    along = xr.DataArray(names, dims="finding", name="finding")
    found = xr.concat(results, along, combine_attrs="drop_conflicts", join="outer")
    counts = [name for name in _COUNTS if all(name in one.attrs for one in results)]
    for name in counts:
        found.coords[name] = "finding", [one.attrs[name] for one in results]
    if counts:  # of the whole: entries are then findings of cases
        (observed,) = find_group(tree, "observed_data").values()
        found.attrs |= count_left_out(observed)
    return found


def _names(tree: object) -> list[str]:
    for group in ("posterior", "posterior_predictive", "observed_data"):
        found = find_group(tree, group)
        if "finding" in found.coords:
            return [str(name) for name in found["finding"].values]
    raise ValueError(
        "tree has no axis finding with names; this is for models of several findings per case, "
        "such as FindingsClassifier."
    )


def _of_finding(group: xr.Dataset, finding: str) -> xr.Dataset:
    if "finding" not in group.dims:
        return group
    if "finding" not in group.coords:
        raise ValueError("finding has no names in a group of tree; keep its coordinate.")
    return group.sel(finding=finding, drop=True)


def _as_label(path: str, group: xr.Dataset) -> xr.Dataset:
    if path.removeprefix("/") not in _SITES:
        return group
    return group.rename({name: "label" for name in group.data_vars})


def _log_likelihood(posterior: xr.Dataset, value: xr.DataArray) -> xr.DataArray | None:
    """Nats (chain, draw, case), 0 where nothing was observed; None where it cannot be told."""
    if "probs" in posterior:
        seen = known(value)
        absent, present = (posterior["probs"].isel({"class": k}, drop=True) for k in (0, 1))
        chosen, other = (
            xr.where(value == 1, *pair).astype(np.float64)
            for pair in ((present, absent), (absent, present))
        )
        # The smaller of the two is exact in any precision, so no ties arise near probability 1.
        log_prob = xr.where(chosen > 0.5, np.log1p(-other), np.log(chosen))
    elif {"loc", "scale"} <= set(posterior) and "variance" not in posterior:
        seen = value.notnull()
        error = (value - posterior["loc"]) / posterior["scale"]
        log_prob = -0.5 * error**2 - np.log(posterior["scale"]) - _HALF_LOG_TWO_PI
    else:
        return None
    return log_prob.where(seen, 0.0).transpose(*SAMPLES, "case")
