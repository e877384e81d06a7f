"""Reading a program: its arguments, its sites, which of them are observations."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

Program = Callable[..., Any]
Batch = Mapping[str, Any]


def argument_names(program: Program) -> list[str]:
    """Names of a program's arguments (of ``forward`` for modules)."""
    function = program.forward if isinstance(program, nn.Module) else program
    return list(inspect.signature(function).parameters)


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
        with contextlib.suppress(ValueError):  # a name that is not bound yet
            names[name] = cell.cell_contents
    return names


def takes_num_cases(program: Program) -> bool:
    """Whether a program has the keyword ``num_cases``."""
    function = program.forward if isinstance(program, nn.Module) else program
    parameters = inspect.signature(function).parameters
    return "num_cases" in parameters or any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def describe(inputs: Mapping[str, Any]) -> str:
    """Names and shapes of a batch's arguments, for messages."""
    return ", ".join(
        f"{name} {tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else name
        for name, value in inputs.items()
    )


def select_arguments(program: Program, batch: Batch) -> dict[str, Any]:
    """The entries of a batch that the program takes as arguments; None counts as absent."""
    names = argument_names(program)
    chosen = {name: batch[name] for name in names if batch.get(name) is not None}
    if not chosen:
        raise ValueError(
            f"the batch has the keys {sorted(batch)}, none of which is an argument of the model "
            f"({names}); name the batch's entries as the model names its arguments"
        )
    return chosen


def to_device(values: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Tensors of a dict on the device; anything else as it is."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in values.items()
    }


def batch_size(values: Mapping[str, Any]) -> int:
    """Number of cases in a batch: the length of its first tensor."""
    return next(len(value) for value in values.values() if isinstance(value, Tensor))


def sample_sites(trace: poutine.Trace) -> dict[str, dict[str, Any]]:
    """Sample sites of a trace without the plates' own subsampling sites."""
    nodes: dict[str, Any] = dict(trace.nodes)
    return {
        name: node
        for name, node in nodes.items()
        if node["type"] == "sample" and not site_is_subsample(node)
    }


def is_local(node: Mapping[str, Any]) -> bool:
    """Whether a site has one value per case."""
    return any(frame.name == "case" for frame in node["cond_indep_stack"])


def full_name(program: Program) -> str:
    """How a program is named in results."""
    named = program if inspect.isfunction(program) else type(program)
    return str(getattr(named, "__qualname__", named))


def without_observations(program: Program, inputs: dict[str, Any]) -> dict[str, Any]:
    """Leave out the arguments that condition an observation site.

    Args:
        program: The model.
        inputs: A batch's arguments, observations among them.
    """
    with torch.no_grad():
        sites = sample_sites(poutine.trace(program).get_trace(**inputs))
    return {name: value for name, value in inputs.items() if name not in sites}


def has_graders(values: Mapping[str, Any]) -> bool:
    """Whether a batch's masks have an axis of graders: as many axes as its images."""
    image, mask = values.get("image"), values.get("mask")
    return isinstance(image, Tensor) and isinstance(mask, Tensor) and mask.dim() == image.dim()


def first_grader(values: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with one annotation a case, for learning what a program does with it."""
    return {**values, "mask": values["mask"][:, 0]} if has_graders(values) else dict(values)


def check_one_grader(values: Mapping[str, Any]) -> None:
    """Raise where masks have an axis of graders, each of whom is an observation of its own.

    Raises:
        ValueError: Says how to give one annotation a case.
    """
    if has_graders(values):
        raise ValueError(
            f"mask has shape {tuple(values['mask'].shape)}, an axis of graders; to train and to "
            "validate, give one annotation a case: data.one_grader_per_case(arrays), or "
            "Batches(..., transform=random_grader)"
        )
