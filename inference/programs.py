"""Reading a program: its arguments, its sites, which of them are observations."""

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


def select_arguments(program: Program, batch: Batch) -> dict[str, Any]:
    """The entries of a batch that the program takes as arguments."""
    names = argument_names(program)
    chosen = {name: batch[name] for name in names if name in batch}
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
    return {
        name: node
        for name, node in trace.nodes.items()
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
