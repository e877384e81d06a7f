"""The unnormalised posterior that samplers explore, as a potential over one vector.

    U(w) = -log p(w) - sum over cases of log p(observed | w)        nats, for the whole data set

The prior counts once and every case once, however the batches are cut: ``Target.potential`` reads
all of them; ``Target.estimate`` one batch, scaled by num_cases / len(batch) as in ``fit``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_med.inference.sampling.coordinates import Coordinates
from ppl_med.inference.sampling.gradient_graph import Potential, recorded
from ppl_med.programs.case_scale import CaseScale
from ppl_med.programs.sites import Program, batch_size, is_local, scaled, to_device

Inputs = dict[str, Any]
MOST_NUMBERS = 2**22  # of the inputs of one piece: 16 MiB of float32


class Target:
    """A program conditioned on data.

    Args:
        model: The program, in evaluation mode, in the precision that is sampled in.
        pieces: All cases, in batches; none for a sampler that reads a batch a step.
        num_cases: Size of the data set.
        convert: To what floating inputs are converted; None leaves them.
        device: Where the program stands.

    Attributes:
        coordinates: Of the program's latents, once it has run.
        batches: For samplers that read a batch a step: from a seed to a stream of them.
        generators: From which the batches draw their order.
        fast_potential: ``potential``, with a gradient that costs less once it was recorded.
    """

    coordinates: Coordinates
    batches: Callable[[int], Any]

    def __init__(
        self,
        model: Program,
        pieces: Sequence[Inputs],
        num_cases: int,
        convert: torch.dtype | None,
        device: torch.device,
    ) -> None:
        self.model, self.num_cases, self.convert, self.device = model, num_cases, convert, device
        self.generators: list[torch.Generator] = []
        self.fast_potential: Potential = self.potential
        self.pieces = [self.converted(piece) for piece in pieces]

    def converted(self, inputs: Mapping[str, Any]) -> Inputs:
        """Inputs on the device, floating ones in the precision that is sampled in."""
        moved = to_device(inputs, self.device)
        for name, value in moved.items():
            if self.convert and isinstance(value, Tensor) and value.is_floating_point():
                moved[name] = value.to(self.convert)
        return moved

    def potential(self, vector: Tensor) -> Tensor:
        """U over all cases, in nats, zero-dimensional."""
        values, volume = self.coordinates.values(vector)
        total: Tensor | float = volume
        for index, piece in enumerate(self.pieces):
            factor = batch_size(piece) / self.num_cases
            total = total + self._log_joint(values, piece, factor, cases_only=index > 0)
        return -torch.as_tensor(total).to(vector.dtype)

    def record(self, vector: Tensor) -> None:
        """Make ``fast_potential`` a graph where that can be had, recorded at a position."""
        self.fast_potential = recorded(self.potential, vector)

    def estimate(self, vector: Tensor, inputs: Inputs, factor: float | Tensor) -> Tensor:
        """An estimate of U from a batch, in nats for the whole data set, zero-dimensional.

        Args:
            vector: The position.
            inputs: Of a batch, converted.
            factor: What its cases weigh beyond num_cases / len(batch), as ``Loader.open`` says.
        """
        values, volume = self.coordinates.values(vector)
        return -(self._log_joint(values, inputs, factor, cases_only=False) + volume)

    def _log_joint(
        self, values: Mapping[str, Tensor], inputs: Inputs, factor: float | Tensor, cases_only: bool
    ) -> Tensor:
        with CaseScale(factor), _Density(values, cases_only=cases_only) as density:
            self.model(**inputs, num_cases=self.num_cases)
        return torch.stack(density.terms).sum()


class _Density(Messenger):
    """Gives latents their values and collects the log-densities of sites: a trace's, at less cost.

    Args:
        values: Of the latents, by site.
        cases_only: Whether sites outside of the plate of cases are left out.

    Attributes:
        terms: The log-densities, in nats, zero-dimensional.
    """

    def __init__(self, values: Mapping[str, Tensor], *, cases_only: bool) -> None:
        super().__init__()
        self.values, self.cases_only = values, cases_only
        self.terms: list[Tensor] = []

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or (self.cases_only and not is_local(msg)):
            return
        self.terms.append(scaled(msg["fn"].log_prob(msg["value"]), msg).sum())


def join(batches: Sequence[Inputs]) -> list[Inputs]:
    """Batches as few larger ones: those of equal shapes follow each other in one.

    A piece holds up to ``MOST_NUMBERS`` numbers, or one batch.
    """
    pieces: list[list[Inputs]] = []
    for batch in batches:
        size = sum(v.numel() for v in batch.values() if isinstance(v, Tensor))
        if pieces and _form(pieces[-1][0]) == _form(batch):
            held = sum(v.numel() for one in pieces[-1] for v in one.values())
            if held + size <= MOST_NUMBERS:
                pieces[-1].append(batch)
                continue
        pieces.append([batch])
    return [
        parts[0]
        if len(parts) == 1
        else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for parts in pieces
    ]


def _form(batch: Inputs) -> Any:
    """What batches that are joined must share; None, which no other equals, for what cannot be."""
    if not all(isinstance(value, Tensor) and value.dim() for value in batch.values()):
        return object()
    return {name: (value.shape[1:], value.dtype) for name, value in batch.items()}
