"""Priors over a flat vector of weights, and the closed forms between them and a guide's law.

A prior is a small recipe: ``prior.parameters(layout, flat)`` gives its tensors, which
``RandomWeights`` keeps as buffers, and ``prior.distribution(**tensors)`` the distribution over the
flat vector. Every distribution here factorises over the weights: ``log_density`` is elementwise.

Sources: Normal and scale mixture, Blundell et al., "Weight uncertainty in neural networks", ICML
2015 (the mixture is its equation 7); fan-in scaling, Neal 1996 and He et al. 2015.
"""

import math
from numbers import Real
from typing import TYPE_CHECKING, Literal

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import kl_divergence, register_kl

from ppl_med.normal_kl import normal_kl

if TYPE_CHECKING:
    from ppl_med.weights import Layout

__all__ = [
    "FanInNormal",
    "FlatDistribution",
    "FlatLaplace",
    "FlatNormal",
    "FlatPoint",
    "FlatScaleMixture",
    "Laplace",
    "Normal",
    "Prior",
    "ScaleMixture",
    "kl_divergence",
]
Shape = torch.Size | list[int] | tuple[int, ...]
_LOG_SQRT_TWO_PI = 0.5 * math.log(2 * math.pi)


class FlatDistribution(TorchDistribution):
    """Independent weights: event shape (weights,), elementwise ``log_density``.

    Args:
        num_weights: Length of the flat vector.
    """

    arg_constraints: dict = {}  # noqa: RUF012  torch's protocol
    has_rsample = True
    support = constraints.real_vector

    def __init__(self, num_weights: int) -> None:
        super().__init__(torch.Size(), torch.Size((num_weights,)), validate_args=False)

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

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008
        """``loc + scale * noise``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, device=self.scale.device, dtype=self.scale.dtype)
        return torch.addcmul(self.loc.expand(self.event_shape), self.scale, noise)

    def log_density(self, weights: Tensor) -> Tensor:
        """Log-density of each weight, in nats."""
        standardised = (weights - self.loc) / self.scale
        return -0.5 * standardised.square() - self.scale.log() - _LOG_SQRT_TWO_PI


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

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008
        """Inverse-transform draw."""
        shape = self._extended_shape(torch.Size(sample_shape))
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

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008
        """A draw of component and value."""
        shape = self._extended_shape(torch.Size(sample_shape))
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

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008
        """The vector."""
        return self.value.expand(self._extended_shape(torch.Size(sample_shape)))

    def log_density(self, weights: Tensor) -> Tensor:
        """0 at the vector, by the convention that makes the objective log p(w)."""
        return torch.zeros_like(weights)


@register_kl(FlatNormal, FlatNormal)
def _normal_normal(q: FlatNormal, p: FlatNormal) -> Tensor:
    return normal_kl(q.loc.expand(q.event_shape), q.stddev_vector, p.loc, p.scale)


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


class Prior:
    """A recipe for a distribution over the flat weights of any net."""

    def parameters(self, layout: "Layout", flat: Tensor) -> dict[str, Tensor]:
        """Tensors the distribution needs; kept as buffers, so that they follow ``.to(device)``.

        Args:
            layout: Names, shapes and fan-ins of the weights.
            flat: The net's present weights, dims (weight,).
        """
        raise NotImplementedError

    def distribution(self, num_weights: int, **tensors: Tensor) -> FlatDistribution:
        """The distribution over the flat vector."""
        raise NotImplementedError


def _positive(name: str, value: float) -> float:
    if not (isinstance(value, Real) and math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive finite number, got {value!r}")
    return float(value)


class Normal(Prior):
    """Independent normals of one scale.

    Args:
        scale: Standard deviation.
        loc: Centre: a number, or ``"pretrained"`` for the net's weights as they are when the
            model is built (load a checkpoint into the net first).
    """

    def __init__(self, scale: float = 1.0, loc: float | Literal["pretrained"] = 0.0) -> None:
        self.scale, self.loc = _positive("scale", scale), loc
        if isinstance(loc, str) and loc != "pretrained":
            raise ValueError(f"loc must be a number or 'pretrained', got {loc!r}")

    def parameters(self, layout: "Layout", flat: Tensor) -> dict[str, Tensor]:
        """Location (scalar or vector) and scale (scalar)."""
        loc = flat.clone() if self.loc == "pretrained" else flat.new_tensor(float(self.loc))
        return {"loc": loc, "scale": flat.new_tensor(self.scale)}

    def distribution(self, num_weights: int, **tensors: Tensor) -> FlatNormal:
        """The distribution over the flat vector."""
        return FlatNormal(tensors["loc"], tensors["scale"], num_weights)


class FanInNormal(Prior):
    """Normals with standard deviation ``gain / sqrt(fan_in)`` for weights.

    The output scale of a layer then does not depend on its width (Neal 1996); gain sqrt(2) keeps
    the scale through ReLU layers (He et al. 2015).

    Args:
        gain: Factor over 1/sqrt(fan_in).
        bias_scale: Standard deviation for biases and other vectors.
    """

    def __init__(self, gain: float = math.sqrt(2.0), bias_scale: float = 1.0) -> None:
        self.gain, self.bias_scale = _positive("gain", gain), _positive("bias_scale", bias_scale)

    def parameters(self, layout: "Layout", flat: Tensor) -> dict[str, Tensor]:
        """Location 0 and a scale a weight."""
        scales = [
            flat.new_full(
                (entry.num_weights,),
                self.gain / math.sqrt(entry.fan_in) if len(entry.shape) > 1 else self.bias_scale,
            )
            for entry in layout.entries
        ]
        return {"loc": flat.new_tensor(0.0), "scale": torch.cat(scales)}

    def distribution(self, num_weights: int, **tensors: Tensor) -> FlatNormal:
        """The distribution over the flat vector."""
        return FlatNormal(tensors["loc"], tensors["scale"], num_weights)


class Laplace(Prior):
    """Independent Laplace distributions around 0, which favour sparse weights.

    Args:
        scale: b, the mean absolute value of a weight.
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = _positive("scale", scale)

    def parameters(self, layout: "Layout", flat: Tensor) -> dict[str, Tensor]:
        """Location and scale, scalars."""
        return {"loc": flat.new_tensor(0.0), "scale": flat.new_tensor(self.scale)}

    def distribution(self, num_weights: int, **tensors: Tensor) -> FlatLaplace:
        """The distribution over the flat vector."""
        return FlatLaplace(tensors["loc"], tensors["scale"], num_weights)


class ScaleMixture(Prior):
    """Blundell's mixture of a wide and a narrow normal.

    Args:
        wide: Standard deviation of the wide component.
        narrow: Standard deviation of the narrow component.
        mixing: Probability of the wide component, in (0, 1).
    """

    def __init__(
        self, wide: float = 1.0, narrow: float = math.exp(-6), mixing: float = 0.5
    ) -> None:
        self.wide, self.narrow = _positive("wide", wide), _positive("narrow", narrow)
        if not 0 < mixing < 1:
            raise ValueError(f"mixing must lie strictly between 0 and 1, got {mixing!r}")
        self.mixing = float(mixing)

    def parameters(self, layout: "Layout", flat: Tensor) -> dict[str, Tensor]:
        """The three numbers as tensors."""
        return {name: flat.new_tensor(getattr(self, name)) for name in ("wide", "narrow", "mixing")}

    def distribution(self, num_weights: int, **tensors: Tensor) -> FlatScaleMixture:
        """The distribution over the flat vector."""
        return FlatScaleMixture(tensors["wide"], tensors["narrow"], tensors["mixing"], num_weights)
