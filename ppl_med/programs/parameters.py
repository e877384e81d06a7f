"""Which parameters belong to a program: its modules' own, and free ones in Pyro's store.

Pyro's parameter store is one dict for the whole process, and a ``PyroModule`` (stock AutoGuides
are some) takes over whatever lies there under its names: a second ``AutoNormal`` would start from
the first one's parameters and train them on. Programs therefore run in a ``private_store``, which
holds the free parameters (of ``pyro.param``) only; modules bring their own.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import pyro
import torch
from pyro.params.param_store import StateDict
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppl_med.programs.rng import torch_restored
from ppl_med.programs.sites import Program, modules_of

_used: WeakKeyDictionary[Program, frozenset[str]] = WeakKeyDictionary()


@contextmanager
def private_store() -> Iterator[None]:
    """Run the block with a parameter store that holds free parameters only.

    Afterwards the store has all it had before, and what the block added or replaced.
    """
    store = pyro.get_param_store()
    before = store.get_state()
    free: StateDict = {
        "params": {n: v for n, v in before["params"].items() if not isinstance(v, nn.Parameter)},
        "constraints": {},
    }
    free["constraints"] = {name: before["constraints"][name] for name in free["params"]}
    store.clear()
    store.set_state(free)
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
    modules = {part: part.training for module in modules_of(*programs) for part in module.modules()}
    try:
        set_mode(programs, False)
        with torch_restored(), torch.no_grad(), private_store():
            yield
    finally:
        for module, mode in modules.items():
            module.training = mode


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


def set_mode(programs: Iterable[Program | None], training: bool) -> None:
    """Put modules, those in a function's closure too, into training or evaluation mode."""
    for module in modules_of(*programs):
        module.train(training)


def move(programs: Iterable[Program | None], device: torch.device) -> None:
    """Move modules, those in a function's closure too, to a device."""
    for module in modules_of(*programs):
        module.to(device)
