"""Class activation maps: where the channels of a layer that speak for an output are active.

    CAM          M = Σ_k w_k A_k            w the weights of the linear layer after a global average
    Grad-CAM     w_k = mean of ∂f/∂A_k      over the pixels of the layer
    Grad-CAM++   w_k = Σ α_k relu(∂f/∂A_k), α_k = g² / (2 g² + g³ Σ A_k),  g = ∂f/∂A_k
    Score-CAM    w = softmax over k of f(x masked by A_k) - f(baseline)

Maps are raw: signed, in no range of their own, so that draws can be compared; ``relu=True`` cuts
the negative part, as the papers draw them. They have one channel and are interpolated to the image.

References: Zhou et al., "Learning deep features for discriminative localization", CVPR 2016;
Selvaraju et al., "Grad-CAM", ICCV 2017; Chattopadhyay et al., "Grad-CAM++", WACV 2018 (without its
factor exp(f), which is one number per case); Wang et al., "Score-CAM", CVPR workshops 2020.
"""

from abc import abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ppl_med.explain.attribution.draw_groups import Draw
from ppl_med.explain.attribution.method import Maps, Method, Task
from ppl_med.explain.attribution.network import Call, on_every_module, watch
from ppl_med.explain.attribution.score import Score
from ppl_med.explain.function_checks import Function, per_case

GRADIENTS = "'integrated_gradients' or 'saliency', which need no layer"


@dataclass(frozen=True)
class ActivationMap(Method):
    """A weighted sum of a layer's channels.

    Attributes:
        layer: The layer, a module or its name (the last parts suffice, as in ``"layer4"``); the
            last one with space if None.
        relu: Whether to cut the negative part.
    """

    layer: str | nn.Module | None = None
    relu: bool = False

    def check_function(self, draw: Draw, name: str, task: Task) -> None:
        """Raise unless the layer exists, is called once, and has space."""
        find_layer(draw, task.image[:1], self.layer, self.name)

    def maps(self, draws: Draw, task: Task) -> Maps:
        """Weights times activations, interpolated."""
        module = find_layer(draws, task.image[:1], self.layer, self.name)
        parts = task.split(task.batch_size)
        found = torch.cat([self._map(draws, module, part).detach() for part in parts])[:, None]
        return Maps(resized(found.relu() if self.relu else found, task.image)[None])

    @abstractmethod
    def _map(self, draw: Draw, module: nn.Module, task: Task) -> Tensor:
        """The map on the layer's grid, (case, *space)."""


@dataclass(frozen=True)
class Cam(ActivationMap):
    """CAM: only for nets that end in a global average pool and one linear layer."""

    name = "cam"
    needs_gradient = False
    outputs = ("logit", "value")

    def check_function(self, draw: Draw, name: str, task: Task) -> None:
        """Raise unless the output is the linear layer of the layer's average."""
        module = find_layer(draw, task.image[:1], self.layer, self.name)
        activation, output, weight, bias = self._head(draw.function, module, task.image)
        fits = weight is not None and output.ndim == 2
        fits = fits and tuple(weight.shape) == (output.shape[1], activation.shape[1])
        if fits:
            expected = activation.flatten(2).mean(2) @ weight.T + bias
            fits = torch.allclose(
                expected, output, rtol=1e-3, atol=1e-4 * float(output.abs().max())
            )
        if not fits:
            raise ValueError(
                f"cam: the output of {name} is not a linear layer of the average of the layer's "
                "channels; name the layer before the global average pool, or use method='grad_cam'"
            )

    def _map(self, draw: Draw, module: nn.Module, task: Task) -> Tensor:
        activation, _, weight, _ = self._head(draw.function, module, task.image)
        assert isinstance(draw.score, Score)
        target = draw.score.target[task.rows]
        if len(weight) == 1 and draw.score.output == "logit":  # the log-odds of class 1
            chosen = weight * (2 * target - 1)[:, None]
        else:
            chosen = weight[target]
        return torch.einsum("nk,nk...->n...", chosen, activation)

    @staticmethod
    @torch.no_grad()
    def _head(function: Function, module: nn.Module, image: Tensor) -> Any:
        """Activation, output, and weight and bias of the last linear layer (None without one)."""
        kept: dict[str, Any] = {"weight": None, "bias": 0.0}

        def hook(called: nn.Module, inputs: Any, output: Any) -> Any:
            if called is module:
                kept["activation"] = output.clone()
            if isinstance(called, nn.Linear):
                kept["weight"] = called.weight.detach()
                kept["bias"] = 0.0 if called.bias is None else called.bias.detach()

        with on_every_module(hook):
            output = function(image.clone())
        return kept["activation"], output, kept["weight"], kept["bias"]


@dataclass(frozen=True)
class GradCam(ActivationMap):
    """Grad-CAM."""

    name = "grad_cam"

    def _map(self, draw: Draw, module: nn.Module, task: Task) -> Tensor:
        activation, slope = activation_and_gradient(draw, module, task)
        weight = slope.flatten(2).mean(2)
        return torch.einsum("nk,nk...->n...", weight, activation)


