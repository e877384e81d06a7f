"""Uncertainty of all draws, where a tree holds their moments and a few of them whole.

Such a tree is made by ``predict(..., lossy=Lossy(whole_draws=8))``. With the mean p of the class
probabilities p_s of all draws, the mean of their entropies and their variance:

    H(p)  =  mean H(p_s)  +  mutual information        nats

Figures are those that `uncertainty.entropy` and `uncertainty.variance` give of all draws, without
standard errors, which need the draws. All other analyses see the draws that were kept.
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.tree import find_group
from ppl_med.analysis.tree.groups import check_predictive
from ppl_med.analysis.tree.simplex import SUM_TOLERANCE
from ppl_med.storage.chains import MOMENTS

__all__ = ["decompose"]

GROUP = f"posterior{MOMENTS}"
_NEEDED = ("probs_mean", "probs_variance", "expected_entropy")


def decompose(tree: xr.DataTree) -> xr.Dataset:
    """Split entropy and variance of all draws into a data and a model part.

    Args:
        tree: The tree of `predict` with ``whole_draws``, of a model of classes; a lazy one is read
            at once: moments have no axis of draws.

    Returns:
        Dataset over (case, ...): ``predictive_entropy``, ``expected_entropy`` and
        ``mutual_information`` in nats; over (case, class, ...) ``aleatoric``, ``epistemic`` and
        ``total``, squared probabilities. NaN behind the end of a smaller case.

    Raises:
        ValueError: The tree holds no moments of class probabilities, or of some of the classes, or
            they are no predictive distribution.
    """
    group = find_group(tree, GROUP)
    missing = [name for name in _NEEDED if name not in group]
    if missing:
        raise ValueError(
            f"tree has no {GROUP}/{missing[0]}; predict a model of classes with "
            "lossy=Lossy(whole_draws=...), or take analysis.uncertainty, which reads all draws."
        )
    check_predictive(group[_NEEDED[0]], f"{GROUP}/{_NEEDED[0]}")
    number = int(group[_NEEDED[0]].attrs["num_draws"])
    mean, variance, expected = (group[name].astype(np.float64).load() for name in _NEEDED)
    if float(abs(mean.sum("class", skipna=False) - 1).max()) > SUM_TOLERANCE:
        raise ValueError(
            f"{GROUP}/{_NEEDED[0]} must sum to one over class: entropies of some of the classes "
            "cannot be told from moments of all; leave the classes in."
        )
    logs = np.log(mean.where(mean != 0, 1))
    entropy = -(mean * logs).sum("class", skipna=False)
    aleatoric = mean * (1 - mean) - variance * ((number - 1) / number)
    figures = {
        "predictive_entropy": (entropy, "nats"),
        "expected_entropy": (expected, "nats"),
        "mutual_information": ((entropy - expected).clip(min=0), "nats"),
        "aleatoric": (aleatoric.clip(min=0), "probability^2"),
        "epistemic": (variance, "probability^2"),
        "total": (aleatoric.clip(min=0) + variance, "probability^2"),
    }
    result = xr.Dataset({name: one.drop_attrs() for name, (one, _) in figures.items()})
    for name, (_, unit) in figures.items():
        result[name].attrs["units"] = unit
    result.attrs = {"num_draws": number, "mcse": "not computed: it needs the draws"}
    if "draws_of" in group[_NEEDED[0]].attrs:
        result.attrs["epistemic_of"] = group[_NEEDED[0]].attrs["draws_of"]
    return result
