"""A low-rank normal law over maps of numbers, out of a network's output.

    value = mean + factor z + variance^(1/2) noise,    z, noise ~ Normal(0, I)

so that the maps are Normal(mean, factor factor' + diag variance): pixels vary together.

Reference: Monteiro et al., "Stochastic segmentation networks", NeurIPS 2020.
"""

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_med.axes import dims

LOG_VARIANCE_RANGE = (-10.0, 10.0)


class LowRankField:
    """The law of the maps of every case of a batch.

    Args:
        output: Dims (case, (2 + rank) * num_maps, *space): first the means of all maps, then their
            log-variances, then the columns of the factor, one after the other.
        rank: Columns of the factor; 0 leaves the numbers independent.
        num_maps: Maps of a case.
        least_variance: Added to the variance of ``noise``.
    """

    def __init__(
        self, output: Tensor, rank: int, num_maps: int, least_variance: float = 0.0
    ) -> None:
        parts = output.view(len(output), 2 + rank, num_maps, *output.shape[2:])
        self.rank = rank
        self.mean, log_variance, self.factor = parts[:, 0], parts[:, 1], parts[:, 2:]
        log_variance = log_variance.clamp(*LOG_VARIANCE_RANGE)
        self.scale = (
            (log_variance.exp() + least_variance).sqrt()
            if least_variance
            else (0.5 * log_variance).exp()
        )

    def draw(self, names: Sequence[str], *, proposed: bool = True) -> Tensor:
        """Sample the sites ``noise`` and ``z``, inside the plate of cases.

        Args:
            names: Of the axes of the maps.
            proposed: Whether a guide must propose the two sites; see ``dims``.

        Returns:
            The maps (..., case, map, *space).
        """
        mean = self.mean
        standard = dist.Normal(torch.zeros_like(mean), mean.new_ones(())).to_event(mean.dim() - 1)
        infer = dims(*names, stored=False, proposed=proposed)
        value: Tensor = self.mean + self.scale * pyro.sample("noise", standard, infer=infer)
        if self.rank:
            zeros = torch.zeros(len(mean), self.rank, device=mean.device)
            infer = dims("latent", proposed=proposed)
            z = pyro.sample("z", dist.Normal(zeros, zeros.new_ones(())).to_event(1), infer=infer)
            flat = torch.einsum("cr...,kcr->kc...", self.factor, z.reshape(-1, *zeros.shape))
            value = value + flat.view(*z.shape[:-1], *flat.shape[2:])
        return value

    def log_prob(self, value: Tensor, seen: Tensor) -> Tensor:
        """Log-density in nats of the entries that were seen, dims (case,); float64 inside.

        Args:
            value: Maps (case, map, *space).
            seen: Which entries count, bool, dims as those of the maps or 1.
        """
        known = seen.expand_as(value).flatten(1)
        away = (value - self.mean).flatten(1).double() * known
        variance = torch.where(known, self.scale.flatten(1).double().square(), 1.0)
        factor = self.factor.flatten(2).mT.double() * known.unsqueeze(-1)
        # An entry that was not seen is a standard normal at 0, apart from the others.
        law = (
            dist.LowRankMultivariateNormal(torch.zeros_like(away), factor, variance)
            if self.rank
            else dist.Normal(0.0, variance.sqrt()).to_event(1)
        )
        density: Tensor = law.log_prob(away) + 0.5 * math.log(2 * math.pi) * (~known).sum(1)
        return density.to(value)
