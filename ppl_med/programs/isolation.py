"""Run a Pyro program and leave no trace: parameters, buffers, modes and random numbers as before.

Pyro programs write to places outside themselves: the global parameter store, the random number
generators, running statistics of BatchNorm, parameters made at the first call. ``preserved_state``
puts all of them back, also for networks that a plain function reaches through its closure.

The parameter store is one dict for the whole process, and a ``PyroModule`` (stock AutoGuides are
some) takes over whatever lies there under its names: a second ``AutoNormal`` would start from the
first one's parameters and train them on. Programs therefore run in a ``private_store``, which
holds the free parameters (of ``pyro.param``) only; modules bring their own.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from pyro.util import get_rng_state, set_rng_state
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ppl_med.programs.parameters import modules_of, named_modules_of, set_mode
from ppl_med.programs.rng import torch_restored
from ppl_med.programs.sites import Program

_process = threading.RLock()


@contextmanager
def alone() -> Iterator[None]:
    """Run the block while no other thread runs one; Pyro's handlers are those before, afterwards.

    Handlers and parameter store are one for the whole process: programs of two threads would see
    each other's. A thread may enter again while it is inside.
    """
    with _process:
        stack = pyro.poutine.runtime._PYRO_STACK
        before = list(stack)
        try:
            yield
        finally:
            stack[:] = before


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Run the block with gradients, and in the precision it asks for itself.

    A caller's ``no_grad``, ``inference_mode`` and ``autocast`` stay outside.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def preserved_state(*programs: Callable[..., Any]) -> Iterator[dict[nn.Module, str]]:
    """Restore programs (functions or modules) and process when the block ends, whatever happened.

    Values of parameters are not copied: a program that writes to them while it runs changes them.

    Yields:
        Name of every module that ran so far, with its program's parts in it from the start; it
        grows as functions call networks of their closure.
    """
    with alone():
        names: dict[nn.Module, str] = {}
        saved: list[_Saved] = []

        def remember(module: nn.Module, name: str) -> None:
            if module not in names:
                names[module] = name
                saved.append(_Saved(module))

        for program in programs:
            for reached, owner in named_modules_of(program).items():
                for name, module in owner.named_modules():
                    remember(
                        module, ".".join(filter(None, (reached, name))) or type(module).__name__
                    )
        handle = register_module_forward_pre_hook(
            lambda module, _: remember(module, type(module).__name__)
        )
        generators = get_rng_state()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        store = pyro.get_param_store()
        try:
            with store.scope(store.get_state()):
                yield names
        finally:
            handle.remove()
            set_rng_state(generators)
            if cuda is not None:
                torch.cuda.set_rng_state_all(cuda)
            for state in reversed(saved):
                state.restore()


@contextmanager
def private_store() -> Iterator[None]:
    """Run the block with a parameter store that holds free parameters only.

    Afterwards the store has all it had before, and what the block added or replaced.
    """
    with alone():
        store = pyro.get_param_store()
        before = store.get_state()
        params = {n: v for n, v in before["params"].items() if not isinstance(v, nn.Parameter)}
        constraints = {name: before["constraints"][name] for name in params}
        store.clear()
        store.set_state({"params": params, "constraints": constraints})
        try:
            yield
        finally:
            after = store.get_state()
            store.clear()
            store.set_state(
                {
                    "params": {**before["params"], **after["params"]},
                    "constraints": {**before["constraints"], **after["constraints"]},
                }
            )


@contextmanager
def undisturbed(*programs: Program | None) -> Iterator[None]:
    """Run programs in evaluation mode, without gradients, and leave modes, generators and norms.

    Parameters that programs make when they first run stay.
    """
    with alone():
        modules = {
            part: part.training for module in modules_of(*programs) for part in module.modules()
        }
        try:
            set_mode(programs, False)
            with torch_restored(), torch.no_grad(), private_store():
                yield
        finally:
            for module, mode in modules.items():
                module.training = mode


class _Saved:
    """What one module was: its attributes, its tables of parameters and buffers, buffer values."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = dict(vars(module))
        tables = (table for table in self.attributes.values() if isinstance(table, dict))
        self.tables = [(table, dict(table)) for table in tables]
        self.values = [(b, b.detach().clone()) for b in module.buffers(recurse=False)]
        own = module.parameters(recurse=False)
        self.parameters = [(p, p.grad, p.requires_grad) for p in own]
        # Pyro marks a module that has run, and refuses to nest it in another one afterwards.
        context = self.attributes.get("_pyro_context")
        self.context = None if context is None else (context, context.used)

    def restore(self) -> None:
        """Put everything back in place; objects keep their identity."""
        for table, content in self.tables:
            table.clear()
            table.update(content)
        vars(self.module).clear()
        vars(self.module).update(self.attributes)
        with torch.no_grad():
            for buffer, value in self.values:
                buffer.copy_(value)
        for parameter, gradient, requires_grad in self.parameters:
            parameter.grad = gradient
            parameter.requires_grad_(requires_grad)
        if self.context is not None:
            self.context[0].used = self.context[1]
