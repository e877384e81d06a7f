"""Several draws of one network in one pass: their parameters are stacked, the network is mapped.

A function draw is any callable. Where a module inside it takes the images and returns the output,
that module with the parameters it had at that call is the draw's network. On a GPU one pass for
several draws keeps the device busy; on a CPU a loop is as fast or faster.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.module import register_module_forward_pre_hook

from ppl_med.explain.attribution.draws import Function, ScoreOf
from ppl_med.explain.attribution.network import on_every_module

State = dict[str, Tensor]
AGREEMENT = 1e-4  # largest relative difference of a stacked draw from its function


class StackedDraws:
    """A group of draws of one network.

    Args:
        functions: The draws.
        score: As of ``Draw``.
        example: One image, to find the network with.

    Raises:
        ValueError: If the functions are not one network with different parameters.
    """

    def __init__(self, functions: Sequence[Function], score: ScoreOf, example: Tensor) -> None:
        self.num_draws, self.score = len(functions), score
        found = [_network(function, example) for function in functions]
        self.network, first = found[0]
        states = [state for _, state in found]
        shapes = [{name: value.shape for name, value in state.items()} for state in states]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError("the functions differ in the parameters of their networks")
        self.states = {name: torch.stack([state[name] for state in states]) for name in first}
        with torch.no_grad():
            outputs = self._outputs(example)
            for output, function in zip(outputs, functions, strict=True):
                wanted = function(example.clone())
                if (output - wanted).abs().max() > AGREEMENT * wanted.abs().max():
                    raise ValueError("the functions' networks differ in more than parameters")

    def _call(self, state: State, points: Tensor) -> Tensor:
        return functional_call(self.network, state, (points.clone(),))

    def _outputs(self, points: Tensor) -> Tensor:
        return vmap(self._call, (0, None), randomness="error")(self.states, points)

    @torch.no_grad()
    def value(self, points: Tensor, rows: Tensor) -> Tensor:
        """As in ``DrawGroup``."""
        return vmap(lambda output: self.score(output, rows))(self._outputs(points))

    def gradient(self, points: Tensor, rows: Tensor) -> Tensor:
        """As in ``DrawGroup``."""

        def total(state: State, points: Tensor) -> Tensor:
            return self.score(self._call(state, points), rows).sum()

        return vmap(grad(total, 1), (0, None), randomness="error")(self.states, points.detach())


def _network(function: Function, example: Tensor) -> tuple[nn.Module, State]:
    """The innermost module that takes the image and returns the output, with its parameters."""
    waiting: list[tuple[nn.Module, State | None]] = []
    ended: list[tuple[nn.Module, State, Tensor]] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        state = None
        if len(inputs) == 1 and isinstance(inputs[0], Tensor) and _equal(inputs[0], example):
            named = (*module.named_parameters(), *module.named_buffers())
            state = {name: value.detach().clone() for name, value in named}
        waiting.append((module, state))

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        _, state = waiting.pop()
        if state is not None and isinstance(output, Tensor):
            ended.append((module, state, output.clone()))

    handle = register_module_forward_pre_hook(enter)
    try:
        with torch.no_grad(), on_every_module(leave):
            output = function(example.clone())
    finally:
        handle.remove()
    for module, state, returned in ended:  # inner modules end first
        if _equal(returned, output):
            return module, state
    raise ValueError("no torch module inside the functions takes the image and returns the output")


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
