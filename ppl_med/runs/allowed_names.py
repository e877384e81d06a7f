"""Which classes and functions a file may name: a short list of places, and of kinds in each.

A file that somebody sends must not be able to run code. So a name is ``<place>.<Name>``, never a
path through other modules' attributes (``torch.os.system``), and what it names must be of the kind
that its place holds, and defined in the same package: of ``torch.nn`` the modules, of
``monai.transforms`` the transforms that write no files. A module of the user's own is a place once
the user says so (``--allow my_module``, ``allow=("my_module",)``), which no file can. Nor can it
name a logger that sends figures elsewhere, unless the user allows that one; a logger that writes
files writes them into the folder of the run.
"""

import functools
import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from ppl_med.checks import different_names, nearest

# Loggers that send something elsewhere: named once the user allows them, each by its own name.
SENDERS = ("ppl_med.inference.MLflowLogger", "ppl_med.inference.WandbLogger")
# The argument that says where a logger writes, which must be inside the folder of the run.
PLACES_TO_WRITE: Mapping[str, str] = {
    "ppl_med.inference.CsvLogger": "path",
    "ppl_med.inference.TensorBoardLogger": "folder",
}
Kind = Callable[[ModuleType, str, Any], bool]

# What is public but acts on files or trains, rather than being a part of a run.
_VERBS = {
    *("fit", "predict", "functions", "save", "load", "elbo_terms"),
    *("save_split", "convert_lidc_pickle", "load_pretrained"),
}


def _of(*paths: str) -> Kind:
    """Subclasses of some classes, which are imported when first asked for."""

    def is_one(module: ModuleType, name: str, value: Any) -> bool:
        bases = tuple(_attribute(path) for path in paths)
        return inspect.isclass(value) and issubclass(value, bases)

    return is_one


def _public(module: ModuleType, name: str, value: Any) -> bool:
    """What a package of ours lists, other than verbs."""
    called = inspect.isclass(value) or inspect.isfunction(value)
    return called and name in module.__all__ and name not in _VERBS


def _torchvision_model(module: ModuleType, name: str, value: Any) -> bool:
    from torchvision.models import get_model_builder, list_models

    return name in list_models() and get_model_builder(name) is value


def _network(module: ModuleType, name: str, value: Any) -> bool:
    """Modules, and functions that say that they return one."""
    import torch

    if inspect.isfunction(value):
        try:
            value = typing.get_type_hints(value).get("return")
        except (NameError, TypeError):
            return False
    return inspect.isclass(value) and issubclass(value, torch.nn.Module)


def _monai_transform(module: ModuleType, name: str, value: Any) -> bool:
    writes = ("Save", "Write")
    return _of("monai.transforms.Transform")(module, name, value) and not name.startswith(writes)


def _monai_data(module: ModuleType, name: str, value: Any) -> bool:
    kinds = ("Dataset", "DataLoader", "Sampler")
    of_torch = _of(*(f"torch.utils.data.{kind}" for kind in kinds), "monai.data.ImageReader")
    listed = ("load_decathlon_datalist", "list_data_collate", "pad_list_data_collate")
    return name in listed or of_torch(module, name, value)


PLACES: Mapping[str, Kind] = {
    "ppl_med.models": _public,
    "ppl_med.inference": _public,
    "ppl_med.networks": _public,
    "ppl_med.weights": _public,
    "ppl_med.likelihoods": _public,
    "ppl_med.data": _public,
    "torch.nn": _of("torch.nn.Module"),
    "torch.optim": _of("torch.optim.Optimizer"),
    "torch.distributions": _of("torch.distributions.Distribution"),
    "torch.utils.data": _of(
        "torch.utils.data.DataLoader", "torch.utils.data.Dataset", "torch.utils.data.Sampler"
    ),
    "pyro.distributions": _of("torch.distributions.Distribution"),
    "pyro.infer.autoguide": _of("pyro.infer.autoguide.AutoGuide"),
    "torchvision.models": _torchvision_model,
    "torchvision.models.segmentation": _torchvision_model,
    "torchvision.models.video": _torchvision_model,
    "torchvision.transforms.v2": _of("torchvision.transforms.v2.Transform"),
    "monai.networks.nets": _network,
    "monai.networks.blocks": _network,
    "monai.transforms": _monai_transform,
    "monai.data": _monai_data,
}


