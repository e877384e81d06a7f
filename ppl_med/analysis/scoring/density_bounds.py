"""Lower bounds of the log-density of observations, where the density itself is not known."""

import numpy as np
import xarray as xr

from ppl_med.analysis.statistics import case_means, monte_carlo
from ppl_med.analysis.tree import Posterior, count_left_out, find_group
from ppl_med.analysis.tree.cases import check_cases
from ppl_med.analysis.tree.distinct_draws import drop_copies
from ppl_med.analysis.tree.groups import check_predictive
from ppl_med.analysis.tree.left_out import known
from ppl_med.axes import SAMPLES


def evidence_bound(
    tree: Posterior, site: str | None = None, groups: np.ndarray | None = None
) -> xr.Dataset:
    """Average the bound of a model whose density is known by a bound alone, as of a diffusion.

    By Jensen's inequality the mean over draws of the weights is a bound, too. Bounds of two models
    do not rank the models: the one with the lower bound may have the higher density.

    Args:
        tree: The tree of `predict` on cases with observations.
        site: Name of the observed site; None takes the only one.
        groups: What cases have in common (case), such as the patient, for the error of the mean.

    Returns:
        Dataset in nats: ``bound`` (case[, grader]) and ``bound_mcse``, its error from the number
        of draws (NaN for one); ``bound_mean`` over cases, graders averaged first, with
        ``bound_mean_se`` over cases or groups; ``bound_per_pixel``, the mean of the bound by
        that of the number of pixels that were observed, all channels of a pixel together, in nats
        per pixel. Attributes count the cases.

    Raises:
        ValueError: The tree holds no bounds, or of several sites and none is named.
    """
    group = find_group(tree, "evidence_bound")
    sites = sorted(map(str, group))
    if not sites:
        raise ValueError(
            "tree has no group evidence_bound: predict a diffusion model on batches that hold "
            "masks; other models have a log_likelihood, see scoring.elpd_heldout"
        )
    if site not in (None, *sites) or (site is None and len(sites) > 1):
        raise ValueError(f"site is {site!r}; evidence_bound holds {sites}: name one.")
    name = site or sites[0]
    check_predictive(group[name], f"evidence_bound/{name}")
    array = drop_copies(group[name]).astype(np.float64).load()
    observed = find_group(tree, "observed_data")
    pixels: xr.DataArray | None = None
    if name in observed:
        check_cases(observed[name], array, f"observed {name}", "evidence_bound")
        seen = known(observed[name]).load()
        seen = seen.any("channel") if "channel" in seen.dims else seen
        space = [dim for dim in seen.dims if dim not in array.dims]
        array = array.where(seen.any(space))
        pixels = seen.sum(space).where(seen.any(space)) if space else None
    drawn = array.sizes["chain"] * array.sizes["draw"]
    result = xr.Dataset({"bound": array.mean(SAMPLES)})
    error = monte_carlo.standard_error(array)
    result["bound_mcse"] = error if drawn > 1 else error * np.nan
    per_case = case_means.case_means(result["bound"])
    result["bound_mean"] = per_case.mean("case")
    result["bound_mean_se"] = case_means.over_cases(per_case, groups)
    for variable in result.data_vars.values():
        variable.attrs["units"] = "nats"
    if pixels is not None:
        mean = case_means.case_means(pixels).mean("case")
        result["bound_per_pixel"] = result["bound_mean"] / mean
        result["bound_per_pixel"].attrs["units"] = "nats per pixel"
    result.attrs.update(count_left_out(result["bound"]), mcse=monte_carlo.CAVEAT)
    return result
