"""Distributions of numbers that Pyro lacks: with missing entries, or weighted."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_med.likelihoods.stored import in_double
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


class BetaNormal(PartialNormal):
    """The beta-NLL of Seitzer et al. (ICLR 2022, eq. 5) in a normal's place; no density.

    Args:
        loc: Mean.
        scale: Standard deviation.
        beta: Exponent of the fixed weight ``(scale / unit)^(2 beta)``.
        unit: What the scale is relative to, dims that broadcast to those of ``scale``.
    """

    def __init__(self, loc: Tensor, scale: Tensor, beta: float, unit: Tensor | float = 1.0) -> None:
        super().__init__(loc, scale)
        self.beta, self.unit = beta, unit

    def expand(self, batch_shape: Any, _instance: Any = None) -> "BetaNormal":
        """The same with more batch dims."""
        shape = torch.Size(batch_shape)
        return BetaNormal(self.loc.expand(shape), self.scale.expand(shape), self.beta, self.unit)

    def log_prob(self, value: Tensor) -> Tensor:
        """Weighted log-density in nats; 0 where the value is NaN."""
        weight = (self.scale.detach() / self.unit) ** (2 * self.beta)
        return weight * super().log_prob(value)


@in_double.register(BetaNormal)
def _(fn: BetaNormal) -> BetaNormal:
    return BetaNormal(fn.loc.double(), fn.scale.double(), fn.beta, fn.unit)


__getattr__ = renamed(
    __name__, {"QuantileLaw": "ppl_med.likelihoods.quantiles.QuantileDistribution"}
)
