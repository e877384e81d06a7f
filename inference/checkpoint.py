"""Saving and loading what was learned: atomic files of plain tensors, never unpickled code.

A path that ends in ``.safetensors`` gives a file of that format, any other torch's own.
"""

import hashlib
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_med.checks import a_path, reject
from ppl_med.inference.data_digest import bytes_of
from ppl_med.inference.guides.ensemble import members_of
from ppl_med.inference.tensor_files import SUFFIX, as_safetensors, from_safetensors
from ppl_med.likelihoods.interface import settings_of
from ppl_med.programs import protocol
from ppl_med.programs.isolation import undisturbed
from ppl_med.programs.parameters import (
    free_parameters,
    modules_of,
    named_modules_of,
    parts_of,
    remember_store_names,
)
from ppl_med.programs.sites import Program, full_name, select_arguments, to_device
from ppl_med.storage.atomic import replacing
from ppl_med.weights import Prior

FORMAT = 1
Pairs = list[tuple[Any, Any]]


def program_state(model: Program, guide: Program | None) -> dict[str, Any]:
    """All tensors of a model and a guide, and the free parameters they keep in Pyro's store."""
    state: dict[str, Any] = {
        key: {name: module.state_dict() for name, module in named_modules_of(program).items()}
        for key, program in (("model", model), ("guide", guide))
    }
    free = free_parameters(model, guide)
    state["store"] = {name: value.detach() for name, value in free.items()}
    return state


def load_program_state(model: Program, guide: Program, state: Mapping[str, Any]) -> None:
    """Copy saved tensors into a model, a guide and Pyro's parameter store."""
    for key, program in (("model", model), ("guide", guide)):
        for name, module in named_modules_of(program).items():
            module.load_state_dict(state[key][name])
    free = pyro.get_param_store().get_state()["params"]
    with torch.no_grad():
        for name, value in state["store"].items():
            free[name].copy_(value)
    remember_store_names((model, guide), state["store"])


