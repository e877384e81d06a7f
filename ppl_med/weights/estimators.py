"""Random weights that stay random until a layer uses them.

A training estimator may give every example of a batch its own weights. Then no single tensor is
"the weight": the value of a weight site is a ``LazyWeights``, whose entries are ``RandomWeight``
tensors. Linear and convolutional layers push the entry's estimator through themselves; every other
operation sees one realised draw, the same for the whole batch. Both are exact draws from q.

A weight that one forward pass uses more than once must be the same weight each time. The first
pass of a guide therefore realises everything and counts the uses; only weights used once are
given to a per-example estimator afterwards.

Estimators: flipout (Wen et al., ICLR 2018), local reparameterization (Kingma et al., NeurIPS 2015),
Bernoulli dropout of input units (Gal and Ghahramani, ICML 2016).
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._pytree import tree_map

Layer = Callable[..., Tensor]
LAYERS: frozenset[Layer] = frozenset(
    {
        *(F.linear, F.conv1d, F.conv2d, F.conv3d),
        *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    }
)
_METADATA = frozenset(
    {
        Tensor.shape.__get__,  # type: ignore[attr-defined]
        Tensor.dtype.__get__,  # type: ignore[attr-defined]
        Tensor.device.__get__,
        Tensor.ndim.__get__,  # type: ignore[attr-defined]
        Tensor.requires_grad.__get__,  # type: ignore[attr-defined]
        Tensor.is_cuda.__get__,  # type: ignore[attr-defined]
        *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point),
    }
)


class WeightEstimator:
    """How one parameter tensor of q is drawn; ``loc`` is its location."""

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc
        self._realised: Tensor | None = None

    def realise(self) -> Tensor:
        """One draw for the whole batch; asked twice, the same draw."""
        if self._realised is None:
            self._realised = self.draw()
        return self._realised

    def draw(self) -> Tensor:
        """A fresh draw of the parameter."""
        raise NotImplementedError

    def through(self, call: "LayerCall") -> Tensor:
        """The layer's output under per-example draws of this parameter."""
        raise NotImplementedError


