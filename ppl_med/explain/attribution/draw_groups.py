"""Function draws as scores with gradients, one draw or several at once.

All that a gradient method asks of the posterior is here: the explained number and its gradient at
some points, with the draws of the group along the first axis. Several draws run in one pass where
each is one network with parameters of its own: the parameters are stacked and the network is
mapped, which keeps a GPU busy and gains nothing on a CPU.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from ppl_med.explain.attribution.network import on_every_module
from ppl_med.explain.function_checks import Function
from ppl_med.weights.tied_parameters import call_with, tied_names

ScoreOf = Callable[[Tensor, Tensor], Tensor]
State = dict[str, Tensor]
AGREEMENT = 1e-4  # largest relative difference of a stacked draw from its function


@runtime_checkable
class DrawGroup(Protocol):
    """Some draws that are visited together."""

    num_draws: int

    def value(self, points: Tensor, rows: Tensor) -> Tensor:
        """Explained number at points (point, channel, ...) of the cases ``rows``: (draw, point)."""
        ...

    def gradient(self, points: Tensor, rows: Tensor) -> Tensor:
        """Its gradient in the points, (draw, point, channel, ...)."""
        ...


class Draw:
    """One function draw, and a score: from an output and its cases, one number per case."""

    num_draws = 1

    def __init__(self, function: Function, score: ScoreOf) -> None:
        self.function, self.score = function, score

    def forward(self, points: Tensor, rows: Tensor) -> Tensor:
        """Explained number (point,), with its graph; in-place layers get a copy."""
        return self.score(self.function(points.clone()), rows)

    @torch.no_grad()
    def value(self, points: Tensor, rows: Tensor) -> Tensor:
        """As in ``DrawGroup``."""
        return self.forward(points, rows)[None]

    def gradient(self, points: Tensor, rows: Tensor) -> Tensor:
        """As in ``DrawGroup``."""
        with torch.enable_grad():
            points = points.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.forward(points, rows).sum(), points)
        return slope[None]


class StackedDraws:
    """Draws of one network in one pass; a ValueError where they differ in more than parameters.

    A draw is any callable: its network is the innermost module that takes the images and returns
    the output, with the parameters it has at that call.
    """

    def __init__(self, functions: Sequence[Function], score: ScoreOf, example: Tensor) -> None:
        self.num_draws, self.score = len(functions), score
        found = [_network(function, example) for function in functions]
        self.network, first = found[0]
        self.ties = tied_names(self.network)
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
        return call_with(self.network, state, (points.clone(),), ties=self.ties)

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


def in_batches(
    call: Callable[[Tensor, Tensor], Tensor], points: Tensor, rows: Tensor, batch_size: int
) -> Tensor:
    """Apply a method of a group to points in batches; joined along the axis of points."""
    parts = zip(points.split(batch_size), rows.split(batch_size), strict=True)
    return torch.cat([call(*part) for part in parts], 1)


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

    with torch.no_grad(), on_every_module(leave, enter):
        output = function(example.clone())
    for module, state, returned in ended:  # inner modules end first
        if _equal(returned, output):
            return module, state
    raise ValueError("no torch module inside the functions takes the image and returns the output")


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
