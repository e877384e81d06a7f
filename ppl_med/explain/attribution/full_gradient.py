"""FullGrad: the output as a sum over pixels of the image and over biases of all layers.

    f(x) = Σ x · ∇f(x)  +  Σ_layers Σ b · ∂f/∂z            z = W x + b of each layer

exact for nets of piecewise linear activations; a batch norm in evaluation mode has the bias
β - γ μ / σ. The bias terms of a layer with space are interpolated to the image and keep their sum,
so the map is complete; those of layers without space belong to no pixel and are the
``bias_attribution``. The paper's pictures take absolute values and scale each case; here terms keep
sign and unit.

Reference: Srinivas and Fleuret, "Full-gradient representation for neural network visualization",
NeurIPS 2019.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ppl_med.explain.attribution.activation_maps import resized
from ppl_med.explain.attribution.draw_groups import Draw
from ppl_med.explain.attribution.method import COMPLETE, Maps, Method, Task
from ppl_med.explain.attribution.network import nonlinear_ops, on_every_module, operations, watch
from ppl_med.explain.attribution.relevance import WEIGHTED
from ppl_med.explain.function_checks import per_case

PIECEWISE = {"Relu", "LeakyRelu", "PreluKernel", "Hardtanh"}
ALLOWED = 1e-3  # share of the output that the sum may miss; rounding is 1e-6


@dataclass(frozen=True)
class FullGradient(Method):
    """FullGrad, signed and complete."""

    name = "full_gradient"
    is_complete = True
    outputs = ("logit", "value")
    advice = COMPLETE

    def check_function(self, draw: Draw, name: str, task: Task) -> None:
        """Raise unless the net is piecewise linear and the terms of the first case sum to it."""
        _, output = watch(draw.function, task.image)
        others = sorted(set(nonlinear_ops(operations(output))) - PIECEWISE)
        if others:
            raise ValueError(
                f"full_gradient holds for piecewise linear nets, and {name} has "
                f"{', '.join(others)}; {COMPLETE}"
            )
        maps = self.maps(draw, task)
        assert maps.total is not None
        gap = maps.delta().abs()
        if bool((gap > ALLOWED * torch.maximum(maps.total.abs(), maps.mass() / 10)).any()):
            raise ValueError(
                f"full_gradient misses {float(gap.max()):.2g} of the output of {name}, which adds "
                f"constants outside linear, convolution and batch-norm modules; {COMPLETE}"
            )

    def maps(self, draws: Draw, task: Task) -> Maps:
        """Terms of image and biases, in batches of cases."""
        parts = [self._part(draws, p.image, p.rows) for p in task.split(task.batch_size)]
        values, off_image, total = (torch.cat(part)[None] for part in zip(*parts, strict=True))
        return Maps(values, total=total, bias_attribution=off_image)

    @staticmethod
    def _part(draw: Draw, image: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        biases: list[Tensor] = []
        probes: list[Tensor] = []

        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            bias = _bias(module)
            if bias is None:
                return None
            axis = output.ndim - 1 if isinstance(module, nn.Linear) else 1
            biases.append(bias.view(-1, *[1] * (output.ndim - 1 - axis)))
            probes.append(torch.zeros_like(output).requires_grad_())
            return output + probes[-1]

        points = image.clone().requires_grad_()
        with torch.enable_grad(), on_every_module(hook):
            value = draw.forward(points, rows)
            slopes = torch.autograd.grad(value.sum(), [points, *probes])
        maps = (image * slopes[0]).sum(1, keepdim=True)
        off_image = torch.zeros_like(value).detach()
        for bias, slope in zip(biases, slopes[1:], strict=True):
            term = (bias * slope).detach()
            if term.ndim == image.ndim and term.shape[2:].numel() > 1:
                maps = maps + spread(term.sum(1, keepdim=True), image)
            else:
                off_image = off_image + term.flatten(1).sum(1)
        return maps.detach(), off_image, value.detach()


def _bias(module: nn.Module) -> Tensor | None:
    """What a layer adds to a linear function of its input, by channel."""
    if isinstance(module, WEIGHTED):
        return None if module.bias is None else module.bias.detach()
    if isinstance(module, _NormBase) and module.running_mean is not None:
        assert module.running_var is not None
        scale = (module.running_var + module.eps).rsqrt()
        weight = 1.0 if module.weight is None else module.weight.detach()
        shift = 0.0 if module.bias is None else module.bias.detach()
        return shift - weight * module.running_mean * scale
    return None


def spread(maps: Tensor, image: Tensor) -> Tensor:
    """Interpolate maps (case, 1, *space) to the image's space so that they keep their sum."""
    pixels = image.shape[2:].numel()
    fine = resized(maps, image) * (maps.shape[2:].numel() / pixels)
    gap = maps.flatten(1).sum(1) - fine.flatten(1).sum(1)
    return fine + per_case(gap / pixels, maps)
