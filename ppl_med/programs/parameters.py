"""Modules and parameters of a program: its own, those it reaches, and free ones in Pyro's store."""

import functools
import inspect
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppl_med.programs.sites import Program

_used: WeakKeyDictionary[Program, frozenset[str]] = WeakKeyDictionary()


class StoreNames(Messenger):
    """Collects the names of the ``pyro.param`` statements that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def _pyro_param(self, msg: Any) -> None:
        self.names.add(msg["name"])


def remember_store_names(programs: Iterable[Program], names: Iterable[str]) -> None:
    """Note which entries of the store some programs use."""
    for program in programs:
        with suppress(TypeError):  # a callable that cannot be hashed
            _used[program] = frozenset(names)


def _names_used(*programs: Program | None) -> frozenset[str] | None:
    """Entries of the store that the programs use; None where nobody has seen them run."""
    found = []
    for program in programs:
        with suppress(TypeError, KeyError):
            found.append(_used[program])  # type: ignore[index]
    return frozenset().union(*found) if found else None


def free_parameters(model: Program, guide: Program | None) -> dict[str, Tensor]:
    """Parameters of ``pyro.param`` statements of two programs, unconstrained, by name.

    They are known of programs that ``fit`` or ``load`` has seen; of others, all free parameters in
    the store are taken for theirs.
    """
    known = {id(p) for module in modules_of(model, guide) for p in module.parameters()}
    names = _names_used(model, guide)
    found = {}
    for name, value in pyro.get_param_store().get_state()["params"].items():
        free = not isinstance(value, nn.Parameter) and id(value) not in known
        if free and (names is None or name in names):
            found[name] = value
    return found


def trainable(model: Program, guide: Program) -> list[Tensor]:
    """Parameters to train: of modules of model and guide and free ones, each once."""
    found: dict[int, Tensor] = {}
    for program in (model, guide):
        if isinstance(program, nn.Module):
            found |= {id(p): p for p in program.parameters() if p.requires_grad}
    names = _names_used(model, guide) or frozenset()
    for name, value in pyro.get_param_store().get_state()["params"].items():
        if name in names:
            found[id(value)] = value
    return list(found.values())


def modules_of(*programs: Program | None) -> list[nn.Module]:
    """Modules that programs are, or that they reach as plain functions: each once."""
    found: dict[int, nn.Module] = {}
    for program in programs:
        found |= {id(module): module for module in named_modules_of(program).values()}
    return list(found.values())


def parts_of(program: Program | None) -> list[nn.Module]:
    """All modules inside those that a program is or reaches, themselves included: each once."""
    return list({part: None for module in modules_of(program) for part in module.modules()})


def named_modules_of(program: Program | None) -> dict[str, nn.Module]:
    """The modules of one program by the name they have in it; ``""`` for a module itself.

    A function reaches those of its closure and those of the global names it uses.
    """
    return _reached(program, set())


def _reached(program: Any, seen: set[int]) -> dict[str, nn.Module]:
    if isinstance(program, nn.Module):
        return {"": program}
    if id(program) in seen:
        return {}
    seen.add(id(program))
    names = _names_in(program)
    found = {}
    for name, value in names.items():
        if isinstance(value, nn.Module):
            found[name] = value
        elif inspect.isroutine(value) or isinstance(value, functools.partial):
            found |= {f"{name}.{inner}": m for inner, m in _reached(value, seen).items()}
    return found


def _names_in(program: Any) -> dict[str, Any]:
    """What a function's code can see beyond its arguments; functions among globals left out."""
    if isinstance(program, functools.partial):
        arguments = {str(index): value for index, value in enumerate(program.args)}
        return {**arguments, **program.keywords, "func": program.func}
    if inspect.ismethod(program):
        return {"self": program.__self__, "func": program.__func__}
    if not inspect.isfunction(program):
        return {}
    code, outer = program.__code__, program.__globals__
    names = {n: outer[n] for n in code.co_names if isinstance(outer.get(n), nn.Module)}
    for name, cell in zip(code.co_freevars, program.__closure__ or (), strict=True):
        with suppress(ValueError):  # a name that is not bound yet
            names[name] = cell.cell_contents
    return names


def set_mode(programs: Iterable[Program | None], training: bool) -> None:
    """Put modules, those in a function's closure too, into training or evaluation mode."""
    for module in modules_of(*programs):
        module.train(training)


def move(programs: Iterable[Program | None], device: torch.device) -> None:
    """Move modules, those in a function's closure too, to a device."""
    for module in modules_of(*programs):
        module.to(device)
