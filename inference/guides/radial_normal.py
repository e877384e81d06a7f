"""Radial normal guide: the direction of the noise is uniform, its length is |Normal(0, 1)|.

    w  =  loc + scale * e / |e| * r        e ~ Normal(0, I),  r ~ Normal(0, 1)

for every parameter tensor of D weights on its own. Draws of independent normals stand on a thin
shell, sqrt(D) standard deviations off the mean; these are mostly near it, which lowers the variance
of gradients. A weight's standard deviation is scale / sqrt(D).

The noise u = e r / |e| has the density 2 phi(|u|) / (A_D |u|^(D-1)), A_D = 2 pi^(D/2) / Gamma(D/2)
the area of the unit sphere. Its entropy, which the paper leaves out as a constant, is

    H[u] = 1/2 log(pi / 2) + 1/2 + log A_D - (D - 1) (gamma + log 2) / 2        nats

with Euler's gamma. So the KL to a prior of independent normals is exact; to any other prior it is
estimated. One draw per batch.

Reference: Farquhar, Osborne and Gal, "Radial Bayesian neural networks", AISTATS 2020, eq. 5 and 7.
"""

import math
from typing import Any

import numpy as np
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.distributions import register_kl
from torch.nn.functional import softplus

from ppl_med.checks import positive
from ppl_med.inference.guides.weight_guide import WeightGuide, WeightPart, inverse_softplus
from ppl_med.weights import FlatNormal, RandomWeights
from ppl_med.weights.distributions import FlatNormalByGroup, Shape, learnt_kl


class FlatRadial(TorchDistribution):
    """Radial noise of every parameter tensor in a flat vector of weights.

    Args:
        loc: Mean, dims (weight,).
        scale: Factor on the noise of each weight, dims (weight,).
        sizes: Weights of every tensor, in order.
    """

    arg_constraints: dict = {}  # noqa: RUF012  torch's protocol
    has_rsample = True
    support = constraints.real_vector

    def __init__(self, loc: Tensor, scale: Tensor, sizes: list[int]) -> None:
        super().__init__(torch.Size(), loc.shape, validate_args=False)
        self.loc, self.scale, self.sizes = loc, scale, sizes

    @property
    def variance(self) -> Tensor:
        """Variance of every weight: scale^2 / D."""
        parts = [part.square() / len(part) for part in self.scale.split(self.sizes)]
        return torch.cat(parts)

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008
        """Draws that pass gradients."""
        shape = torch.Size(sample_shape)
        device = self.loc.device
        normals = torch.randn(shape + self.event_shape, device=device).to(self.loc)
        noise = []
        for part in normals.split(self.sizes, dim=-1):
            radius = torch.randn((*shape, 1), device=device).to(self.loc)
            noise.append(part / part.norm(dim=-1, keepdim=True) * radius)
        return self.loc + self.scale * torch.cat(noise, dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of the vector, in nats."""
        found = -self.scale.log().sum() - 0.5 * math.log(math.pi / 2) * len(self.sizes)
        for part in ((value - self.loc) / self.scale).split(self.sizes, dim=-1):
            radius, size = part.norm(dim=-1), part.shape[-1]
            found = found - 0.5 * radius.square() - (size - 1) * radius.log() - _log_area(size)
        return found

    def entropy(self) -> Tensor:
        """Differential entropy, in nats."""
        mean_log_radius = -0.5 * (np.euler_gamma + math.log(2))
        constants = (
            0.5 * math.log(math.pi / 2) + 0.5 + _log_area(size) + (size - 1) * mean_log_radius
            for size in self.sizes
        )
        return self.scale.log().sum() + math.fsum(constants)


def _log_area(size: int) -> float:
    """Log of the area of the unit sphere in as many dimensions."""
    return math.log(2) + 0.5 * size * math.log(math.pi) - math.lgamma(0.5 * size)


@register_kl(FlatRadial, FlatNormal)
def _radial_normal(q: FlatRadial, p: FlatNormal) -> Tensor:
    """The cross-entropy to a normal needs two moments alone."""
    spread = 0.5 * (q.variance / p.stddev_vector.square()).sum()
    return spread - p.log_prob(q.loc) - q.entropy()


register_kl(FlatRadial, FlatNormalByGroup)(learnt_kl)


class _RadialPart(WeightPart):
    spread = ("raw_scale",)

    def __init__(self, weights: RandomWeights, init_scale: float) -> None:
        super().__init__(weights)
        start = weights.initial()
        scales = [
            start.new_full((e.num_weights,), init_scale * math.sqrt(e.num_weights / e.fan_in))
            for e in self.layout.entries
        ]
        self.loc, self.raw_scale = (
            nn.Parameter(start),
            nn.Parameter(inverse_softplus(torch.cat(scales))),
        )

    def center(self) -> Tensor:
        return self.loc

    def forward(self) -> FlatRadial:
        return FlatRadial(self.loc, softplus(self.raw_scale), self.layout.sizes)


class RadialNormal(WeightGuide):
    """Radial noise around a location, of every parameter tensor on its own.

    Args:
        model: A model with ``RandomWeights``.
        init_scale: Start of every weight's standard deviation, in units of 1/sqrt(fan_in).
    """

    def __init__(self, model: Any, init_scale: float = 0.05) -> None:
        init_scale = positive("init_scale", init_scale)
        super().__init__(model, lambda found: _RadialPart(found, init_scale))
