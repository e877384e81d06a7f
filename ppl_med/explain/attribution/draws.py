"""Function draws as scores with gradients, one draw or several at once.

Everything a method of the gradient family asks of the posterior is here: the explained number and
its gradient at some points, with the draws of the group along the first axis.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
ScoreOf = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class DrawGroup(Protocol):
    """Some draws that are visited together.

    Attributes:
        num_draws: How many.
    """

    num_draws: int

    def value(self, points: Tensor, rows: Tensor) -> Tensor:
        """Explained number at points (point, channel, ...) of the cases ``rows``: (draw, point)."""
        ...

    def gradient(self, points: Tensor, rows: Tensor) -> Tensor:
        """Its gradient in the points, (draw, point, channel, ...)."""
        ...


class Draw:
    """One function draw and the number of it that is explained.

    Args:
        function: Image (case, channel, ...) to output (case, class, ...).
        score: From an output and the cases it belongs to, one number per case.
    """

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


def in_batches(
    call: Callable[[Tensor, Tensor], Tensor], points: Tensor, rows: Tensor, batch_size: int
) -> Tensor:
    """Apply a method of a group to points in batches; joined along the axis of points."""
    parts = zip(points.split(batch_size), rows.split(batch_size), strict=True)
    return torch.cat([call(*part) for part in parts], 1)
