"""A likelihood of numbers by several of their quantiles, and its distribution."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_med.checks import positive, reject
from ppl_med.likelihoods.number_units import NumberLikelihood, Numbers
from ppl_med.likelihoods.stored import Parameters, in_double, stored_parameters


class QuantileDistribution(TorchDistribution):
    """A distribution known by some of its quantiles; its density is composite, see ``Quantiles``.

    Args:
        quantiles: Rising, dims (..., level).
        scale: Scale of the asymmetric Laplace distributions, dims (...).
        levels: Probabilities, dims (level,).
    """

    arg_constraints = {"quantiles": constraints.real_vector, "scale": constraints.positive}  # noqa: RUF012
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


class Quantiles(NumberLikelihood):
    """Several quantiles at once, which never cross.

    The network gives the lowest one and, through a softplus, the distances to the next ones. What
    is trained is the mean over levels of asymmetric Laplace log-densities, that is the pinball loss
    over a learned scale (Yu and Moyeed, Statistics and Probability Letters 2001). For one level it
    is a density of the value; for several it is a composite one, whose weight against a prior is
    that of one observation but whose ELBO is no evidence bound. ``predict`` stores ``quantile``
    (…, level) and draws from the piecewise linear distribution through the quantiles.

    Args:
        levels: Probabilities of the quantiles, rising, inside (0, 1).
        event: Names of the axes after the case.
        site: Name of the observed site.
        init_scale: Where the learned scale starts, in units of ``scale``.
        loc, scale, findings: As in ``LaplaceNoise``.
    """

    levels: Tensor

    def __init__(
        self,
        levels: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
        event: Sequence[str] = (),
        *,
        site: str = "value",
        init_scale: float = 1.0,
        loc: Numbers | None = None,
        scale: Numbers | None = None,
        findings: Sequence[str] | None = None,
    ) -> None:
        super().__init__(event, site, False, loc, scale, findings)
        rising = all(a < b for a, b in itertools.pairwise(levels))
        if not levels or not rising or not (0 < levels[0] and levels[-1] < 1):
            reject("levels", "rising inside (0, 1)", tuple(levels))
        positive("init_scale", init_scale)
        if len(levels) > 1:
            self.training_loss = f"mean pinball loss of {len(levels)} quantiles"
        self.probabilities = tuple(map(float, levels))
        self.register_buffer("levels", torch.tensor(self.probabilities, dtype=torch.float64))
        self.init_scale = init_scale
        self.log_scale = nn.Parameter(torch.full(self.loc.shape, math.log(init_scale)))

    def reset_parameters(self) -> None:
        """Reset the scale to its initial value."""
        nn.init.constant_(self.log_scale, math.log(self.init_scale))

    @property
    def num_outputs(self) -> int:
        """Channels that the network must have: one per level, and of several findings of each.

        Of several findings, all of the lowest level first.
        """
        return len(self.probabilities) * max(1, len(self.findings))

    @property
    def coords(self) -> dict[str, list[Any]]:
        """The levels, and the names of the findings."""
        return {"level": list(self.probabilities), **super().coords}

    def distribution(self, output: Tensor) -> Any:
        """Of the lowest quantile and raw distances to the next."""
        quantiles = self._quantiles(output)
        scale = self.log_scale.to(output).exp() * self.unit(output)[1]
        levels = self.levels.to(output)
        return QuantileDistribution(quantiles, scale.expand(quantiles.shape[:-1]), levels)

    def prediction(self, output: Tensor) -> Tensor:
        """The quantiles, dims (case, level, *event), in the unit of the values."""
        return self._quantiles(output).movedim(-1, 1)

    def _quantiles(self, output: Tensor) -> Tensor:
        raw = torch.stack(self.by_output(output), -1)
        numbers = torch.cat([raw[..., :1], softplus(raw[..., 1:])], -1).cumsum(-1)
        loc, scale = self.unit(output, extra=1)
        return loc + scale * numbers
