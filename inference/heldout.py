"""Held-out negative log-likelihood during training."""

import math
from typing import Any

import numpy as np
import torch

from ppl_med.inference.function_draw import Sampler
from ppl_med.inference.programs import (
    Program,
    batch_size,
    select_arguments,
    to_device,
    without_observations,
)
from ppl_med.likelihoods import in_double


def heldout_nll(
    model: Program,
    guide: Program,
    batches: Any,
    device: torch.device,
    draws: int,
    seed: int,
) -> float:
    """Mean over cases of -log of the mean over draws of the likelihood, in nats per case.

    Args:
        model: The model, in evaluation mode.
        guide: The guide, in evaluation mode.
        batches: Held-out batches with observations.
        device: Where model and guide are.
        draws: Posterior draws.
        seed: Seed of the draws.
    """
    first = to_device(select_arguments(model, next(iter(batches))), device)
    one = {name: value[:1] for name, value in first.items()}
    sampler = Sampler(model, guide, without_observations(model, one), seed, 0)
    values = [sampler.draw(draw) for draw in range(draws)]
    summed, cases = 0.0, 0
    for batch in batches:
        inputs = to_device(select_arguments(model, batch), device)
        positions = np.arange(cases, cases + batch_size(inputs))
        bare = {name: value for name, value in inputs.items() if name not in sampler.observed}
        logs = []
        with torch.no_grad():
            for draw in range(draws):
                trace = sampler.run(values[draw], draw, bare, positions)
                log_prob = torch.zeros(len(positions), dtype=torch.float64, device=device)
                for name in sampler.observed:
                    log_prob = log_prob + in_double(trace.nodes[name]["fn"]).log_prob(inputs[name])
                logs.append(log_prob)
        mixture = torch.stack(logs).logsumexp(0) - math.log(draws)
        summed, cases = summed - float(mixture.sum()), cases + len(positions)
    return summed / cases
