"""Distributions over a flat vector of weights, and the closed forms between them.

Every distribution factorises over the weights: ``log_density`` is elementwise.

    KL(q || p) = sum_i [ (s_i^2 + (m_i - l_i)^2) / (2 t_i^2) - log(s_i / t_i) - 1/2 ]        nats

for q = Normal(m, s^2) and p = Normal(l, t^2). Written as a chain of torch operations, every one of
them and every gradient would stream a vector of millions of weights through memory; on the CPU that
is most of a mean-field step. ``normal_kl`` walks through the vector in blocks that stay in the
cache.
"""

import math
from typing import Any, NoReturn

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import kl_divergence, register_kl

Shape = torch.Size | list[int] | tuple[int, ...]
_LOG_SQRT_TWO_PI = 0.5 * math.log(2 * math.pi)
BLOCK = 2**18  # numbers; 1 MiB of float32


class FlatDistribution(TorchDistribution):
    """Independent weights: event shape (weights,), elementwise ``log_density``."""

    arg_constraints: dict = {}  # noqa: RUF012  torch's protocol
    has_rsample = True
    support = constraints.real_vector

    def __init__(self, num_weights: int) -> None:
        super().__init__(torch.Size(), torch.Size((num_weights,)), validate_args=False)

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008
        """Draws that pass gradients."""
        return self._draw(self._extended_shape(torch.Size(sample_shape)))

    def _draw(self, shape: torch.Size) -> Tensor:
        raise NotImplementedError

    def log_density(self, weights: Tensor) -> Tensor:
        """Log-density of each weight, in nats."""
        raise NotImplementedError

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of the vector, in nats."""
        return self.log_density(value).sum(-1)


class FlatNormal(FlatDistribution):
    """Independent normals.

    Args:
        loc: Location; a vector, or a scalar that holds for all.
        scale: Standard deviation, likewise.
        num_weights: Length of the vector where both are scalars.
    """

    def __init__(self, loc: Tensor, scale: Tensor, num_weights: int | None = None) -> None:
        super().__init__(num_weights or max(loc.numel(), scale.numel()))
        self.loc, self.scale = loc, scale

    @property
    def stddev_vector(self) -> Tensor:
        """Standard deviation of every weight."""
        return self.scale.expand(self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of every weight."""
        return self.stddev_vector.square()

    def _draw(self, shape: torch.Size) -> Tensor:
        noise = torch.randn(shape, device=self.scale.device, dtype=self.scale.dtype)
        return torch.addcmul(self.loc.expand(self.event_shape), self.scale, noise)

    def log_density(self, weights: Tensor) -> Tensor:
        """Log-density of each weight, in nats."""
        standardised = (weights - self.loc) / self.scale
        return -0.5 * standardised.square() - self.scale.log() - _LOG_SQRT_TWO_PI


class FlatNormalByGroup(FlatNormal):
    """Normals whose scales are learnt, one factor a group of weights.

    A divergence to it first puts the factors to where it is lowest, while gradients are taken.

    Args:
        loc: Centre; a vector, or a scalar that holds for all.
        log_factor: Logarithm of each group's factor, dims (group,); changed in place.
        counts: Weights of each group, dims (group,).
        group: Of each weight its group, dims (weight,).
        start: Of each weight its standard deviation at factor 1, dims (weight,).
        num_weights: Length of the vector.
    """

    def __init__(
        self,
        loc: Tensor,
        log_factor: Tensor,
        counts: Tensor,
        group: Tensor,
        start: Tensor,
        num_weights: int | None = None,
    ) -> None:
        super().__init__(loc, log_factor.exp()[group] * start, num_weights)
        self.log_factor, self.counts = log_factor, counts
        self.group, self.start = group, start

    @torch.no_grad()
    def learn(self, loc: Tensor, variance: Tensor) -> None:
        """Take the factors at which the KL from a distribution of these two moments is lowest."""
        square = ((loc - self.loc).square() + variance) / self.start.square()
        total = square.new_zeros(len(self.counts)).index_add(0, self.group, square)
        self.log_factor.copy_(0.5 * (total / self.counts).log())
        self.scale = self.log_factor.exp()[self.group] * self.start


