"""From a model and batches to what is sampled, with every check that needs a run."""

from collections.abc import Sequence

import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_med.inference.batches import BatchSpec, Loader, first_batch
from ppl_med.inference.sampling import refusals
from ppl_med.inference.sampling.batch_stream import BatchStream
from ppl_med.inference.sampling.coordinates import Coordinates
from ppl_med.inference.sampling.starts import Starts
from ppl_med.inference.sampling.target import Inputs, Target, join
from ppl_med.inference.training.dry_run import check_observed, not_running
from ppl_med.inference.training.reached_weights import check_reached
from ppl_med.programs import rng
from ppl_med.programs.elbo import Terms, check_sites
from ppl_med.programs.sites import (
    Program,
    batch_size,
    sample_sites,
    select_arguments,
    stated_sites,
    takes_num_cases,
)

SAME = 1e-6  # relative change between two runs above which a potential is random


def prepare_target(
    model: Program,
    start: Program | None,
    loader: Loader,
    spec: BatchSpec,
    device: torch.device,
    dtype: str | None,
    *,
    full_batch: bool,
) -> tuple[Target, Starts]:
    """What is sampled, and where chains start.

    Args:
        model: In evaluation mode, in the precision that is sampled in.
        start: See ``sample``.
        loader: The batches.
        spec: What the model accepts.
        device: Where the model is.
        dtype: See ``sample``.
        full_batch: Whether every step takes all cases.

    Raises:
        ValueError: The program does not run on the batches, observes nothing, has latents that
            cannot be sampled, or a potential that is another every time.
    """
    if not takes_num_cases(model):
        raise ValueError(
            "the model takes no keyword num_cases; write it as "
            "model(image, label=None, *, num_cases=None) with "
            'pyro.plate("case", num_cases or len(image), subsample=image)'
        )
    pieces: Sequence[Inputs] = ()
    first = select_arguments(model, first_batch(loader.batches))
    if full_batch:
        batches = refusals.all_batches(loader, spec.arguments)
        for batch in batches:
            spec.check(batch, loader.num_cases)
        pieces = join([select_arguments(model, batch) for batch in batches])
    convert = None if dtype is None else getattr(torch, dtype)
    target = Target(model, pieces, loader.num_cases, convert, device)
    target.batches = lambda seed: BatchStream(model, loader, spec, seed, device)
    target.generators = loader.generators()
    given = target.converted(first)
    starts = Starts(target, model, first, start)
    try:
        with rng.restored(), torch.no_grad():
            trace = poutine.trace(model).get_trace(**given, num_cases=loader.num_cases)
        sites = sample_sites(trace)
        latents = stated_sites(trace, observed=False)
        check_observed(model, sites, batch_size(given), loader.num_cases)
        check_sites(model, model, sites, latents)
        refusals.check_sites(latents)
        target.coordinates = Coordinates(latents)
        with rng.restored():
            rng.seed_all(0)  # a resumed run records at the same place
            vector = starts.of_chain(0)
            _check_fixed(starts, vector)
            _check_reached(model, starts, vector)
            if pieces:
                target.record(vector)
    except (ArithmeticError, LookupError, RuntimeError, TypeError) as error:
        raise not_running(error, given) from error
    return target, starts


def _check_fixed(starts: Starts, vector: Tensor) -> None:
    """Raise where the potential of a position is another every time."""
    with torch.no_grad():
        one, other = (float(starts.probe(vector)) for _ in range(2))
    if abs(one - other) > SAME * max(abs(one), 1.0):
        raise ValueError(
            f"the potential of the same weights differs from run to run ({one:g} and {other:g} "
            "nats): the program draws random numbers that are no latents of it, such as "
            "F.dropout(x, 0.5), which is always on, or a random subsample; take them out"
        )


def _check_reached(model: Program, starts: Starts, vector: Tensor) -> None:
    def run() -> tuple[Terms, None]:
        return {"all": starts.probe(vector.detach().requires_grad_(True))}, None

    check_reached(model, model, run)