def check_allowed(allow: Iterable[str]) -> tuple[str, ...]:
    """The modules that the user allows, once they are names of the user's own, or ``SENDERS``.

    Raises:
        ValueError: If one is another part of Python, or of a package in ``PLACES``.
    """
    modules = different_names("allow", [allow] if isinstance(allow, str) else list(allow), least=0)
    for module in modules:
        if module in SENDERS:
            continue
        root = module.split(".")[0]
        if root in sys.stdlib_module_names or root in {place.split(".")[0] for place in PLACES}:
            raise ValueError(
                f"allow names {module}; name modules of your own, or {' or '.join(SENDERS)}: what "
                "is allowed of Python, torch, torchvision, monai and ppl_med is a fixed list: "
                f"{', '.join(PLACES)}"
            )
    return modules


def resolve(name: Any, allow: Iterable[str] = (), where: str = "name") -> Any:
    """The class or function of a name.

    Args:
        name: ``<place>.<Name>``.
        allow: Modules of the user's own, in which every public class and function may be named.
        where: What the name stands for, for messages.

    Raises:
        ValueError: If it is no such name, or of a place that nobody allowed, or sends something
            elsewhere and nobody allowed it.
    """
    if not isinstance(name, str) or not name.isascii():
        raise ValueError(f"{where} must be a name such as torch.nn.Linear, got {name!r}")
    place, _, last = name.rpartition(".")
    within = (one for one in check_allowed(allow) if place == one or place.startswith(f"{one}."))
    own = next(within, "")
    if not own and place not in PLACES:
        root = name.split(".")[0]
        advice = nearest(name, _near(name)) or nearest(name, [f"{one}.{last}" for one in PLACES])
        if root not in {one.split(".")[0] for one in PLACES}:
            advice = f"; if {root} is a module of yours, allow it: --allow {root}"
        raise ValueError(
            f"{where} names {name}, which is not in a place that may be named "
            f"({', '.join(PLACES)}){advice}"
        )
    if name in SENDERS and name not in check_allowed(allow):
        raise ValueError(
            f"{where} names {name}, which sends the figures of the training elsewhere; if that is "
            f"meant, allow it: --allow {name}"
        )
    module = importlib.import_module(place)
    value = None if last.startswith("_") else getattr(module, last, None)
    if value is None or not _fits(module, place, last, value, own):
        raise ValueError(
            f"{where} names {name}, which {place} does not have, or not as what a file may name"
            + nearest(
                name, [f"{place}.{one}" for one in names_in(module, place, own)] + _near(name)
            )
        )
    return value


def names_in(module: ModuleType, place: str, own: str = "") -> list[str]:
    """Names of a place that may be used; ``own`` is the allowed module that the place lies in."""
    return _listed(module, place, own) if own else _listed_once(module, place)


@functools.cache
def _listed_once(module: ModuleType, place: str) -> list[str]:
    return _listed(module, place, "")


def _listed(module: ModuleType, place: str, own: str) -> list[str]:
    public = (name for name in dir(module) if not name.startswith("_"))
    found = {name: getattr(module, name, None) for name in public}
    return [
        name
        for name, value in found.items()
        if value is not None and _fits(module, place, name, value, own)
    ]


def _fits(module: ModuleType, place: str, name: str, value: Any, own: str) -> bool:
    home = getattr(value, "__module__", None) or ""
    if own:
        here = home == own or home.startswith(f"{own}.")
        return here and (inspect.isclass(value) or inspect.isfunction(value))
    roots = {place.split(".")[0]} | ({"torch"} if place.startswith("pyro.") else set())
    return home.split(".")[0] in roots and PLACES[place](module, name, value)


def _near(name: str) -> list[str]:
    """Names of the same root that end alike, in places that are imported already."""
    root, last = name.split(".")[0], name.rpartition(".")[2]
    return [
        f"{place}.{last}"
        for place in PLACES
        if place.split(".")[0] == root
        and (module := sys.modules.get(place)) is not None
        and last in names_in(module, place)
    ]


def _attribute(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
