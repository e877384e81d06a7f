"""Do the chains agree, and how many draws are they worth: in what was predicted, where defined.

R-hat compares the spread between chains with that inside them. Members of an ensemble of point
estimates have no spread inside, however often each is drawn, and R-hat divides by zero: ArviZ then
says infinity, which reads as if nothing had converged. It is not defined for one function per
chain, and NaN here.

The weights of a net are no quantity to judge by: hidden units may be exchanged, so that chains that
agree in every prediction differ in them (Izmailov et al., ICML 2021). ``of`` names them, or any
other variable of the group ``posterior``, where they are asked for all the same.

Of several samples of every draw of the weights (`predict` with ``samples``) the mean is judged: the
chain is one of weights, whose samples are no steps of it.

Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner, Bayesian Analysis 16, 2021 (rank-normalised
split R-hat; effective sample sizes of the bulk and of the 5 % and 95 % quantiles), as
``arviz_stats`` computes them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from ppl_med.analysis.statistics.weight_draws import over_weights
from ppl_med.analysis.tree import Posterior, drop_copies, find_distribution, has_probs, open_classes
from ppl_med.axes import SAMPLES
from ppl_med.checks import choice

__all__ = ["effective_draws", "r_hat"]

_FEWEST = 4  # draws of a chain that are split into two halves
_SIZES: dict[str, dict[str, Any]] = {"bulk": {}, "tail": {"prob": (0.05, 0.95)}}


def r_hat(tree: Posterior, *, of: str | None = None) -> xr.Dataset:
    """Return the rank-normalised split R-hat of the predicted probabilities, or numbers.

    Args:
        tree: The tree of `predict`: ``probs``, or ``loc`` or ``mean`` of numbers.
        of: Another variable of the group ``posterior``, such as ``"weights"`` of the tree
            ``guide.posterior()`` of a sampler's chains.

    Returns:
        Dataset of ``r_hat`` (case, ...), near 1 where chains agree, and its largest value
        ``r_hat_max``; NaN with the attribute ``note`` where a chain has fewer than 4 functions.

    Raises:
        TypeError, ValueError: ``tree`` holds neither, or not ``of``.
    """
    from arviz_stats import rhat

    return _diagnosed(_quantity(tree, of), "R-hat", r_hat=(rhat, {}, "max"))


def effective_draws(tree: Posterior, *, of: str | None = None) -> xr.Dataset:
    """Return how many independent draws the chains are worth, for a mean and for an interval.

    Args:
        tree: As in ``r_hat``.
        of: As in ``r_hat``.

    Returns:
        Dataset of ``ess_bulk`` and ``ess_tail`` (case, ...), numbers of draws over all chains, and
        their smallest values ``ess_bulk_min`` and ``ess_tail_min``; NaN with the attribute ``note``
        where a chain has fewer than 4 functions. A Monte Carlo error of a posterior mean is its
        standard deviation over the root of ``ess_bulk``.

    Raises:
        TypeError, ValueError: As ``r_hat``.
    """
    from arviz_stats import ess

    bulk, tail = ((ess, {"method": method, **more}, "min") for method, more in _SIZES.items())
    return _diagnosed(_quantity(tree, of), "effective size", ess_bulk=bulk, ess_tail=tail)


def _quantity(tree: Posterior, of: str | None) -> xr.DataArray:
    """What is judged, dims (chain, draw, ...), float64."""
    if of is not None:
        known = [] if isinstance(tree, xr.DataArray) else [*tree["posterior"].data_vars]
        return over_weights(tree["posterior"][choice("of", of, known)].astype(np.float64))
    group = None if isinstance(tree, xr.DataArray) or has_probs(tree) else find_distribution(tree)
    if group is None:
        return over_weights(open_classes(tree).array.astype(np.float64))
    return over_weights(drop_copies(group["loc" if "loc" in group else "mean"]).astype(np.float64))


def _diagnosed(
    array: xr.DataArray, what: str, **figures: tuple[Callable[..., Any], dict[str, Any], str]
) -> xr.Dataset:
    """Figures of every entry and their extremes, by a function of draws, options and extreme."""
    template = array.isel(dict.fromkeys(SAMPLES, 0), drop=True)
    template.attrs = {"units": "1"}
    result = xr.Dataset()
    if array.sizes["draw"] < _FEWEST:
        one = array.sizes["draw"] == 1
        note = "one function per chain" if one else f"fewer than {_FEWEST} functions per chain"
        result.attrs["note"] = f"{what} is not defined for {note}"
    draws = array.transpose(*SAMPLES, ...).values
    for name, (function, options, extreme) in figures.items():
        if array.sizes["draw"] < _FEWEST:
            result[name] = xr.full_like(template, np.nan, dtype=np.float64)
        else:
            values = function(draws, chain_axis=0, draw_axis=1, **options)
            result[name] = template.copy(data=np.asarray(values))
        result[f"{name}_{extreme}"] = getattr(result[name], extreme)()
    return result.assign_attrs(num_chains=array.sizes["chain"], num_draws=array.sizes["draw"])
