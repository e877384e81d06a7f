"""Distributions of numbers that Pyro lacks: with missing entries, weighted, by their quantiles."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from ppl_med.likelihoods.stored import Parameters, in_double, stored_parameters
from ppl_med.moved import renamed


class _Partial:
    """A distribution whose value NaN means "not observed" and has log-density 0."""

    loc: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats."""
        missing = value.isnan()
        # NaN must not enter: its gradient would be NaN even where it is masked.
        filled = torch.where(missing, self.loc.detach().to(value), value)
        found: Tensor = super().log_prob(filled)  # type: ignore[misc]
        return torch.where(missing, torch.zeros_like(found), found)


class PartialNormal(_Partial, dist.Normal):
    """Normal whose value NaN means "not observed" and has log-density 0."""


class PartialLaplace(_Partial, dist.Laplace):
    """Laplace whose value NaN means "not observed" and has log-density 0."""


class PartialStudentT(_Partial, dist.StudentT):
    """Student's t whose value NaN means "not observed" and has log-density 0."""


class BetaNormal(TorchDistribution):
    """The beta-NLL of Seitzer et al. (ICLR 2022, eq. 5) in a normal's place; no density.

    Args:
        loc: Mean.
        scale: Standard deviation.
        beta: Exponent of the fixed weight ``scale^(2 beta)``.
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real,
        "scale": constraints.positive,
    }
    support = constraints.real
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, beta: float) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.beta = beta
        super().__init__(self.loc.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "BetaNormal":
        """The same with more batch dims."""
        shape = torch.Size(batch_shape)
        return BetaNormal(self.loc.expand(shape), self.scale.expand(shape), self.beta)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # type: ignore[override]  # noqa: B008
        """Draws of the normal."""
        return dist.Normal(self.loc, self.scale).rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Weighted log-density in nats; 0 where the value is NaN."""
        weight = self.scale.detach() ** (2 * self.beta)
        return weight * PartialNormal(self.loc, self.scale).log_prob(value)


class QuantileDistribution(TorchDistribution):
    """A distribution known by some of its quantiles; its density is composite, see ``Quantiles``.

    Args:
        quantiles: Rising, dims (..., level).
        scale: Of the asymmetric Laplace, dims (...).
        levels: Probabilities, dims (level,).
    """

    arg_constraints = {  # noqa: RUF012
        "quantiles": constraints.real_vector,
        "scale": constraints.positive,
    }
    support = constraints.real
    has_rsample = True

    def __init__(self, quantiles: Tensor, scale: Tensor, levels: Tensor) -> None:
        self.quantiles, self.scale, self.levels = quantiles, scale, levels
        super().__init__(scale.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "QuantileDistribution":
        """The same with more batch dims."""
        shape = torch.Size(batch_shape)
        quantiles = self.quantiles.expand(*shape, self.quantiles.shape[-1])
        return QuantileDistribution(quantiles, self.scale.expand(shape), self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """Mean over levels of asymmetric Laplace log-densities, in nats."""
        error = (value.unsqueeze(-1) - self.quantiles) / self.scale.unsqueeze(-1)
        pinball = torch.maximum(self.levels * error, (self.levels - 1) * error)
        normalised = torch.log(self.levels * (1 - self.levels)) - pinball
        return normalised.mean(-1) - self.scale.log()

    def icdf(self, value: Tensor) -> Tensor:
        """Quantile at a probability: linear between the known ones.

        Beyond them, each tail is exponential and leaves with the slope of its first piece.
        """
        levels, quantiles = self.levels, self.quantiles
        if len(levels) == 1:
            ones = torch.ones_like(quantiles)
            low_slope = high_slope = ones[..., 0] * self.scale / (levels * (1 - levels))
        else:
            slopes = quantiles.diff(dim=-1) / levels.diff()
            low_slope, high_slope = slopes[..., 0], slopes[..., -1]
        shape = torch.broadcast_shapes(value.shape, self.scale.shape)
        u = value.expand(shape)
        index = torch.searchsorted(levels, u.contiguous()).clamp(1, max(len(levels) - 1, 1))
        wide = quantiles.expand(*shape, len(levels))
        upper = index.clamp(max=len(levels) - 1)
        left, right = levels[index - 1], levels[upper]
        share = (u - left) / (right - left).clamp(min=torch.finfo(u.dtype).tiny)
        at_left = wide.gather(-1, (index - 1).unsqueeze(-1)).squeeze(-1)
        at_right = wide.gather(-1, upper.unsqueeze(-1)).squeeze(-1)
        inner = at_left + share * (at_right - at_left)
        low, high = levels[0], levels[-1]
        below = wide[..., 0] + low_slope * low * torch.log((u / low).clamp(min=1e-300))
        above = wide[..., -1] - high_slope * (1 - high) * torch.log(
            ((1 - u) / (1 - high)).clamp(min=1e-300)
        )
        return torch.where(u < low, below, torch.where(u > high, above, inner))

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # type: ignore[override]  # noqa: B008
        """Draws by inverse transform."""
        shape = self._extended_shape(sample_shape)
        return self.icdf(torch.rand(shape, dtype=self.quantiles.dtype, device=self.scale.device))


@in_double.register(QuantileDistribution)
def _(fn: QuantileDistribution) -> QuantileDistribution:
    return QuantileDistribution(fn.quantiles.double(), fn.scale.double(), fn.levels.double())


@stored_parameters.register(QuantileDistribution)
def _(fn: QuantileDistribution, names: Sequence[str]) -> Parameters:
    return {"quantile": ([*names, "level"], fn.quantiles)}


__getattr__ = renamed(__name__, {"QuantileLaw": "QuantileDistribution"})
