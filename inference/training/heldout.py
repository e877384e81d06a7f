"""Held-out negative log-likelihood during training."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_med.inference.batches import check_one_grader, first_batch
from ppl_med.inference.prediction.case_densities import case_bounds, local_densities
from ppl_med.inference.prediction.posterior_sampler import PosteriorSampler
from ppl_med.likelihoods import log_prob_in_double
from ppl_med.programs import protocol
from ppl_med.programs.sites import (
    Program,
    batch_size,
    case_dim,
    check_densities,
    select_arguments,
    to_device,
    without_observations,
)


def heldout_nll(
    model: Program, guide: Program, batches: Any, device: torch.device, draws: int, seed: int
) -> float:
    """Mean over cases of -log of the mean over draws of the likelihood, in nats per case.

    Of a model whose density is known by a bound alone, the mean of the bound over the draws; of one
    that is judged by its training loss alone, the mean of that.
    Where the guide reads what is scored, as that of a VAE reads the image, draws are weighed by
    prior over guide: the importance-weighted bound.

    Model and guide are in evaluation mode, on the device; ``seed`` is that of the draws.

    Raises:
        ValueError: If a batch lacks an observation.
    """
    first = to_device(select_arguments(model, first_batch(batches)), device)
    one = {n: value[:1] if isinstance(value, Tensor) else value for n, value in first.items()}
    check_one_grader(one)
    sampler = PosteriorSampler(model, guide, without_observations(model, one), seed, 0)
    summed, cases = 0.0, 0
    for batch in batches:
        inputs = to_device(select_arguments(model, batch), device)
        missing = [name for name in sampler.observed if name not in inputs]
        if missing:
            raise ValueError(f"a batch has no {missing[0]!r}, without which nothing can be scored")
        check_one_grader(inputs)
        positions = np.arange(cases, cases + batch_size(inputs))
        with torch.no_grad():
            seen = sampler.observations(inputs, positions)
            bare = sampler.bare(inputs)
            if protocol.evidence_bound(model) or protocol.loss_alone(model):
                each = [
                    case_bounds(sampler, sampler.kept(draw), draw, inputs, seen, positions)
                    for draw in range(draws)
                ]
                logs = torch.stack([bound for one in each for bound in one.values()])
                mixture = logs.sum(0) / draws
            else:
                each_log = [
                    _log_likelihood(sampler, draw, bare, seen, positions) for draw in range(draws)
                ]
                mixture = torch.stack(each_log).logsumexp(0) - math.log(draws)
        summed, cases = summed - float(mixture.sum()), cases + len(positions)
    return summed / cases


def _log_likelihood(
    sampler: PosteriorSampler,
    draw: int,
    inputs: Mapping[str, Any],
    observations: Mapping[str, Tensor],
    positions: np.ndarray,
) -> Tensor:
    """Of each case under one draw, summed over observed sites, dims (case,), float64."""
    trace = sampler.run(sampler.kept(draw), draw, inputs, positions)
    by_site = []
    for name, value in observations.items():
        node: Any = trace.nodes[name]
        check_densities({name: node}, observations)
        log_prob = log_prob_in_double(node["fn"], value).double().movedim(case_dim(node), 0)
        by_site.append(log_prob.reshape(len(positions), -1).sum(1))
    if sampler.generated:
        by_site += [prior - guide for _, prior, guide in local_densities(trace, sampler.local)]
    return torch.stack(by_site).sum(0)
