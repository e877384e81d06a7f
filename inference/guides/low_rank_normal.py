"""Low-rank normal guide: weights vary together along a few directions.

    weights  ~  Normal(loc, F F' + diag(softplus(raw_scale)^2))        F of ``rank`` columns

The KL is exact for a prior of independent normals, estimated for any other. One draw per batch.

Reference: Ong, Nott and Smith, "Gaussian variational approximation with a factor covariance
structure", Journal of Computational and Graphical Statistics 27, 2018.
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import register_kl
from torch.nn.functional import softplus

from ppl_med.checks import positive, whole
from ppl_med.inference.guides.weight_guide import WeightGuide, WeightPart, inverse_softplus
from ppl_med.weights import FlatNormal, RandomWeights
from ppl_med.weights.distributions import FlatNormalByGroup, learnt_kl


@register_kl(dist.LowRankMultivariateNormal, FlatNormal)
def _low_rank_normal(q: Any, p: FlatNormal) -> Tensor:
    variance = p.stddev_vector.square()
    ratio = (q.variance + (q.loc - p.loc).square()) / variance - 1 + variance.log()
    log_det = q.cov_diag.log().sum() + 2 * q._capacitance_tril.diagonal().log().sum()
    return 0.5 * (ratio.sum() - log_det)


register_kl(dist.LowRankMultivariateNormal, FlatNormalByGroup)(learnt_kl)


class _LowRankPart(WeightPart):
    spread = ("raw_scale", "factor")

    def __init__(self, weights: RandomWeights, rank: int, init_scale: float) -> None:
        super().__init__(weights)
        start = weights.initial()
        parts = [start.new_full((e.num_weights,), e.fan_in) for e in self.layout.entries]
        scale = init_scale / torch.cat(parts).sqrt()
        self.loc, self.raw_scale = nn.Parameter(start), nn.Parameter(inverse_softplus(scale))
        self.factor = nn.Parameter(torch.randn(len(scale), rank).to(start) * scale[:, None] / rank)

    def center(self) -> Tensor:
        return self.loc

    def forward(self) -> Any:
        variance = softplus(self.raw_scale).square()
        return dist.LowRankMultivariateNormal(self.loc, self.factor, variance)


class LowRankNormal(WeightGuide):
    """A normal over all weights whose covariance is low-rank plus diagonal.

    Args:
        model: A model with ``RandomWeights``.
        rank: Columns of F, each as long as the vector of weights.
        init_scale: Start of the diagonal's standard deviations, in units of 1/sqrt(fan_in).
    """

    def __init__(self, model: Any, rank: int = 4, init_scale: float = 0.05) -> None:
        rank, init_scale = whole("rank", rank), positive("init_scale", init_scale)
        super().__init__(model, lambda found: _LowRankPart(found, rank, init_scale))
