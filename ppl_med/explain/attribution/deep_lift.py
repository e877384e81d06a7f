"""DeepLIFT with the rescale rule, by captum: differences from the baseline, layer by layer.

The multiplier of an activation is Δout / Δin instead of its slope, and Σ a(x) = f(x) - f(baseline)
exactly. captum's implementation holds for nets of activation modules that are each called once;
with norms, functional or repeated activations, and with max pools away from a constant baseline,
its sum is silently wrong. So operations and sum are checked on every function beforehand, and a net
that fails is refused.

Reference: Shrikumar, Greenside and Kundaje, "Learning important features through propagating
activation differences", ICML 2017.
"""

import warnings
from collections import Counter
from dataclasses import dataclass

import captum.attr
import torch
from torch import Tensor, nn

from ppl_med.explain.attribution.draw_groups import Draw
from ppl_med.explain.attribution.method import COMPLETE, Maps, Method, Task
from ppl_med.explain.attribution.network import nonlinear_ops, operations, watch

POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
# Beyond this share of the change the sum is not rounding; right nets have 1e-6.
ALLOWED = 1e-3


@dataclass(frozen=True)
class DeepLift(Method):
    """DeepLIFT, rescale rule."""

    name = "deep_lift"
    is_complete = True
    uses_baseline = True
    outputs = ("logit", "value")
    advice = COMPLETE

    def check_function(self, draw: Draw, name: str, task: Task) -> None:
        """Raise unless the attributions of the first case sum to the change of the output."""
        calls, output = watch(draw.function, task.image)
        if not calls:
            raise ValueError(f"deep_lift: {name} calls no torch module; {COMPLETE}")
        kinds = tuple(captum.attr._core.deep_lift.SUPPORTED_NON_LINEAR)
        count = Counter(call.module for call in calls if isinstance(call.module, kinds))
        twice = [type(module).__name__ for module, num in count.items() if num > 1]
        if twice:
            raise ValueError(f"deep_lift: {name} calls one {twice[0]} module twice; {COMPLETE}")
        found = nonlinear_ops(operations(output))
        if found.total() > sum(not isinstance(module, POOLS) for module in count):
            raise ValueError(
                f"deep_lift: {name} has operations without a rule among {sorted(found)}; {COMPLETE}"
            )
        try:
            maps = self.maps(draw, task)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"deep_lift does not hold for {name} ({error}); {COMPLETE}") from error
        assert maps.total is not None
        gap, scale = maps.delta().abs(), torch.maximum(maps.total.abs(), maps.mass() / 10)
        if bool((gap > ALLOWED * scale).any()):
            raise ValueError(
                f"deep_lift does not hold for {name}: its sum misses "
                f"{float((gap / scale).max()):.2g} of f(image) - f(baseline); {COMPLETE}"
            )

    def maps(self, draws: Draw, task: Task) -> Maps:
        """Captum's map; image and baseline go through the net together."""
        wrapped = _Network(draws, task.image[:1])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Setting forward, backward hooks", UserWarning)
            method = captum.attr.DeepLift(wrapped)
            values = [
                method.attribute(
                    part.image.clone().requires_grad_(),
                    part.baseline,
                    target=0,
                    additional_forward_args=(part.rows,),
                ).detach()
                for part in task.split(max(1, task.batch_size // 2))
            ]
        ends = (draws.value(x, task.rows).double() for x in (task.image, task.baseline))
        return Maps(torch.cat(values)[None], total=next(ends) - next(ends))


class _Network(nn.Module):
    """A function draw as a module that owns the modules it calls, so that captum finds them."""

    def __init__(self, draw: Draw, image: Tensor) -> None:
        super().__init__()
        self._draw = draw
        calls, _ = watch(draw.function, image)
        modules = list(dict.fromkeys(call.module for call in calls))
        inner = {part for module in modules for part in module.modules() if part is not module}
        self.outermost = nn.ModuleList(module for module in modules if module not in inner)

    def forward(self, points: Tensor, rows: Tensor) -> Tensor:
        """The explained number, (point, 1)."""
        return self._draw.forward(points, rows)[:, None]
