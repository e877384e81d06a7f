"""A switch for the time of a pass: gradients that checkpointed modules must not lose."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, no_type_check

import torch
from torch import nn

_outside = threading.local()


@contextlib.contextmanager
def noting_gradients() -> Iterator[None]:
    """Note, for ``refuse_checkpointing``, whether the pass that runs a network has gradients."""
    before, _outside.has_grad = getattr(_outside, "has_grad", False), torch.is_grad_enabled()
    try:
        yield
    finally:
        _outside.has_grad = before


@no_type_check  # torch.compile passes through it, but through no check of types
def refuse_checkpointing(module: nn.Module, inputs: Any) -> None:
    """Raise where gradients of a module's drawn weights would be wrong, or none.

    Raises:
        RuntimeError: It runs again in the backward pass, when the drawn weights are gone, or the
            network runs it without gradients in a pass that has them.
    """
    if torch.compiler.is_compiling():  # there, weights are inputs, which are kept
        return
    advice = "switch checkpointing off, such as by memory_efficient=False or use_checkpoint=False"
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            f"{type(module).__name__} runs again in the backward pass (gradient checkpointing), "
            "where its weights are no longer those that were drawn, so that gradients would be "
            f"wrong; {advice} of the network"
        )
    if getattr(_outside, "has_grad", False) and not torch.is_grad_enabled():
        raise RuntimeError(
            f"the network runs {type(module).__name__} without gradients (torch.no_grad, or "
            "checkpointing with use_reentrant=True), so that its random weights would learn from "
            f"the prior alone; {advice}, or leave these weights out: RandomWeights(where=...)"
        )