@dataclass(frozen=True)
class GradCamPlusPlus(ActivationMap):
    """Grad-CAM++."""

    name = "grad_cam_plus_plus"

    def _map(self, draw: Draw, module: nn.Module, task: Task) -> Tensor:
        activation, slope = activation_and_gradient(draw, module, task)
        space = tuple(range(2, slope.ndim))
        below = 2 * slope**2 + (activation * slope**3).sum(space, keepdim=True)
        share = torch.where(below == 0, 0.0, slope**2 / torch.where(below == 0, 1.0, below))
        weight = (share * slope.relu()).sum(space)
        return torch.einsum("nk,nk...->n...", weight, activation)


@dataclass(frozen=True)
class ScoreCam(ActivationMap):
    """Score-CAM: one forward pass per channel of the layer, and no gradient."""

    name = "score_cam"
    needs_gradient = False
    uses_baseline = True

    @torch.no_grad()
    def _map(self, draw: Draw, module: nn.Module, task: Task) -> Tensor:
        kept: list[Tensor] = []
        with module.register_forward_hook(lambda m, i, output: kept.append(output.clone())):
            draw.function(task.image.clone())
        activation, start = kept[0], draw.value(task.baseline, task.rows)[0]
        rises = []
        for channel in activation.split(1, 1):
            mask = resized(channel, task.image)
            low, high = (f(mask.flatten(1), 1).values for f in (torch.min, torch.max))
            span = (high - low).clamp(min=1e-12)
            mask = (mask - per_case(low, mask)) / per_case(span, mask)
            masked = task.baseline + mask * (task.image - task.baseline)
            rises.append(draw.value(masked, task.rows)[0] - start)
        weight = torch.stack(rises, 1).softmax(1)
        return torch.einsum("nk,nk...->n...", weight, activation)


def activation_and_gradient(draw: Draw, module: nn.Module, task: Task) -> tuple[Tensor, Tensor]:
    """A layer's output and the gradient of the explained number in it, (case, channel, *space)."""
    kept: list[Tensor] = []

    def hook(called: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()  # an in-place layer may follow

    with torch.enable_grad(), module.register_forward_hook(hook):
        total = draw.forward(task.image, task.rows).sum()
        (slope,) = torch.autograd.grad(total, kept[0])
    return kept[0].detach(), slope


def resized(maps: Tensor, image: Tensor) -> Tensor:
    """Interpolate maps (case, channel, *space) to the image's space."""
    mode = "bilinear" if image.ndim == 4 else "trilinear"
    return interpolate(maps, image.shape[2:], mode=mode, align_corners=False)


def find_layer(draw: Draw, image: Tensor, layer: str | nn.Module | None, method: str) -> nn.Module:
    """Return the module of a layer; raise unless it is called once and its output has space."""
    calls, _ = watch(draw.function, image)
    if not calls:
        raise ValueError(f"{method}: the functions call no torch module; use {GRADIENTS}")
    count = Counter(call.module for call in calls)
    if layer is None:
        return _last_with_space(draw, image, [c for c in calls if count[c.module] == 1], method)
    chosen = [call for call in calls if _is_called(call, layer)]
    names = list(dict.fromkeys(call.name for call in calls if call.name))
    if not chosen:
        raise ValueError(f"layer must be one of {names}, got {layer!r}")
    if len({call.module for call in chosen}) > 1:
        raise ValueError(f"layer {layer!r} fits {[c.name for c in chosen]}; give more of the name")
    if count[chosen[0].module] > 1:
        raise ValueError(f"layer {chosen[0]} is called {len(chosen)} times; name one called once")
    if not _has_space(chosen[0], image):
        raise ValueError(
            f"layer {chosen[0]} returns {chosen[0].shape}, which has no space; name a "
            f"convolutional layer, or use {GRADIENTS}"
        )
    return chosen[0].module


def _is_called(call: Call, layer: str | nn.Module) -> bool:
    if isinstance(layer, nn.Module):
        return call.module is layer
    return call.name == layer or call.name.endswith(f".{layer}")


def _has_space(call: Call, image: Tensor) -> bool:
    return len(call.shape) == image.ndim and max(call.shape[2:]) > 1


def _last_with_space(draw: Draw, image: Tensor, calls: list[Call], method: str) -> nn.Module:
    if isinstance(draw.score, Score) and draw.score.region is not None:
        raise ValueError(
            f"{method} of a segmentation needs a layer, such as the bottleneck; name one with "
            "layer=, or use 'integrated_gradients'"
        )
    spatial = [place for place, call in enumerate(calls) if _has_space(call, image)]
    if not spatial:
        raise ValueError(f"{method}: no layer of the functions has space; use {GRADIENTS}")
    after = calls[spatial[-1] + 1 :]
    if any(len(call.shape) not in (2, image.ndim) for call in after):
        raise ValueError(
            f"{method}: the last layer with space, {calls[spatial[-1]]}, is followed by layers of "
            f"tokens, so its map says little; use {GRADIENTS}"
        )
    return calls[spatial[-1]].module
