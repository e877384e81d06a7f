"""Densities of single cases: of latents that a guide proposed, and bounds of observations."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyro.poutine as poutine
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_med.inference.batches import has_graders
from ppl_med.inference.prediction.case_noise import Keys, derive_seed
from ppl_med.inference.prediction.posterior_sampler import (
    Globals,
    Inputs,
    PosteriorSampler,
    Substitute,
    trace_of,
)
from ppl_med.likelihoods import log_prob_in_double
from ppl_med.programs import protocol
from ppl_med.programs.elbo import bound_by_case, latent_faults
from ppl_med.programs.isolation import private_store
from ppl_med.programs.rng import seed_torch, torch_restored
from ppl_med.programs.sites import case_dim, is_local, sample_sites


def local_densities(
    trace: poutine.Trace, names: Sequence[str]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Of the latents of every case that a guide proposed: log p(z), log q(z), both (case,)."""
    nodes: dict[str, Any] = dict(trace.nodes)
    for name in names:
        node = nodes[name]
        if "proposal" in node:
            prior, guide = (
                log_prob_in_double(fn, node["value"]).double().movedim(case_dim(node), 0)
                for fn in (node["fn"], node["proposal"])
            )
            prior, guide = (one.reshape(len(one), -1).sum(1) for one in (prior, guide))
            yield name, prior, guide


def case_bounds(
    sampler: PosteriorSampler,
    values: Globals,
    draw: int,
    inputs: Inputs,
    observations: Globals,
    cases: NDArray[np.integer],
    sample: int = 0,
) -> Globals:
    """Of every observed site the ELBO of each case under given global latents, nats.

    Args:
        sampler: Of the model and its guide.
        values: Global latents of the draw.
        draw: Its number.
        inputs: Arguments of a batch.
        observations: As ``sampler.observations`` gives them.
        cases: Position of each case in the data set.
        sample: Which of several samples with these latents it is.

    Returns:
        By site, dims (case), or (grader, case), NaN for graders who did not look at the case.

    Raises:
        ValueError: If the guide does not propose a latent of the cases.
    """
    found, keys = {}, sampler.keys(draw, sample)
    for name, given in observations.items():
        by_graders = has_graders(inputs) and name == "mask"
        parts = [
            _bound(sampler, values, keys, {**sampler.bare(inputs), name: one}, cases)
            for one in (given if by_graders else given[None])
        ]
        found[name] = torch.stack(parts) if by_graders else parts[0]
    return found


def _bound(
    sampler: PosteriorSampler,
    values: Globals,
    keys: Keys,
    inputs: dict[str, Any],
    cases: NDArray[np.integer],
) -> Tensor:
    unseen = torch.zeros(len(cases), dtype=torch.bool)
    for name in (sampler.discrete & inputs.keys()) - sampler.generated:
        missing = (inputs[name] < 0).flatten(1).all(1)
        unseen |= missing.cpu()
        shaped = missing.view(-1, *[1] * (inputs[name].dim() - 1))
        inputs[name] = inputs[name].masked_fill(shaped, 0)
    with torch_restored(), private_store():
        seed_torch(derive_seed(*keys, int(cases[0])))
        with Substitute(values, keys, cases):
            guide_trace = trace_of(sampler.guide, inputs)
        proposed = {n: s for n, s in sample_sites(guide_trace).items() if is_local(s)}
        drawn = {name: site["value"] for name, site in proposed.items()}
        with Substitute(values | drawn, keys, cases):
            model_trace = trace_of(sampler.model, inputs)
    found = {n: s for n, s in sample_sites(model_trace).items() if is_local(s)}
    for fault in latent_faults(found, proposed, protocol.left_to_prior(sampler.guide)):
        raise ValueError(fault)
    return bound_by_case(model_trace, guide_trace).cpu().masked_fill(unseen, torch.nan)
