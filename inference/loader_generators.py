"""Random number generators that a loader's order and augmentation hang on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ppl_med.programs import rng


def loader_generators(batches: Any) -> list[torch.Generator]:
    """A loader's own generators, such as of ``DataLoader(generator=...)``, each once."""
    found = [getattr(owner, "generator", None) for owner in owners(batches)]
    own = {id(g): g for g in found if isinstance(g, torch.Generator)}
    return list(own.values())


@contextmanager
def generators_restored(batches: Any) -> Iterator[None]:
    """Put every random number generator, also the loader's own, back when the block ends."""
    own = [(generator, generator.get_state()) for generator in loader_generators(batches)]
    try:
        with rng.restored():
            yield
    finally:
        for generator, state in own:
            generator.set_state(state)


def owners(batches: Any) -> list[Any]:
    """What an epoch's order may hang on: batches and their samplers, each once."""
    batched = getattr(batches, "batch_sampler", None)
    found = (batches, getattr(batches, "sampler", None), batched, getattr(batched, "sampler", None))
    return list({id(one): one for one in found if one is not None}.values())
