"""``functions``: one plain network per posterior draw, for gradients and explanations."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from ppl_med.checks import whole
from ppl_med.inference.batches import check_seed
from ppl_med.inference.guides.ensemble import members_of
from ppl_med.inference.prediction.posterior_sampler import PosteriorSampler
from ppl_med.programs.parameters import move, set_mode
from ppl_med.programs.sites import Program, argument_names


class _Member:
    """One member's program; its sampler is made for the first image, which fixes the device."""

    def __init__(self, model: Program, guide: Program, seed: int, chain: int) -> None:
        self.pair, self.seed, self.chain = (model, guide), seed, chain
        self.argument = argument_names(model)[0]
        self.sampler: PosteriorSampler | None = None
        self.device: torch.device | None = None

    def prepare(self, image: Tensor) -> PosteriorSampler:
        """The sampler, with the programs on the image's device and in evaluation mode."""
        if self.sampler is None or self.device != image.device:
            move(self.pair, image.device)
            set_mode(self.pair, False)
            with torch.no_grad():
                example = {self.argument: image[:1].detach()}
                self.sampler = PosteriorSampler(*self.pair, example, self.seed, self.chain)
            self.device = image.device
        return self.sampler


class Function:
    """One draw: image -> network output, without randomness and differentiable in the image.

    ``chain`` is the index of the member, ``draw`` that of the draw, as in ``predict`` with the
    seed.
    """

    def __init__(self, member: _Member, draw: int) -> None:
        self.chain, self.draw = member.chain, draw
        self._member = member
        self._sampler: PosteriorSampler | None = None
        self._values: dict[str, Tensor] = {}

    def __call__(self, image: Tensor) -> Tensor:
        """What the program returns for images (case, channel, row, col), such as logits of classes.

        Raises:
            TypeError: If the program returns no tensor.
        """
        sampler = self._member.prepare(image)
        if sampler is not self._sampler:
            self._sampler, self._values = sampler, sampler.draw(self.draw)
        inputs = {self._member.argument: image}
        # One noise for all rows: the same image gives the same output wherever it stands.
        cases = np.zeros(len(image), dtype=int)
        trace = sampler.run(self._values, self.draw, inputs, cases)
        output = trace.nodes["_RETURN"]["value"]
        if not isinstance(output, Tensor):
            raise TypeError(
                f"the model returned {type(output).__name__}; let it return the network's output "
                "(a tensor), which is what explanations differentiate"
            )
        return output


class Functions(Sequence[Function]):
    """A sequence of functions; the weights of one are drawn when it is first called."""

    def __init__(self, members: list[_Member], draws: int) -> None:
        self._members, self._draws = members, draws

    def __len__(self) -> int:
        return len(self._members) * self._draws

    @overload
    def __getitem__(self, index: int) -> Function: ...
    @overload
    def __getitem__(self, index: slice) -> list[Function]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        chain, draw = divmod(index % len(self), self._draws)
        return Function(self._members[chain], draw)


def functions(model: Program, guide: Program, *, draws: int = 32, seed: int = 0) -> Functions:
    """The posterior as a sequence of plain functions.

    With the same seed, function (chain, draw) has the weights of that draw in ``predict``. A latent
    code per case takes one noise a draw, the same for every image, so that each is a function.

    Args:
        model: The model.
        guide: Its guide, trained, or an ``Ensemble``.
        draws: Draws per chain.
        seed: Seed of all draws.

    Returns:
        ``draws`` functions a chain; each has ``chain`` and ``draw``.
    """
    draws, seed = whole("draws", draws), check_seed(seed)
    pairs = enumerate(members_of(model, guide))
    return Functions([_Member(*pair, seed, chain) for chain, pair in pairs], draws)
