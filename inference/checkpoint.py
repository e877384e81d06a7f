"""Saving and loading what was learned: atomic files of plain tensors, never unpickled code."""

import contextlib
import errno
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_med.inference.ensemble import members_of
from ppl_med.inference.programs import Program, full_name

FORMAT = 1
Shapes = dict[str, list[int]]


def program_state(model: Program, guide: Program) -> dict[str, Any]:
    """All tensors of a model and a guide, and those in Pyro's parameter store beside them."""
    state: dict[str, Any] = {"model": {}, "guide": {}, "store": {}}
    known: set[int] = set()
    for key, program in (("model", model), ("guide", guide)):
        if isinstance(program, nn.Module):
            state[key] = program.state_dict()
            known |= {id(parameter) for parameter in program.parameters()}
    store = pyro.get_param_store()
    state["store"] = {
        name: value.detach()
        for name, value in ((n, store[n].unconstrained()) for n in store.keys())
        if id(value) not in known
    }
    return state


def load_program_state(model: Program, guide: Program, state: Mapping[str, Any]) -> None:
    """Copy saved tensors into a model, a guide and Pyro's parameter store."""
    for key, program in (("model", model), ("guide", guide)):
        if isinstance(program, nn.Module):
            program.load_state_dict(state[key])
    store = pyro.get_param_store()
    with torch.no_grad():
        for name, value in state["store"].items():
            if name not in store:
                raise ValueError(
                    f"the checkpoint holds the parameter {name!r} of Pyro's store, which does not "
                    "exist yet: run the program once on a batch before loading"
                )
            store[name].unconstrained().copy_(value)


def fingerprint(model: Program, guide: Program) -> dict[str, Any]:
    """Class names and tensor shapes, by which a checkpoint of another program is recognised."""
    shapes: dict[str, Shapes] = {}
    for key, program in (("model", model), ("guide", guide)):
        tensors = program.state_dict() if isinstance(program, nn.Module) else {}
        shapes[key] = {n: list(v.shape) for n, v in tensors.items() if isinstance(v, Tensor)}
    return {"model": full_name(model), "guide": full_name(guide), "shapes": shapes}


def write(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint so that the earlier file stays whole until the new one is complete.

    Raises:
        OSError: If it cannot be written (disk full, no permission); the earlier file is intact.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "enforce fail" in str(error)
        reason = "the disk is full" if full else str(error)
        raise OSError(
            getattr(error, "errno", None) or errno.EIO,
            f"checkpoint {path} could not be written: {reason}; "
            "the earlier checkpoint, if there was one, is intact. Free space or choose another "
            "path, then go on with resume=True",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file is damaged or was not written by ppl_med.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"checkpoint {path} is damaged or no checkpoint ({type(error).__name__}); "
            "delete it, or give the path of an earlier one"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"checkpoint {path} was not written by ppl_med (format {FORMAT} expected)")
    return content


def check_fingerprint(path: str | Path, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise if a checkpoint belongs to another model or guide.

    Raises:
        ValueError: Says what differs.
    """
    for key in ("model", "guide"):
        if saved[key] != own[key]:
            raise ValueError(
                f"checkpoint {path} was written for the {key} {saved[key]}, not for {own[key]}; "
                "build the same one, or give another path"
            )
        theirs, ours = saved["shapes"][key], own["shapes"][key]
        differing = sorted(n for n in theirs.keys() | ours.keys() if theirs.get(n) != ours.get(n))
        if differing:
            name = differing[0]
            raise ValueError(
                f"checkpoint {path} does not fit the {key}: {len(differing)} tensors differ, first "
                f"{name!r} with shape {theirs.get(name)} in the file and {ours.get(name)} here; "
                "build it with the same arguments"
            )


def save(path: str | Path, model: Program, guide: Program) -> None:
    """Save a trained model and guide to one file.

    Args:
        path: File to write; replaced only when the new one is complete.
        model: The model.
        guide: The guide, or an ``Ensemble``.
    """
    pairs = members_of(model, guide)
    write(
        path,
        {
            "fingerprints": [fingerprint(*pair) for pair in pairs],
            "states": [program_state(*pair) for pair in pairs],
        },
    )


def load(path: str | Path, model: Program, guide: Program) -> None:
    """Load what ``save`` or a checkpoint of ``fit`` holds, in place.

    Works on a model and a guide that were never called. Stock AutoGuides and programs that use
    ``pyro.param`` create their parameters on the first call: call the guide once on a batch first.

    Args:
        path: File written by ``save`` or by ``fit(checkpoint=...)``.
        model: A model built as the saved one was.
        guide: Likewise.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or of another model or guide.
    """
    content = read(path)
    pairs = members_of(model, guide)
    if len(content["states"]) != len(pairs):
        raise ValueError(
            f"checkpoint {path} holds {len(content['states'])} member(s), the guide {len(pairs)}; "
            "build the ensemble with the same number of members"
        )
    for saved, pair in zip(content["fingerprints"], pairs, strict=True):
        check_fingerprint(path, saved, fingerprint(*pair))
    for state, pair in zip(content["states"], pairs, strict=True):
        load_program_state(*pair, state)
