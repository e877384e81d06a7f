"""``functions``: one plain network per posterior draw, for gradients and explanations."""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from ppl_med.inference.ensemble import members_of
from ppl_med.inference.function_draw import Sampler
from ppl_med.inference.programs import Program, argument_names


class Function:
    """One draw: image -> network output, without randomness and differentiable in the image.

    Attributes:
        chain: Index of the member.
        draw: Index of the draw, as in ``predict`` with the same seed.
    """

    def __init__(self, sampler: Sampler, draw: int, values: dict[str, Tensor], name: str) -> None:
        self.chain, self.draw = sampler.chain, draw
        self._sampler, self._values, self._name = sampler, values, name

    def __call__(self, image: Tensor) -> Tensor:
        """The program's return value for a batch of images.

        Args:
            image: Dims (case, channel, row, col), float32.

        Returns:
            What the model returns: logits (case, class) for classifiers.

        Raises:
            TypeError: If the program returns no tensor.
        """
        cases = np.arange(len(image))
        trace = self._sampler.run(self._values, self.draw, {self._name: image}, cases)
        output = trace.nodes["_RETURN"]["value"]
        if not isinstance(output, Tensor):
            raise TypeError(
                f"the model returned {type(output).__name__}; let it return the network's output "
                "(a tensor), which is what explanations differentiate"
            )
        return output


class Functions(Sequence[Function]):
    """A sequence of functions, drawn when they are asked for."""

    def __init__(self, samplers: list[Sampler], draws: int, name: str) -> None:
        self._samplers, self._draws, self._name = samplers, draws, name

    def __len__(self) -> int:
        return len(self._samplers) * self._draws

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
        sampler = self._samplers[chain]
        return Function(sampler, draw, sampler.draw(draw), self._name)

    def __iter__(self) -> Iterator[Function]:
        return (self[index] for index in range(len(self)))


def functions(
    model: Program,
    guide: Program,
    image: Tensor,
    *,
    draws: int = 32,
    seed: int = 0,
) -> Functions:
    """The posterior as a sequence of plain functions.

    With the same seed, function (chain, draw) has the weights of that draw in ``predict``.

    Args:
        model: The model.
        guide: Its guide, trained, or an ``Ensemble``.
        image: An image or batch of the shape to come; fixes the device.
        draws: Draws per chain.
        seed: Seed of all draws.

    Returns:
        ``draws`` functions a chain; each has ``chain`` and ``draw``.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    name = argument_names(model)[0]
    samplers = []
    for chain, pair in enumerate(members_of(model, guide)):
        for program in pair:
            if isinstance(program, nn.Module):
                program.to(image.device).eval()
        with torch.no_grad():
            samplers.append(Sampler(*pair, {name: image[:1]}, seed, chain))
    return Functions(samplers, draws, name)
