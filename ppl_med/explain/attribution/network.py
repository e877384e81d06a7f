"""A look inside a function draw: which modules it calls, which operations its graph has.

A function draw is any callable, so its network is not asked for but watched: a hook on every module
notes what is called. Operations that are no modules show in the graph of the output.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from ppl_med.explain.attribution.draws import Function

# Operations that are not linear in what depends on the image, by the start of their name in the
# graph; pooling by the maximum, which is linear where it is smooth, is not among them.
BENDS = (
    "Relu",
    "Prelu",
    "LeakyRelu",
    "Elu",
    "Celu",
    "Gelu",
    "Silu",
    "Mish",
    "Tanh",
    "Sigmoid",
    "Softplus",
    "Hardtanh",
    "Hardswish",
    "Hardsigmoid",
    "LogSigmoid",
    "Clamp",
    "Softmax",
    "ScaledDotProduct",
    "Pow",
    "ExpBackward",
    "Log",
    "Sqrt",
    "Rsqrt",
    "Abs",
    "Maximum",
    "Minimum",
    "NativeGroupNorm",
    "NativeLayerNorm",
    "FusedRmsNorm",
    "product",
    "batch statistics",
)


@dataclass
class Call:
    """One call of a module that returned a tensor.

    Attributes:
        module: The module.
        name: Its path in the outermost module.
        shape: Of what it returned.
    """

    module: nn.Module
    name: str
    shape: tuple[int, ...]


@contextmanager
def on_every_module(hook: Any) -> Iterator[None]:
    """Call a forward hook (module, inputs, output) on all modules; what it returns is passed on."""
    handle = register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def watch(function: Function, points: Tensor) -> tuple[list[Call], Tensor]:
    """Run a function once; return its calls in the order they ended, and the output with its graph.

    Args:
        function: One draw.
        points: Some images.
    """
    calls: list[tuple[nn.Module, tuple[int, ...]]] = []
    open_modules: list[nn.Module] = []
    roots: list[nn.Module] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        if not open_modules:
            roots.append(module)
        open_modules.append(module)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        open_modules.pop()
        if isinstance(output, Tensor):
            calls.append((module, tuple(output.shape)))

    handle = register_module_forward_pre_hook(enter)
    try:
        with torch.enable_grad(), on_every_module(leave):
            output = function(points.detach().clone().requires_grad_().clone())
    finally:
        handle.remove()
    names = {module: name for root in roots for name, module in root.named_modules()}
    return [Call(module, names.get(module, ""), shape) for module, shape in calls], output


def operations(output: Tensor) -> Counter[str]:
    """Count the operations in the graph of a tensor, such as ``"ReluBackward0"``.

    A product or quotient of two values that both depend on the image counts as ``"product"``, and a
    norm over the batch it is given, as instance norm is computed, as ``"batch statistics"``.
    """
    counts: Counter[str] = Counter()
    seen, stack = set(), [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = type(node).__name__
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        inner = [p for p in parents if not _is_parameter(p)]
        if name in ("MulBackward0", "DivBackward0", "BmmBackward0") and len(inner) > 1:
            name = "product"
        elif "BatchNorm" in name and getattr(node, "_saved_training", False):
            name = "batch statistics"
        counts[name] += 1
        stack.extend(parents)
    return counts


def bent(counts: Counter[str]) -> Counter[str]:
    """Those operations that are not linear, such as ``"Relu"``."""
    return Counter(
        {k.removesuffix("Backward0"): n for k, n in counts.items() if k.startswith(BENDS)}
    )


def _is_parameter(node: Any) -> bool:
    """Whether a node leads to leaves that are parameters only, by way of reshapes."""
    while True:
        if type(node).__name__ == "AccumulateGrad":
            return isinstance(node.variable, nn.Parameter)
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        if len(parents) != 1:
            return False
        node = parents[0]


def last_name(call: Call) -> str:
    """How to call a layer in a message."""
    return f"{call.name or type(call.module).__name__!r} ({type(call.module).__name__})"
