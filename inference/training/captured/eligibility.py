"""Whether the step of a run can be captured, said before any training."""

from collections.abc import Mapping
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_med.checks import reject
from ppl_med.inference.training.objectives import Elbo, Geco
from ppl_med.programs.parameters import parts_of
from ppl_med.programs.sites import Program, select_arguments, to_device

DEVICES = ("cuda",)
EAGER = "or pass capture=False"


def check_run(capture: Any, device: torch.device, accumulate: int, objective: Any) -> bool:
    """``capture`` of ``fit``, where the other arguments allow it.

    Raises:
        ValueError: If it is no bool, or they do not.
    """
    if not isinstance(capture, bool):
        reject("capture", "True or False", capture)
    if not capture:
        return False
    if device.type not in DEVICES:
        reject("capture", f"False on the device {str(device)!r}", True, "only a GPU captures steps")
    if accumulate != 1:
        reject("accumulate", "1 with capture=True", accumulate, f"use larger batches, {EAGER}")
    if type(objective) not in (Elbo, Geco):
        rule, shown = "Elbo() or Geco(...) with capture=True", type(objective).__name__
        reject("objective", rule, shown, f"others count steps on the host; {EAGER}")
    return True


def check_alone(ranks: int, *, capture: bool, compile_nets: bool = False) -> None:
    """Raise a ValueError where several processes train together, or with both at once."""
    for name, asked in {"capture": capture, "compile_nets": compile_nets}.items():
        if asked and ranks > 1:
            reject(name, "False in several processes", True, "their gradients are sent between")
    if capture and compile_nets:
        reject("compile_nets", "False with capture=True", True, "one of the two")


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise a ValueError where an optimizer needs numbers of the host in its steps."""
    if not all("capturable" in group for group in optimizer.param_groups):
        shown = type(optimizer).__name__
        rule = "one of torch's that has the option capturable, with capture=True"
        reject("optimizer", rule, shown, f"such as Adam, AdamW, RMSprop or NAdam, {EAGER}")


def check_programs(
    model: Program,
    guide: Program,
    batch: Mapping[str, Any],
    num_cases: int,
    device: torch.device,
) -> None:
    """Raise where a batch holds more than tensors, or where a plate draws a part of its cases.

    Args:
        model: The model.
        guide: The guide, once both have run.
        batch: A batch.
        num_cases: Size of the data set.
        device: Where they run.

    Raises:
        ValueError: It does.
    """
    values = to_device(select_arguments(model, batch), device)
    for name, value in values.items():
        if not isinstance(value, Tensor):
            rule = f"tensors only with capture=True: {name!r} would stay as in the first batch"
            reject("batches", rule, type(value).__name__, EAGER)
    with torch.no_grad():
        drawn = poutine.trace(guide).get_trace(**values, num_cases=num_cases)
        replayed = poutine.replay(model, trace=drawn)
        traces = [drawn, poutine.trace(replayed).get_trace(**values, num_cases=num_cases)]
    for trace in traces:
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or not site_is_subsample(site):
                continue
            law: Any = site["fn"]
            if law.subsample_size is not None and law.subsample_size < law.size:
                raise ValueError(
                    f"capture must be False with the plate {name!r}, which draws "
                    f"{law.subsample_size} of {law.size} entries anew in every step; pass "
                    f"subsample=<a tensor of the batch> to the plate, {EAGER}"
                )


def generators_of(model: Program, guide: Program) -> list[torch.Generator]:
    """Generators of a GPU that parts of programs keep as attributes: each once."""
    parts = [*parts_of(model), *parts_of(guide)]
    values = {id(value): value for part in parts for value in vars(part).values()}
    drawing = (value for value in values.values() if isinstance(value, torch.Generator))
    return [generator for generator in drawing if generator.device.type == "cuda"]
