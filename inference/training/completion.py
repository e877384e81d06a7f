"""What a guide learns when its training has ended, from one more pass over the batches."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ppl_med.inference.batches import Loader
from ppl_med.inference.training.member import Member
from ppl_med.inference.training.schedules import weight_at
from ppl_med.inference.training.settings import Settings
from ppl_med.programs import protocol, rng
from ppl_med.programs.sites import select_arguments, to_device


def complete(member: Member, loader: Loader, settings: Settings, seed: int) -> None:
    """Let the guide of a trained member fill itself; see ``protocol.after_trainings``.

    Random number generators, those of a loader too, are left as they were.
    """
    functions = protocol.after_trainings(member.guide)
    if not functions:
        return
    own = [(generator, generator.get_state()) for generator in loader.generators()]
    options = {"num_cases": loader.num_cases, "kl_weight": weight_at(settings.kl_weight, 1.0)}
    for function in functions:
        with rng.restored():
            rng.seed_all(seed)
            function(member.model, _visits(member, loader, settings, seed), **options)
        for generator, state in own:
            generator.set_state(state)


def _visits(
    member: Member, loader: Loader, settings: Settings, seed: int
) -> Iterator[tuple[dict[str, Any], float | Tensor]]:
    """An epoch's batches, as the model takes them, and what their cases weigh."""
    for batch, factor in loader.open(settings.epochs, 0, seed):
        values = to_device(select_arguments(member.model, batch), settings.device)
        on_device = factor.to(settings.device) if isinstance(factor, Tensor) else factor
        yield values, on_device
