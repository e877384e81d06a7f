"""Layer-wise relevance propagation with the ε rule, LRP-ε, by scaling the gradient of each layer.

    R_i = Σ_j  x_i w_ij / (z_j + ε sign z_j)  R_j          z_j = Σ_i x_i w_ij + b_j

Going back through a layer, this is input × gradient with the gradient multiplied by
z / (z + ε sign z). So a hook on every linear layer keeps its value and scales its gradient, and the
relevance of the image is x · ∇f. Residual sums pass relevance in proportion to their parts by
themselves. Activations with f(0) = 0 other than ReLU pass it by the factor f(z) / z; norms with
statistics of the image are linear with their spread held fixed (Ali et al. 2022).

For ε → 0 on nets of ReLU, also with biases, this is input × gradient (Ancona et al., ICLR 2018). It
conserves, Σ R = f(x), only without biases; ``conservation`` says how much is kept.

References: Bach et al., "On pixel-wise explanations for non-linear classifier decisions by
layer-wise relevance propagation", PLOS ONE 10 (2015); Ali et al., "XAI for transformers: better
explanations through conservative propagation", ICML 2022.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AvgPoolNd

from ppl_med.checks import finite
from ppl_med.explain.attribution.draw_groups import Draw, DrawGroup, in_batches
from ppl_med.explain.attribution.method import COMPLETE, Maps, Method, Task
from ppl_med.explain.attribution.network import nonlinear_ops, on_every_module, operations, watch

WEIGHTED = (nn.Linear, _ConvNd)
LINEAR = (*WEIGHTED, _BatchNorm, _AvgPoolNd, _AdaptiveAvgPoolNd)
NORMS = (_InstanceNorm, nn.GroupNorm, nn.LayerNorm)
# Activations that are 0 at 0.
ACTIVATIONS = (
    *(nn.PReLU, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Hardswish),
)
PRODUCTS_OF_WEIGHTS = ("ConvolutionBackward0", "AddmmBackward0", "MmBackward0", "BmmBackward0")


@dataclass(frozen=True)
class RelevancePropagation(Method):
    """LRP-ε.

    Attributes:
        epsilon: Absorbs relevance of units with small activation, in units of activation; 0 is
            input × gradient.
    """

    epsilon: float = 0.01
    name = "lrp"
    takes_groups = True
    outputs = ("logit", "value")

    def validate(self, image: Tensor) -> None:
        """Raise unless epsilon is 0 or more."""
        finite("epsilon", self.epsilon, 0)

    def check_function(self, draw: Draw, name: str, task: Task) -> None:
        """Raise unless every operation is one that a rule is known for."""
        calls, output = watch(draw.function, task.image)
        counts = operations(output)
        found = nonlinear_ops(counts)
        num = {
            kinds: sum(isinstance(call.module, kinds) for call in calls)
            for kinds in (ACTIVATIONS, NORMS, WEIGHTED)
        }
        norms = sum(found[k] for k in ("NativeGroupNorm", "NativeLayerNorm", "batch statistics"))
        others = found.total() - norms - found["Relu"]
        problem = None
        if found["product"] or any(kind.startswith("ScaledDot") for kind in found):
            problem = "multiplies values of the image with each other (attention or gating)"
        elif others > num[ACTIVATIONS] or norms > num[NORMS]:
            problem = f"has operations without a rule among {sorted(found)}"
        elif sum(counts[kind] for kind in PRODUCTS_OF_WEIGHTS) > num[WEIGHTED]:
            problem = "has weights outside nn.Linear and convolution modules"
        if problem:
            raise ValueError(f"lrp: {name} {problem}; {COMPLETE}")

    def maps(self, draws: DrawGroup, task: Task) -> Maps:
        """Image times scaled gradient; ``conservation`` is Σ relevance / f(image)."""
        with relevance_rules(self.epsilon):
            slope = in_batches(draws.gradient, task.image, task.rows, task.batch_size)
        value = in_batches(draws.value, task.image, task.rows, task.batch_size)
        maps = task.image * slope
        return Maps(maps, checks={"conservation": maps.flatten(2).sum(2) / value})


def relevance_rules(epsilon: float) -> AbstractContextManager[None]:
    """A context in which every layer has the gradient of its ε rule, and the value it had."""
    entered: dict[nn.Module, list[Tensor]] = {}

    def enter(module: nn.Module, inputs: Any) -> Any:
        if not isinstance(module, ACTIVATIONS) or not inputs:
            return None
        entered.setdefault(module, []).append(inputs[0])
        return (inputs[0].clone(), *inputs[1:])  # an in-place activation would change it

    def leave(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(module, ACTIVATIONS):
            before = entered[module].pop()
            ratio = torch.where(before == 0, 0.0, output / torch.where(before == 0, 1.0, before))
            return _same_value(output, before, ratio)
        if isinstance(module, NORMS) and not _has_statistics(module):
            return _stabilised(_fixed_spread(module, inputs[0], output), epsilon)
        if isinstance(module, (*LINEAR, _InstanceNorm)):
            return _stabilised(output, epsilon)
        return None

    return on_every_module(leave, enter)


def _has_statistics(module: nn.Module) -> bool:
    """Whether a norm uses running statistics, not those of the image."""
    return isinstance(module, _NormBase) and module.running_mean is not None


def _same_value(value: Tensor, source: Tensor, slope: Tensor) -> Tensor:
    """The value, with a gradient of its own in the source."""
    return value.detach() + (source - source.detach()) * slope.detach()


def _stabilised(output: Tensor, epsilon: float) -> Tensor:
    sign = torch.where(output >= 0, 1.0, -1.0).to(output)
    below = output + epsilon * sign
    # A unit at 0 without ε passes on nothing and everything alike: 1 is the limit.
    scale = torch.where(below == 0, 1.0, output / torch.where(below == 0, 1.0, below))
    return _same_value(output, output, scale)


def _fixed_spread(module: Any, x: Tensor, output: Tensor) -> Tensor:
    """A norm as a linear map: the mean is taken off, the spread is a constant."""
    if isinstance(module, nn.LayerNorm):
        parts, axes = x, tuple(range(-len(module.normalized_shape), 0))
    else:
        groups = module.num_groups if isinstance(module, nn.GroupNorm) else x.shape[1]
        parts, axes = x.unflatten(1, (groups, x.shape[1] // groups)), tuple(range(2, x.ndim + 1))
    centred = parts - parts.mean(axes, keepdim=True)
    spread = (centred**2).mean(axes, keepdim=True).add(module.eps).sqrt()
    scaled = (centred / spread.detach()).reshape(x.shape)
    if module.weight is not None:
        shape = (
            module.weight.shape if isinstance(module, nn.LayerNorm) else (-1, *[1] * (x.ndim - 2))
        )
        scaled = scaled * module.weight.view(shape)
    return _same_value(output, scaled, torch.ones_like(scaled))