def named_tensors(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors anywhere inside a state, with the path that leads to each."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from named_tensors(value, f"{name}.{key}" if name and key else f"{name}{key}")


def digest(pairs: Sequence[tuple[Program, Program | None]]) -> str:
    """SHA-256 of the values of all tensors of some programs, by which two fits are told apart."""
    found = hashlib.sha256()
    for model, guide in pairs:
        for name, tensor in named_tensors(program_state(model, guide)):
            found.update(name.encode())
            found.update(bytes_of(tensor))
    return found.hexdigest()


def settings(model: Program) -> str:
    """Priors, likelihoods and other parts of a model, with settings that no shape shows."""
    found: list[str] = []
    for part in parts_of(model):
        if callable(own := getattr(part, "settings", None)):
            found.append(str(own()))
        elif isinstance(getattr(part, "training_loss", None), str):
            found.append(f"{type(part).__name__}({part.training_loss})")
        if isinstance(getattr(part, "prior", None), Prior):
            found.append(settings_of(part.prior))
    return "; ".join(found)


def fingerprint(model: Program, guide: Program) -> dict[str, Any]:
    """Program names and tensor shapes, by which a checkpoint of another program is recognised."""
    shapes = {
        key: {name: list(tensor.shape) for name, tensor in named_tensors(tensors)}
        for key, tensors in program_state(model, guide).items()
    }
    return {"model": full_name(model), "guide": full_name(guide), "shapes": shapes}


def states_of(pairs: Pairs) -> dict[str, Any]:
    """Fingerprints and states of some members, which every checkpoint holds."""
    return {
        "fingerprints": [fingerprint(*pair) for pair in pairs],
        "states": [program_state(*pair) for pair in pairs],
        "trained_for": protocol.trained_for(pairs[0][0]),
    }


def write(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint; the earlier file stays whole until the new one is complete.

    Raises:
        OSError: If it cannot be written (disk full, no permission); the earlier file is intact.
    """
    path = a_path("path", path)
    needed = sum(tensor.nbytes for _, tensor in named_tensors(content))
    advice = "free some space or choose another path, then resume with resume=True"
    with replacing(path, "checkpoint", needed=needed, advice=advice) as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            if path.suffix == SUFFIX:
                file.write(as_safetensors({"format": FORMAT, **content}))
            else:
                torch.save({"format": FORMAT, **content}, file)


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file is damaged or was not written by ppl_med.
    """
    path = a_path("path", path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        content = from_safetensors(path) if path.suffix == SUFFIX else _from_zip(path)
    except (
        *(EOFError, KeyError, OSError, RuntimeError, ValueError),
        *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, NotImplementedError),
    ) as error:
        raise ValueError(
            f"checkpoint {path} is damaged or no checkpoint ({type(error).__name__}); "
            "delete it, or give the path of an earlier one"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"checkpoint {path} was not written by ppl_med (format {FORMAT} expected)")
    return content


def _from_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} has a wrong checksum")
    return torch.load(path, map_location="cpu", weights_only=True)


def check_members(path: Any, content: Mapping[str, Any], pairs: Pairs) -> None:
    """Raise a ValueError where a checkpoint belongs to other models or guides."""
    if len(content["states"]) != len(pairs):
        raise ValueError(
            f"checkpoint {path} holds {len(content['states'])} member(s), the guide {len(pairs)}; "
            "build the ensemble with the same number of members"
        )
    for saved, pair in zip(content["fingerprints"], pairs, strict=True):
        _check_fingerprint(path, saved, fingerprint(*pair))
    ours = protocol.trained_for(pairs[0][0])
    for name, value in content.get("trained_for", {}).items():
        if ours.get(name) != value:
            raise ValueError(
                f"checkpoint {path} was written with {name}={value!r}, but the model here has "
                f"{name}={ours.get(name)!r}; build it with the same"
            )


def _check_fingerprint(path: Any, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    for key in ("model", "guide"):
        if saved[key] != own[key]:
            raise ValueError(
                f"checkpoint {path} was written for the {key} {saved[key]}, not for {own[key]}; "
                "build the same one, or give another path"
            )
    for key in ("model", "guide", "store"):
        theirs, ours = saved["shapes"][key], own["shapes"][key]
        differing = sorted(n for n in theirs.keys() | ours.keys() if theirs.get(n) != ours.get(n))
        if key == "store":  # what other programs left in the store is no concern of this one
            differing = [name for name in differing if name in theirs]
        if not differing:
            continue
        name = differing[0]
        advice = "build it with the same arguments"
        if all(n not in ours for n in differing):
            advice += (
                "; a stock AutoGuide, or a program that uses pyro.param, makes its parameters when "
                "it first runs: pass example=a batch to load, which runs it"
            )
        raise ValueError(
            f"checkpoint {path} does not fit the {key}: {len(differing)} tensors differ, first "
            f"{name!r} with shape {theirs.get(name)} in the file and {ours.get(name)} here; "
            + advice
        )


def load_members(content: Mapping[str, Any], pairs: Pairs) -> None:
    """Copy a checkpoint's tensors, once ``check_members`` has passed, into models and guides."""
    for state, pair in zip(content["states"], pairs, strict=True):
        load_program_state(*pair, state)


def save(path: str | Path, model: Program, guide: Program) -> None:
    """Save a trained model and guide to one file.

    Args:
        path: File to write, such as ``"run.safetensors"`` or ``"run.pt"``; replaced only when the
            new one is complete.
        model: The model.
        guide: The guide, or an ``Ensemble``.

    Raises:
        OSError: If it cannot be written (disk full, no permission); an earlier file is intact.
    """
    write(path, states_of(members_of(model, guide)))


def load(
    path: str | Path, model: Program, guide: Program, *, example: Mapping[str, Any] | None = None
) -> None:
    """Load what ``save`` or a checkpoint of ``fit`` holds, in place.

    Works on a model and a guide that were never called. Stock AutoGuides and programs that use
    ``pyro.param`` create their parameters when they first run; for these, pass an example.

    Args:
        path: File written by ``save`` or by ``fit(checkpoint=...)``.
        model: A model built as the saved one was.
        guide: Likewise.
        example: A batch to run the two on before loading.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or of another model or guide.
    """
    if example is not None and not (isinstance(example, Mapping) and example):
        reject("example", "a batch, such as {'image': Tensor}", example)
    content = read(path)
    pairs = members_of(model, guide)
    if example is not None:
        for pair in pairs:
            _run_once(*pair, example)
    check_members(path, content, pairs)
    _check_apart(pairs)
    load_members(content, pairs)


def _run_once(model: Program, guide: Program, example: Mapping[str, Any]) -> None:
    """Let a model and its guide make their parameters."""
    devices = [p.device for module in modules_of(model, guide) for p in module.parameters()]
    values = to_device(select_arguments(model, example), (devices or [torch.device("cpu")])[0])
    with undisturbed(model, guide), pyro.validation_enabled(False):
        for program in (guide, model):
            poutine.trace(program).get_trace(**values)


def _check_apart(pairs: Pairs) -> None:
    one_model = len({id(model) for model, _ in pairs}) == 1  # whose draws are in several chains
    found = [modules_of(guide if one_model else model, guide) for model, guide in pairs]
    owners = [{id(p) for module in own for p in module.parameters()} for own in found]
    if sum(map(len, owners)) > len(set().union(*owners)):
        raise ValueError(
            "members of the Ensemble share parameters: Pyro's store gave one guide's to the next "
            "when they first ran; build the Ensemble anew and pass example=a batch to load"
        )