class FlatLaplace(FlatDistribution):
    """Independent Laplace distributions.

    Args:
        loc: Location, scalar.
        scale: b, mean absolute deviation, scalar or vector.
        num_weights: Length of the vector.
    """

    def __init__(self, loc: Tensor, scale: Tensor, num_weights: int) -> None:
        super().__init__(num_weights)
        self.loc, self.scale = loc, scale

    def _draw(self, shape: torch.Size) -> Tensor:
        """By inverse transform."""
        tiny = torch.finfo(self.scale.dtype).tiny
        u = torch.rand(shape, device=self.scale.device, dtype=self.scale.dtype) * 2 - 1
        return self.loc - self.scale * u.sign() * torch.log1p(-u.abs().clamp(max=1 - 1e-7) + tiny)

    def log_density(self, weights: Tensor) -> Tensor:
        """Log-density of each weight, in nats."""
        return -(weights - self.loc).abs() / self.scale - (2 * self.scale).log()


class FlatScaleMixture(FlatDistribution):
    """Two zero-mean normals, a wide and a narrow one.

    Args:
        wide: Standard deviation of the first, scalar.
        narrow: Standard deviation of the second, scalar.
        mixing: Probability of the first.
        num_weights: Length of the vector.
    """

    def __init__(self, wide: Tensor, narrow: Tensor, mixing: Tensor, num_weights: int) -> None:
        super().__init__(num_weights)
        self.wide, self.narrow, self.mixing = wide, narrow, mixing

    def _draw(self, shape: torch.Size) -> Tensor:
        first = torch.rand(shape, device=self.wide.device) < self.mixing
        scale = torch.where(first, self.wide, self.narrow)
        return scale * torch.randn(shape, device=self.wide.device, dtype=self.wide.dtype)

    def log_density(self, weights: Tensor) -> Tensor:
        """Log-density of each weight, in nats."""
        wide = -0.5 * (weights / self.wide).square() - self.wide.log() + self.mixing.log()
        narrow = -0.5 * (weights / self.narrow).square() - self.narrow.log()
        return torch.logaddexp(wide, narrow + torch.log1p(-self.mixing)) - _LOG_SQRT_TWO_PI


class FlatPoint(FlatDistribution):
    """All mass on one vector; what a point estimate proposes.

    Args:
        value: The vector.
        use_prior: True for maximum a posteriori (the prior is the penalty), False for maximum
            likelihood (no penalty).
    """

    def __init__(self, value: Tensor, *, use_prior: bool) -> None:
        super().__init__(value.numel())
        self.value, self.use_prior = value, use_prior

    def _draw(self, shape: torch.Size) -> Tensor:
        return self.value.expand(shape)

    def log_density(self, weights: Tensor) -> Tensor:
        """0 at the vector, by the convention that makes the objective log p(w)."""
        return torch.zeros_like(weights)


