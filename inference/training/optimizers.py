"""The optimizer of a run: Adam, or what a user's function makes of the parameters."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_med.checks import reject
from ppl_med.programs.parameters import free_parameters, named_modules_of
from ppl_med.programs.sites import Program

Factory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
EXAMPLE = "pass a function, such as lambda parameters: torch.optim.SGD(parameters, lr=0.1)"


def check_factory(optimizer: Any) -> None:
    """Raise where ``optimizer`` of ``fit`` is no function of the parameters.

    Raises:
        ValueError: If it is an optimizer, or nothing that can be called.
    """
    if optimizer is not None and not callable(optimizer):
        shown = type(optimizer).__name__
        reject("optimizer", "a function from parameters to a torch optimizer", shown, EXAMPLE)


def make_optimizer(
    factory: Factory | None,
    learning_rate: float,
    parameters: Sequence[Tensor],
    pair: tuple[Program, Program],
) -> torch.optim.Optimizer:
    """The optimizer of a model's and a guide's parameters.

    Args:
        factory: The user's function; None for Adam.
        learning_rate: Of Adam.
        parameters: All that are to be trained.
        pair: Model and guide they belong to, which name them.

    Raises:
        ValueError: If it is no optimizer, its steps need a closure, or it lacks a parameter.
    """
    if factory is None:
        return torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    own = factory(list(parameters))  # type: ignore[arg-type]
    if not isinstance(own, torch.optim.Optimizer):
        reject("optimizer(parameters)", "a torch optimizer", type(own).__name__, EXAMPLE)
    closure = inspect.signature(own.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer {type(own).__name__} evaluates the loss several times a step (a closure), "
            "which draws other weights each time; use an optimizer of one gradient a step"
        )
    held = {id(p) for group in own.param_groups for p in group["params"]}
    missing = [parameter for parameter in parameters if id(parameter) not in held]
    if missing:
        raise ValueError(
            f"optimizer {type(own).__name__} lacks {len(missing)} of the {len(parameters)} "
            f"parameters of model and guide, such as {_name(missing[0], *pair)}, which would never "
            "be trained; build it from the list that the function is given, and switch off what is "
            "not to be trained by requires_grad_(False)"
        )
    for group in own.param_groups:  # numbers of NumPy are not read back from a checkpoint
        group.update({n: v.item() for n, v in group.items() if isinstance(v, np.generic)})
    return own


def _name(parameter: Tensor, model: Program, guide: Program) -> str:
    for role, program in (("guide", guide), ("model", model)):
        for reached, module in named_modules_of(program).items():
            for name, known in module.named_parameters():
                if known is parameter:
                    return f"{'.'.join(filter(None, (reached, name)))!r} of the {role}"
    free = free_parameters(model, guide)
    return next((f"{n!r} (pyro.param)" for n, v in free.items() if v is parameter), "one")
