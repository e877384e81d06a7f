"""Guided backpropagation: gradients that pass a ReLU only where they are positive themselves.

    guided backpropagation   the gradient, cut at 0 whenever it enters a ReLU from above
    guided Grad-CAM          the same times relu(Grad-CAM), interpolated

Both show fine detail, but little of what a net has learnt: they hardly change when its upper layers
are randomised (Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018;
``ppl_med.explain.quality.parameter_randomisation`` measures it). They are defined for ReLU modules;
any other activation, or ReLU called as a function, is refused.

References: Springenberg et al., "Striving for simplicity", 2015; Selvaraju et al., "Grad-CAM",
ICCV 2017.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ppl_med.explain.attribution.activation_maps import GradCam
from ppl_med.explain.attribution.draw_groups import Draw, in_batches
from ppl_med.explain.attribution.method import Maps, Method, Task
from ppl_med.explain.attribution.network import nonlinear_ops, on_every_module, operations, watch


@dataclass(frozen=True)
class GuidedBackprop(Method):
    """The gradient with its negative part cut at every ReLU."""

    name = "guided_backprop"
    unit = "{} per unit of intensity"

    def check_function(self, draw: Draw, name: str, task: Task) -> None:
        """Raise unless every activation is a ReLU module."""
        check_relu(draw, name, task, self.name)

    def maps(self, draws: Draw, task: Task) -> Maps:
        """One guided gradient per case."""
        return Maps(guided_gradient(draws, task))


@dataclass(frozen=True)
class GuidedGradCam(GradCam):
    """Guided backpropagation times the positive part of Grad-CAM.

    Attributes:
        layer: As in Grad-CAM.
        relu: Always True here; not an option.
    """

    relu: bool = field(default=True, init=False)
    name = "guided_grad_cam"
    unit = "{} per unit of intensity"

    def check_function(self, draw: Draw, name: str, task: Task) -> None:
        """Raise unless the layer fits, and every activation is a ReLU module."""
        super().check_function(draw, name, task)
        check_relu(draw, name, task, self.name)

    def maps(self, draws: Draw, task: Task) -> Maps:
        """The product."""
        return Maps(super().maps(draws, task).values * guided_gradient(draws, task))


def check_relu(draw: Draw, name: str, task: Task, method: str) -> None:
    """Raise unless the only nonlinear operations of a function are ReLU modules."""
    calls, output = watch(draw.function, task.image)
    found = nonlinear_ops(operations(output))
    modules = sum(isinstance(call.module, nn.ReLU) for call in calls)
    others = sorted(kind for kind in found if kind != "Relu")
    if others or found["Relu"] != modules:
        what = f"has {', '.join(others)}" if others else "calls relu as a function"
        raise ValueError(
            f"{method} holds for nets whose only activation is nn.ReLU modules, and {name} {what}; "
            "use method='integrated_gradients', or 'smooth_grad' for a picture of fine detail"
        )


def guided_gradient(draw: Draw, task: Task) -> Tensor:
    """Gradient of the explained number, cut at every ReLU: (1, case, channel, ...)."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(module, nn.ReLU) and output.requires_grad:
            kept = output.clone()  # an in-place layer may follow
            kept.register_hook(torch.relu)
            return kept
        return None

    with on_every_module(hook):
        return in_batches(draw.gradient, task.image, task.rows, task.batch_size)
