"""What a network trained apart says of a counterfactual: does its class flip too?

A change that flips the network it was made for and no other is an attack, not an explanation.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from ppl_med.explain.counterfactuals.measures import as_numpy, described
from ppl_med.explain.counterfactuals.posterior_predictive import PosteriorPredictive, check_draws
from ppl_med.explain.function_checks import Function

NOT_JUDGED = "not judged"


def second_opinion(
    result: xr.Dataset, functions: Sequence[Function], *, device: torch.device | str = "cpu"
) -> xr.Dataset:
    """Have another network judge counterfactuals of any method.

    Args:
        result: As ``minimal_perturbation`` and its like return it.
        functions: Draws of the other network, of its own training, with the same classes.
        device: Where these are.

    Returns:
        The result with ``transferred`` (case), 1 where the predictive class of the other network
        becomes the target, 0 where not, NaN where it is the target for the image already; and
        ``second_log_odds`` (case), of the target after the change, in nats.

    Raises:
        ValueError: If the result lacks images or targets, or the functions do not fit.
    """
    missing = {"image", "counterfactual", "target"} - result.keys()
    if missing:
        raise ValueError(
            f"result has no {', '.join(sorted(missing))}; give what minimal_perturbation, "
            "diffusion_counterfactual or another method of counterfactuals returned"
        )
    image, found, target = (
        torch.from_numpy(result[name].values).to(device)
        for name in ("image", "counterfactual", "target")
    )
    check_draws(functions, image, target)
    draws = PosteriorPredictive(functions, target)
    before, after = (as_numpy(draws.log_odds(each)) for each in (image, found))
    flips = np.where(before < 0, (after > 0).astype(float), np.nan)
    result = result.assign(transferred=("case", flips), second_log_odds=("case", after))
    attrs = {"second_judge": f"{len(functions)} draws of another network"}
    return described(result).assign_attrs(attrs)
