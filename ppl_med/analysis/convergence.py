"""Do the chains agree: R-hat of what was predicted, where it is defined.

R-hat compares the spread between chains with that inside them. Members of an ensemble of point
estimates have no spread inside, however often each is drawn, and R-hat divides by zero: ArviZ then
says infinity, which reads as if nothing had converged. It is not defined for one function per
chain, and NaN here.

Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner, Bayesian Analysis 16, 2021 (rank-normalised
split R-hat), as ``arviz_stats`` computes it.
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.tree import Posterior, drop_copies, find_distribution, has_probs, open_classes
from ppl_med.axes import SAMPLES

__all__ = ["r_hat"]

_FEWEST = 4  # draws of a chain that are split into two halves


def r_hat(tree: Posterior) -> xr.Dataset:
    """Return the rank-normalised split R-hat of the predicted probabilities, or numbers.

    Args:
        tree: The tree of `predict`: ``probs``, or ``loc`` or ``mean`` of numbers.

    Returns:
        Dataset of ``r_hat`` (case, ...), near 1 where chains agree, and its largest value
        ``r_hat_max``; NaN with the attribute ``note`` where a chain has fewer than 4 functions.

    Raises:
        TypeError, ValueError: ``tree`` holds neither.
    """
    group = None if isinstance(tree, xr.DataArray) or has_probs(tree) else find_distribution(tree)
    if group is None:
        array = open_classes(tree).array
    else:
        array = drop_copies(group["loc" if "loc" in group else "mean"])
    template = array.isel(dict.fromkeys(SAMPLES, 0), drop=True)
    template.attrs = {"units": "1"}
    if array.sizes["draw"] < _FEWEST:
        found = xr.full_like(template, np.nan, dtype=np.float64)
        one = array.sizes["draw"] == 1
        note = "one function per chain" if one else f"fewer than {_FEWEST} functions per chain"
        attrs = {"note": f"R-hat is not defined for {note}"}
    else:
        from arviz_stats import rhat

        draws = array.astype(np.float64).transpose(*SAMPLES, ...).values
        values = rhat(draws, chain_axis=0, draw_axis=1)
        found, attrs = template.copy(data=np.asarray(values)), {}
    result = xr.Dataset({"r_hat": found, "r_hat_max": found.max()}, attrs=attrs)
    return result.assign_attrs(num_chains=array.sizes["chain"], num_draws=array.sizes["draw"])
