"""What programs learn from one more pass over the batches, without gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from ppl_med.inference.batches import Loader
from ppl_med.inference.training.member import Member
from ppl_med.inference.training.schedules import weight_at
from ppl_med.inference.training.settings import Settings
from ppl_med.programs import protocol, rng
from ppl_med.programs.elbo import elbo_terms
from ppl_med.programs.sites import Batch, select_arguments, to_device


def complete(member: Member, loader: Loader, settings: Settings, seed: int) -> None:
    """Let the guide of a trained member fill itself; see ``protocol.after_trainings``.

    Random number generators, those of a loader too, are left as they were.
    """
    functions = protocol.after_trainings(member.guide)
    if not functions:
        return
    options = {"num_cases": loader.num_cases, "kl_weight": weight_at(settings.kl_weight, 1.0)}
    for function in functions:
        with _generators(loader, seed):
            visits = _visits(member, loader, settings, settings.epochs, seed)
            function(member.model, visits, **options)


def measure_statistics(member: Member, loader: Loader, settings: Settings, seed: int) -> None:
    """Measure the running statistics of norm layers under the weights as they are.

    The programs are in evaluation mode, and so are all other layers in the pass. Random number
    generators, those of a loader too, are left as they were.
    """
    if not member.norms or member.average is None or member.average.steps == 0:
        return
    visits = _visits(member, loader, settings, 0, seed)  # the same, however long the run is
    with _generators(loader, seed):
        program = _OneRun(member, loader.num_cases).eval()
        update_bn((values for values, _ in visits), program)


class _OneRun(nn.Module):
    """Model and guide as one module of the norm layers alone, whose mode it sets."""

    def __init__(self, member: Member, num_cases: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(member.norms)
        self.run = lambda values: elbo_terms(
            member.model, member.guide, **values, num_cases=num_cases
        )

    def forward(self, values: Batch) -> None:
        """Run the two on a batch."""
        self.run(values)


@contextmanager
def _generators(loader: Loader, seed: int) -> Iterator[None]:
    """Seed all generators, and leave them and a loader's own as they were."""
    own = [(generator, generator.get_state()) for generator in loader.generators()]
    try:
        with rng.restored():
            rng.seed_all(seed)
            yield
    finally:
        for generator, state in own:
            generator.set_state(state)


def _visits(
    member: Member, loader: Loader, settings: Settings, epoch: int, seed: int
) -> Iterator[tuple[dict[str, Any], float | Tensor]]:
    """An epoch's batches, as the model takes them, and what their cases weigh."""
    for batch, factor in loader.open(epoch, 0, seed):
        values = to_device(select_arguments(member.model, batch), settings.device)
        on_device = factor.to(settings.device) if isinstance(factor, Tensor) else factor
        yield values, on_device
