"""An epoch's batches from where a run stands, in the order that the uninterrupted run has.

A loader that draws its order from a generator repeats it on resuming: the generators are set to the
epoch's start while it does, and then to where they stood.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ppl_med.inference.batches import Loader
from ppl_med.programs import rng

EpochStart = dict[str, Any]


def epoch_from(
    loader: Loader,
    epoch: int,
    batch: int,
    start: EpochStart | None,
    seed: int,
    device: torch.device,
) -> tuple[Iterator[tuple[dict[str, Any], float | Tensor]], EpochStart]:
    """The batches of an epoch from one of them on, and the generators at the epoch's start.

    Args:
        loader: The batches.
        epoch: Which epoch.
        batch: How many of its batches are done.
        start: Generators when the epoch began, as returned; None where it begins now.
        seed: Seed of the order.
        device: Whose generator is used.

    Returns:
        Batches with what their cases weigh, see ``Loader.open``; and the generators.
    """
    now, own = None, loader.generators()
    if batch == 0 or start is None:
        states = [generator.get_state() for generator in own]
        start = {"process": rng.get_state(device), "loader": states}
    elif loader.draws_its_order:
        now = rng.get_state(device)
        rng.set_state(start["process"], device)
        for generator, state in zip(own, start["loader"], strict=True):
            generator.set_state(state)
    iterator = loader.open(epoch, batch, seed)
    if now is not None:
        rng.set_state(now, device)
    return iterator, start


def set_back(
    loader: Loader, batch: int, start: EpochStart | None, before: Any, device: torch.device
) -> None:
    """Set generators to where they stood before a batch that could not be loaded.

    Before the first one of an epoch that is where the epoch began: a loader is asked for its order
    anew then, for which it has drawn already.

    Args:
        loader: The batches.
        batch: How many batches of the epoch are done.
        start: Generators when the epoch began, as ``epoch_from`` returned them.
        before: State of the process's generators before the batch.
        device: Whose generator is used.
    """
    if batch or start is None:
        rng.set_state(before, device)
        return
    rng.set_state(start["process"], device)
    for generator, state in zip(loader.generators(), start["loader"], strict=True):
        generator.set_state(state)
