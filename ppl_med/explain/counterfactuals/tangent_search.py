"""The nearest point at which a function reaches a wanted value.

    min ‖v - v0‖₂    subject to    g(v) >= wanted,    low <= v <= high

Every step replaces g by its tangent and solves that problem exactly, so a linear g is solved at
once. The found point is then drawn back towards v0 as far as g allows.

References: Hasofer and Lind, Journal of the Engineering Mechanics Division 100, 1974, and Rackwitz
and Fiessler, Computers and Structures 9, 1978 (the iteration, for the most probable point of
failure); Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool", CVPR 2016 (the same for images, without
its return to v0).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_med.explain.function_checks import per_case

BISECTIONS = 60
SLACK = 1e-4


@dataclass(frozen=True)
class Smooth:
    """A differentiable function from points (case, ...) to (case,), and with its gradient."""

    value: Callable[[Tensor], Tensor]
    value_and_slope: Callable[[Tensor], tuple[Tensor, Tensor]]


def nearest_point(
    constraint: Smooth,
    start: Tensor,
    wanted: float,
    *,
    low: Tensor,
    high: Tensor,
    stride: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Search along tangents for the nearest point at which the constraint reaches a wanted value.

    Points have dims (case, ...); ``low`` and ``high`` may be infinite. ``stride`` is the longest
    step of each case, dims (case,), in units of the points; ``steps`` their largest number.

    Returns:
        The nearest point found at which g is as wanted or more, up to 1e-4, and whether there is
        one, dims (case,); where there is none, the last point.
    """
    point, best = start.clone(), start.clone()
    distance = start.new_full((len(start),), math.inf)
    for step in range(steps + 1):
        value, slope = constraint.value_and_slope(point)
        reached = value >= wanted - SLACK
        away = _norm(point - start)
        better = reached & (away < distance)
        best = torch.where(per_case(better, point), point, best)
        distance = torch.where(better, away, distance)
        if step == steps:
            break
        # Where several parts must change together, tangents from the start see one at a time and
        # take turns: then steps add up until g is reached once.
        stuck = distance.isinf() & (step >= steps // 4)
        origin = torch.where(per_case(stuck, point), point, start)
        needed = wanted - value.to(slope) + _dot(slope, point - origin)
        move = _onto_tangent(origin, slope, needed, low, high) - point
        shrink = (stride / _norm(move).clamp(min=1e-30)).clamp(max=1.0)
        if step >= steps // 2:  # tangents of a kinked function may take turns
            shrink = torch.where(stuck, shrink, shrink / 2)
        point = point + per_case(shrink, move) * move
    reached = distance.isfinite()
    best = torch.where(per_case(reached, best), best, point)
    return _drawn_back(constraint, start, best, reached, wanted), reached


def _onto_tangent(
    start: Tensor, slope: Tensor, needed: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """The point of the box nearest to ``start`` whose shift along the slope is ``needed``."""
    squared = _dot(slope, slope).clamp(min=1e-30)
    length = (needed / squared).clamp(min=0)
    if not bool(low.isfinite().any() | high.isfinite().any()):
        return start + per_case(length, slope) * slope

    def at(multiplier: Tensor) -> Tensor:
        return (start + per_case(multiplier, slope) * slope).clamp(low, high)

    # Clamping slows the shift, which grows with the multiplier: bracket, then bisect.
    below, above = torch.zeros_like(length), length
    for _ in range(BISECTIONS):
        short = _dot(slope, at(above) - start) < needed
        above = torch.where(short, 2 * above, above)
    for _ in range(BISECTIONS):
        middle = (below + above) / 2
        short = _dot(slope, at(middle) - start) < needed
        below, above = torch.where(short, middle, below), torch.where(short, above, middle)
    return at(above)


def _drawn_back(
    constraint: Smooth, start: Tensor, found: Tensor, reached: Tensor, wanted: float
) -> Tensor:
    """Bisect between start and found for the least share of the way that still reaches g."""
    below, above = torch.zeros(len(start)).to(start), torch.ones(len(start)).to(start)
    for _ in range(10):
        middle = (below + above) / 2
        value = constraint.value(start + per_case(middle, start) * (found - start))
        enough = value >= wanted - SLACK
        below, above = torch.where(enough, below, middle), torch.where(enough, middle, above)
    share = torch.where(reached, above, 1.0)
    return start + per_case(share, start) * (found - start)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).flatten(1).sum(1)


def _norm(values: Tensor) -> Tensor:
    return values.flatten(1).norm(dim=1)