class _NormalKL(torch.autograd.Function):
    """Differentiable, twice too, in the location and scale of q."""

    @staticmethod
    def forward(loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> Tensor:
        vectors = (loc, scale, prior_loc, prior_scale)
        terms = []
        for m, s, prior_m, prior_s in zip(*_blocks(*vectors), strict=True):
            ratio = s / prior_s
            logarithm = ratio.log()
            shift = (m - prior_m).div_(prior_s)
            terms.append((ratio.square_().addcmul_(shift, shift).mul_(0.5).sub_(logarithm)).sum())
        return torch.stack(terms).sum() - 0.5 * len(loc)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        if torch.is_grad_enabled():
            return (*_gradients(gradient, *ctx.saved_tensors), None, None)
        loc, scale = ctx.saved_tensors[:2]
        by_loc, by_scale = torch.empty_like(loc), torch.empty_like(scale)
        blocks = _blocks(loc, scale, *ctx.saved_tensors[2:], by_loc, by_scale)
        for m, s, prior_m, prior_s, to_loc, to_scale in zip(*blocks, strict=True):
            precision = gradient / prior_s.square()
            torch.sub(m, prior_m, out=to_loc).mul_(precision)
            torch.mul(s, precision, out=to_scale).sub_(gradient / s)
        return by_loc, by_scale, None, None


def _gradients(
    gradient: Tensor, loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor
) -> tuple[Tensor, Tensor]:
    precision = gradient / prior_scale.square()
    return (loc - prior_loc) * precision, scale * precision - gradient / scale


def _blocks(*vectors: Tensor) -> list[tuple[Tensor, ...]]:
    """Pieces of each vector; a number is repeated. One piece where there is no cache to stay in."""
    size = max(len(vector) for vector in vectors if vector.dim())
    block = BLOCK if vectors[0].device.type == "cpu" else size
    count = -(-size // block)
    return [v.split(block) if v.dim() else (v,) * count for v in vectors]


def normal_kl(loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> Tensor:
    """KL(Normal(loc, scale) || Normal(prior_loc, prior_scale)) summed over weights, in nats.

    Location and scale of q have dims (weight,), those of the prior (weight,) or ().
    """
    if torch.is_grad_enabled() and (prior_loc.requires_grad or prior_scale.requires_grad):
        ratio, shift = scale / prior_scale, (loc - prior_loc) / prior_scale
        return (0.5 * (ratio.square() + shift.square()) - ratio.log()).sum() - 0.5 * len(ratio)
    return _NormalKL.apply(loc, scale, prior_loc, prior_scale)


@register_kl(FlatNormal, FlatNormal)
def _normal_normal(q: FlatNormal, p: FlatNormal) -> Tensor:
    return normal_kl(q.loc.expand(q.event_shape), q.stddev_vector, p.loc, p.scale)


def learnt_kl(q: Any, p: FlatNormalByGroup) -> Tensor:
    """KL at the scales that make it lowest, for guides whose KL to a normal needs two moments.

    The scales' own gradient is 0 there, so that of the guide is the whole.
    """
    if torch.is_grad_enabled():
        p.learn(q.loc.detach(), q.variance.detach())
    return kl_divergence(q, FlatNormal(p.loc, p.scale, p.event_shape[0]))


register_kl(FlatNormal, FlatNormalByGroup)(learnt_kl)


@register_kl(FlatDistribution, FlatNormalByGroup)
def _any_learnt(q: FlatDistribution, p: FlatNormalByGroup) -> NoReturn:
    raise ValueError(
        f"prior=LearntNormal learns its scales from the guide's two moments, and "
        f"{type(q).__name__} has none; use MeanFieldNormal, LowRankNormal or RadialNormal, or a "
        "prior of fixed scale"
    )


@register_kl(FlatNormal, FlatLaplace)
def _normal_laplace(q: FlatNormal, p: FlatLaplace) -> Tensor:
    """E|w - m| is the mean of a folded normal (Leone et al., Technometrics 1961)."""
    scale, shift = q.stddev_vector, q.loc - p.loc
    standardised = shift / scale
    folded = scale * math.sqrt(2 / math.pi) * torch.exp(-0.5 * standardised.square())
    folded = folded + shift * torch.erf(standardised / math.sqrt(2))
    entropy = 0.5 + _LOG_SQRT_TWO_PI + scale.log()
    return ((2 * p.scale).log() + folded / p.scale - entropy).sum()


@register_kl(FlatPoint, FlatDistribution)
def _point_any(q: FlatPoint, p: FlatDistribution) -> Tensor:
    """-log p(w): the penalty of maximum a posteriori; 0 for maximum likelihood."""
    return -p.log_prob(q.value) if q.use_prior else q.value.new_zeros(())


@register_kl(FlatPoint, FlatNormalByGroup)
def _point_learnt(q: FlatPoint, p: FlatNormalByGroup) -> Tensor:
    if q.use_prior:
        refuse_atoms()
    return q.value.new_zeros(())


def refuse_atoms() -> NoReturn:
    """Raise for a guide with atoms under scales that are learnt: its objective is unbounded."""
    raise ValueError(
        "prior=LearntNormal has no optimum under a guide with atoms, such as a point or dropout: "
        "all weights at 0 under a scale of 0 have an infinite density; use a guide with a density, "
        "such as MeanFieldNormal, PointEstimate(model, use_prior=False), or a prior of fixed scale"
    )
