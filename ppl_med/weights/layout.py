"""Which parameters of a network are random, and where each stands in the flat vector."""

import fnmatch
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

DETERMINISTIC = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.PReLU)
Where = str | type | tuple[type, ...] | Callable[[str, nn.Module], bool] | None


@dataclass(frozen=True)
class Entry:
    """One parameter tensor in the flat vector.

    Attributes:
        name: Its path in the net, such as ``"layer1.0.conv1.weight"``.
        shape: Its shape.
        fan_in: Inputs that one output unit of its layer sums over; the feature size of tokens and
            position embeddings; 1 where there is no such thing.
        transposed: Whether it is the weight of a transposed convolution (inputs on axis 0).
        groups: Groups of its convolution.
        is_layer_weight: Whether it is the weight of a linear or convolutional layer.
        is_convolution: Whether its layer is a convolution.
    """

    name: str
    shape: torch.Size
    fan_in: int
    transposed: bool = False
    groups: int = 1
    is_layer_weight: bool = False
    is_convolution: bool = False

    @property
    def num_weights(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


class Layout:
    """Which parameters stand where in the flat vector.

    Args:
        net: The network.
        where: Which parameters are random; see ``RandomWeights``.
    """

    def __init__(self, net: nn.Module, where: Where = None) -> None:
        chosen = _selector(net, where)
        known = {name for name, _ in net.named_parameters()}
        self.entries: list[Entry] = []
        for path, module in net.named_modules():
            for short, parameter in module.named_parameters(recurse=False):
                name = f"{path}.{short}" if path else short
                if name in known and chosen(name, module):
                    self.entries.append(_entry(name, short, parameter, module))
        if not self.entries:
            raise ValueError(
                f"where={where!r} selects no parameter of {type(net).__name__}; "
                f"its parameters are {sorted(known)[:8]} …"
            )
        self.sizes = [entry.num_weights for entry in self.entries]
        self.num_weights = sum(self.sizes)

    @property
    def names(self) -> list[str]:
        """Parameter names, in order."""
        return [entry.name for entry in self.entries]

    def flatten(self, net: nn.Module) -> Tensor:
        """The net's present values as one vector, dims (weight,)."""
        values = dict(net.named_parameters())
        return torch.cat([values[name].detach().reshape(-1) for name in self.names])

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Named views into a flat vector (weight,); no copy."""
        parts = zip(self.entries, flat.split(self.sizes), strict=True)
        return {entry.name: part.view(entry.shape) for entry, part in parts}


def _entry(name: str, short: str, parameter: Tensor, module: nn.Module) -> Entry:
    is_convolution = isinstance(module, _ConvNd)
    is_layer_weight = short == "weight" and (is_convolution or isinstance(module, nn.Linear))
    weight = getattr(module, "weight", None)
    reference = weight if isinstance(weight, Tensor) and weight.dim() > 1 else parameter
    transposed = isinstance(module, _ConvTransposeNd)
    groups = module.groups if isinstance(module, _ConvNd) else 1
    if transposed:
        fan_in = reference.shape[0] // groups * math.prod(reference.shape[2:])
    elif reference.dim() > 2 and len(reference) == 1 and not is_layer_weight:
        fan_in = reference.shape[-1]  # a token or position embedding, broadcast over the batch
    else:
        fan_in = math.prod(reference.shape[1:]) if reference.dim() > 1 else 1
    return Entry(
        name,
        parameter.shape,
        fan_in,
        transposed and is_layer_weight,
        groups if is_layer_weight else 1,
        is_layer_weight,
        is_convolution,
    )


def _selector(net: nn.Module, where: Where) -> Callable[[str, nn.Module], bool]:
    if where is None:
        return lambda name, module: not isinstance(module, DETERMINISTIC)
    if isinstance(where, type | tuple):
        return lambda name, module: isinstance(module, where)
    if where == "last_layer":
        layers = [m for m in net.modules() if isinstance(m, nn.Linear | _ConvNd)]
        if not layers:
            raise ValueError(
                f"where='last_layer': {type(net).__name__} has no linear or conv layer"
            )
        return lambda name, module: module is layers[-1]
    if isinstance(where, str):
        pattern = where
        return lambda name, module: fnmatch.fnmatchcase(name, pattern)
    if callable(where):
        return where
    raise TypeError(
        "where must be None, 'last_layer', a name pattern such as 'layer4.*', a module type or a "
        f"function of (name, module); got {where!r}"
    )
