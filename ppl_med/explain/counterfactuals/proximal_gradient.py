"""Sparse additive maps by the proximal gradient method.

    min over a of  M(a) + penalty * ‖a‖₁     subject to    low <= a <= high,   low <= 0 <= high

The proximal step of penalty and box is a soft threshold that is then clamped, exactly. Steps are
found by backtracking, so no Lipschitz constant is needed; momentum starts again where the objective
has risen. A convex M is minimised; otherwise a stationary point is found.

References: Beck and Teboulle, "A fast iterative shrinkage-thresholding algorithm", SIAM Journal on
Imaging Sciences 2, 2009; O'Donoghue and Candès, "Adaptive restart for accelerated gradient
schemes", Foundations of Computational Mathematics 15, 2015.
"""

import torch
from torch import Tensor

from ppl_med.explain.counterfactuals.tangent_search import Smooth
from ppl_med.explain.function_checks import per_case

BACKTRACKING = 30


def soft_threshold(values: Tensor, width: Tensor | float) -> Tensor:
    """``sign(v) max(|v| - width, 0)``."""
    return values.sign() * (values.abs() - width).clamp(min=0)


def sparse_map(
    smooth: Smooth, start: Tensor, penalty: Tensor, *, low: Tensor, high: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Minimise a smooth function of maps (case, ...) plus the L1 norm, case by case.

    The penalty (case,) is in units of M over units of the map, 0 or more; ``low`` and ``high`` may
    be infinite, with 0 between them.

    Returns:
        The maps, and how far each is from stationary, dims (case,): the largest entry of the last
        map's proximal gradient, in the penalty's unit; 0 at the optimum.
    """
    width = per_case(penalty, start)
    curvature = torch.ones(len(start)).to(start)
    current = momentum = start
    time = torch.ones(len(start)).to(start)
    objective = smooth.value(start).to(start) + _l1(start, penalty)

    def proximal(point: Tensor, slope: Tensor, curved: Tensor) -> Tensor:
        curved = per_case(curved, start)
        return soft_threshold(point - slope / curved, width / curved).clamp(low, high)

    for _ in range(steps):
        value, slope = smooth.value_and_slope(momentum)
        for _ in range(BACKTRACKING):
            proposal = proximal(momentum, slope, curvature)
            move = proposal - momentum
            linear = (slope * move).flatten(1).sum(1)
            bound = value.to(start) + linear + curvature / 2 * move.flatten(1).square().sum(1)
            reached = smooth.value(proposal).to(start)
            steep = reached > bound + 1e-6 * (1 + bound.abs())
            if not bool(steep.any()):
                break
            curvature = torch.where(steep, 2 * curvature, curvature)
        found = reached + _l1(proposal, penalty)
        restart = found > objective
        proposal = torch.where(per_case(restart, start), current, proposal)
        objective = torch.where(restart, objective, found)
        later = (1 + (1 + 4 * time.square()).sqrt()) / 2
        carried = torch.where(restart, 0.0, (time - 1) / later)
        momentum = proposal + per_case(carried, start) * (proposal - current)
        current, time = proposal, torch.where(restart, 1.0, later)
        curvature = curvature * 0.9
    _, slope = smooth.value_and_slope(current)
    residual = current - proximal(current, slope, curvature)
    return current, curvature * residual.abs().flatten(1).amax(1)


def _l1(values: Tensor, penalty: Tensor) -> Tensor:
    return penalty * values.abs().flatten(1).sum(1)
