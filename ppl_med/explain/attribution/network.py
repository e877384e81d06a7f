"""A look inside a function draw: which modules it calls, which operations its graph has.

A function draw is any callable, so its network is observed: a hook on every module notes what is
called. Operations outside modules show in the graph of the output.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from ppl_med.explain.function_checks import Function

# Operations that are not linear in what depends on the image, by the start of their name in the
# graph; pooling by the maximum, which is linear where it is smooth, is not among them.
NONLINEAR = (
    *"Relu Prelu LeakyRelu Elu Celu Gelu Silu Mish Tanh Sigmoid Softplus Hardtanh".split(),
    *"Hardswish Hardsigmoid LogSigmoid Clamp Softmax ScaledDotProduct Pow ExpBackward Log".split(),
    *"Sqrt Rsqrt Abs Maximum Minimum NativeGroupNorm NativeLayerNorm FusedRmsNorm".split(),
    *("product", "batch statistics"),
)


@dataclass
class Call:
    """One call of a module, by its path in the outermost one, that returned a tensor."""

    module: nn.Module
    name: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        kind = type(self.module).__name__
        return f"{self.name or repr(kind)} ({kind})"


@contextmanager
def on_every_module(
    leave: Callable[..., Any], enter: Callable[..., Any] | None = None
) -> Iterator[None]:
    """Call a forward hook and a forward pre-hook on all modules; what they return is passed on."""
    with register_module_forward_pre_hook(enter) if enter else nullcontext():
        with register_module_forward_hook(leave):
            yield


def watch(function: Function, points: Tensor) -> tuple[list[Call], Tensor]:
    """Run a function; return its calls in the order they ended, and the output with its graph."""
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

    with torch.enable_grad(), on_every_module(leave, enter):
        output = function(points.detach().clone().requires_grad_().clone())
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
        parents = _parents(node)
        inner = [parent for parent in parents if not _is_parameter(parent)]
        if name in ("MulBackward0", "DivBackward0", "BmmBackward0") and len(inner) > 1:
            name = "product"
        elif "BatchNorm" in name and getattr(node, "_saved_training", False):
            name = "batch statistics"
        counts[name] += 1
        stack.extend(parents)
    return counts


def nonlinear_ops(counts: Counter[str]) -> Counter[str]:
    """Those operations that are not linear, such as ``"Relu"``."""
    return Counter(
        {k.removesuffix("Backward0"): n for k, n in counts.items() if k.startswith(NONLINEAR)}
    )


def _parents(node: Any) -> list[Any]:
    return [parent for parent, _ in node.next_functions if parent is not None]


def _is_parameter(node: Any) -> bool:
    """Whether a node leads to leaves that are parameters only, by way of reshapes."""
    while type(node).__name__ != "AccumulateGrad":
        parents = _parents(node)
        if len(parents) != 1:
            return False
        node = parents[0]
    return isinstance(node.variable, nn.Parameter)
