"""The potential and its gradient as one graph of tensor operations, without Python between them.

A step of Hamiltonian Monte Carlo on a small net spends its time in Python: handlers, modules,
autograd. The program is therefore run once on tensors without values (``torch.fx``), and the
operations it made are replayed, at a half to an eighth of the cost. A branch on a value cannot be
taken without one: such a program is not recorded, and runs as it is.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

SAME = 1e-4  # relative difference of recorded and plain figures above which the graph is not used
STEP = 0.1  # from the place of the recording to that of another comparison

Potential = Callable[[Tensor], Tensor]


def recorded(potential: Potential, vector: Tensor) -> Potential:
    """A potential with a fast gradient; the one that was given where it cannot be recorded.

    Args:
        potential: From a vector (weight,) to a number, without random numbers.
        vector: A position, to record and to compare at.
    """

    def both(position: Tensor) -> tuple[Tensor, Tensor]:
        position = position.detach().requires_grad_(True)
        value = potential(position)
        (gradient,) = torch.autograd.grad(value, position)
        return value.detach(), gradient

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is told to go, and works
            graph = _compiled(both, vector)
            if not all(_agrees(graph, both, vector + step) for step in (0.0, STEP)):
                return potential
    except Exception:  # a branch on a value, an operation without a graph: it runs as it is
        return potential
    return lambda position: _Recorded.apply(position, graph)


def _compiled(function: Any, vector: Tensor) -> Any:
    graph = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(vector)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    try:
        return torch.jit.freeze(torch.jit.trace(graph.eval(), (vector,), check_trace=False))
    except RuntimeError:  # an operation it does not know, such as the gradient of a convolution
        return graph


def _agrees(graph: Any, function: Any, position: Tensor) -> bool:
    """Whether value and gradient are those of the program, also when they are computed again."""
    for _ in range(3):
        for found, known in zip(graph(position), function(position), strict=True):
            size = float(known.abs().amax())
            if not (size < torch.inf and torch.allclose(found, known, rtol=0, atol=SAME * size)):
                return False
    return True


class _Recorded(torch.autograd.Function):
    """A value whose gradient is known with it."""

    @staticmethod
    def forward(ctx: Any, position: Tensor, graph: Any) -> Tensor:
        value, gradient = graph(position.detach())
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return slopes[0] * gradient, None