@dataclass
class LayerCall:
    """A call of a layer without its weight; its bias may be random, too."""

    layer: Layer
    inputs: Tensor
    bias: Tensor | WeightEstimator | None
    rest: tuple
    options: dict

    def run(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output for other inputs and parameters."""
        return self.layer(inputs, weight, bias, *self.rest, **self.options)

    def at(self, loc: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The layer's output with its parameters at their locations."""
        bias = self.bias.loc if isinstance(self.bias, WeightEstimator) else self.bias
        return self.run(self.inputs if inputs is None else inputs, loc, bias)

    @property
    def axis(self) -> int:
        """Axis of the layer's units."""
        return -1 if self.layer is F.linear else 1


class NormalEstimator(WeightEstimator):
    """Independent normals.

    Args:
        loc: Location.
        scale: Standard deviation, in the parameter's shape.
        method: ``"flipout"``, ``"local"`` or ``"auto"``: local on (batch, features) linear
            layers, the only place where it is exact, flipout elsewhere.
        on_tokens: Called when ``"local"`` meets a linear layer on tokens, where it is biased.
    """

    def __init__(
        self, loc: Tensor, scale: Tensor, method: str, on_tokens: Callable[[], None] | None = None
    ) -> None:
        super().__init__(loc)
        self.scale, self.method, self.on_tokens = scale, method, on_tokens

    def draw(self) -> Tensor:
        """``loc + scale * noise``."""
        return self.loc + self.scale * torch.randn_like(self.loc)

    def through(self, call: LayerCall) -> Tensor:
        """Push the normal through the layer; see the module's sources."""
        is_linear = call.layer is F.linear
        flat = is_linear and call.inputs.dim() == 2
        if self.method == "local" and is_linear and not flat and self.on_tokens:
            self.on_tokens()
        is_local = self.method == "local" or (self.method == "auto" and flat)
        return self._local(call) if is_local else self._flipout(call)

    def _local(self, call: LayerCall) -> Tensor:
        var_bias = call.bias.scale.square() if isinstance(call.bias, NormalEstimator) else None
        loc = call.at(self.loc)
        variance = call.run(call.inputs.square(), self.scale.square(), var_bias)
        return loc + variance.clamp_min(1e-16).sqrt() * torch.randn_like(loc)

    def _flipout(self, call: LayerCall) -> Tensor:
        loc = call.at(self.loc)
        noise = self.scale * torch.randn_like(self.loc)
        flipped = call.run(call.inputs * _signs(call.inputs, call.axis), noise, None)
        output = loc + flipped * _signs(loc, call.axis)
        if isinstance(call.bias, NormalEstimator):
            shape = _per_example(loc, call.axis)
            normal = torch.randn(shape, device=loc.device, dtype=loc.dtype)
            output = output + call.bias.scale.view(shape[1:]) * normal
        return output


class DropoutEstimator(WeightEstimator):
    """M diag(z), z Bernoulli(keep) over the layer's input units.

    Args:
        loc: M, the parameter.
        rate: Probability that an input unit is dropped; number or zero-dimensional tensor.
        transposed: Whether the layer's input axis is axis 0 (transposed convolutions).
        groups: Groups of a convolution.
        temperature: Of a relaxed mask, which passes gradients to the rate; None for 0 and 1.
    """

    def __init__(
        self,
        loc: Tensor,
        rate: float | Tensor,
        transposed: bool,
        groups: int,
        temperature: float | None = None,
    ) -> None:
        super().__init__(loc)
        self.rate, self.transposed, self.groups = rate, transposed, groups
        self.temperature = temperature

    def draw(self) -> Tensor:
        """One mask for all."""
        units = mask_units(self.loc, self.transposed, self.groups)
        mask = self._keep(torch.Size(units))
        if self.groups > 1 and not self.transposed:
            mask = mask.repeat_interleave(self.loc.shape[0] // self.groups, dim=0)
        return self.loc * mask.view(*mask.shape, *(1,) * (self.loc.dim() - 2))

    def through(self, call: LayerCall) -> Tensor:
        """Mask each example's input units, which equals masking that example's weights."""
        shape = _per_example(call.inputs, call.axis)
        return call.at(self.loc, call.inputs * self._keep(torch.Size(shape)).to(call.inputs.dtype))

    def _keep(self, shape: torch.Size) -> Tensor:
        """1 where a unit is kept and 0 where not, in the parameter's type; or nearly so."""
        uniform = torch.rand(shape, device=self.loc.device)
        if self.temperature is None:
            return (uniform >= self.rate).to(self.loc.dtype)
        rate, tiny = torch.as_tensor(self.rate), torch.finfo(uniform.dtype).eps
        uniform = uniform.clamp(tiny, 1 - tiny)
        return torch.sigmoid((uniform.logit() - rate.logit()) / self.temperature).to(self.loc)


def mask_units(weight: Tensor, transposed: bool, groups: int) -> tuple[int, int]:
    """Input units of a linear, convolutional or transposed layer, one mask each, by its weight.

    Of a convolution, dims (group, unit): each group has input units of its own.
    """
    return (weight.shape[0], 1) if transposed else (groups, weight.shape[1])


def _per_example(values: Tensor, axis: int) -> tuple[int, ...]:
    """Shape of one number an example and unit, broadcast over pixels or tokens."""
    middle = (1,) * (values.dim() - 2)
    units = values.shape[axis]
    return (len(values), *middle, units) if axis == -1 else (len(values), units, *middle)


def _signs(values: Tensor, axis: int) -> Tensor:
    shape = _per_example(values, axis)
    return torch.randint(0, 2, shape, device=values.device).mul_(2).sub_(1).to(values.dtype)


class RandomWeight(Tensor):
    """Stands for a parameter whose value an estimator draws: its shape, type and device, no data.

    Without data of its own it lives on every device, and where tensors are only imitated, too.
    """

    estimator: WeightEstimator
    parameter: str
    owner: "LazyWeights"

    @classmethod
    def of(cls, estimator: WeightEstimator, parameter: str, owner: "LazyWeights") -> "RandomWeight":
        """What stands for the parameter of that name."""
        like = estimator.loc
        weight = cls._make_wrapper_subclass(
            cls,
            like.shape,
            like.stride(),
            dtype=like.dtype,
            device=like.device,
            requires_grad=like.requires_grad,
        )
        weight.estimator, weight.parameter, weight.owner = estimator, parameter, owner
        return weight

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Refuse code that passes by ``__torch_function__``: it would read the mean of q."""
        raise RuntimeError(
            f"{func} reads a random weight in a way that its estimator cannot follow; build the "
            "guide with estimator='shared', or per_example=False for dropout"
        )

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Push the estimator through layers; realise one draw for everything else."""
        kwargs = dict(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            if func in _METADATA:
                return func(*args, **kwargs)
            if func in LAYERS:
                names = ("input", "weight", "bias")
                inputs, weight, bias = (
                    args[i] if i < len(args) else kwargs.pop(name, None)
                    for i, name in enumerate(names)
                )
                if isinstance(weight, cls) and not isinstance(inputs, cls):
                    call = LayerCall(func, inputs, bias, args[3:], kwargs)
                    return weight.owner.apply(weight, call)
                args = (inputs, weight, bias, *args[3:])
            return func(*tree_map(_realise, args), **tree_map(_realise, kwargs))


def _realise(value: Any) -> Any:
    if not isinstance(value, RandomWeight):
        return value
    value.owner.uses[value.parameter] += 1
    return value.estimator.realise()


class LazyWeights:
    """The value of a weight site under a per-example estimator.

    Args:
        estimators: Estimator by parameter name; a plain tensor for a parameter that is not random.
        per_example: Names that one pass uses once; None on the first pass, when it is not known.
    """

    def __init__(
        self, estimators: Mapping[str, WeightEstimator | Tensor], per_example: frozenset[str] | None
    ) -> None:
        self.uses: Counter[str] = Counter()
        self.num_examples: int | None = None
        self.per_example = per_example
        self.params: dict[str, Tensor] = {}
        for name, estimator in estimators.items():
            if isinstance(estimator, WeightEstimator):
                self.params[name] = RandomWeight.of(estimator, name, self)
            else:
                self.params[name] = estimator

    def apply(self, weight: RandomWeight, call: LayerCall) -> Tensor:
        """Run one layer with a random weight, per example where that is exact."""
        used_once, bias = self.per_example or (), call.bias
        axes, is_linear = call.inputs.dim(), call.layer is F.linear
        lazy = (
            weight.parameter in used_once
            and len(call.inputs) == self.num_examples
            and (axes >= 2 if is_linear else axes == weight.estimator.loc.dim())
        )
        if not lazy or (isinstance(bias, RandomWeight) and bias.parameter not in used_once):
            return call.run(call.inputs, _realise(weight), _realise(bias))
        self.uses[weight.parameter] += 1
        if isinstance(bias, RandomWeight):
            self.uses[bias.parameter] += 1
            call.bias = bias.estimator
        return weight.estimator.through(call)


class SharedWeightDraw(Messenger):
    """Context in which weights of estimators by example are one draw for the whole batch."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["value"], LazyWeights):
            msg["value"].per_example = None
