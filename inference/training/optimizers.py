"""The optimizer of a run: Adam, or what a user's function makes of the parameters."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_med.checks import reject
from ppl_med.inference.training.natural_gradient import VariationalOnlineNewton, refuse_rates
from ppl_med.inference.training.parameter_groups import Groups, Rates
from ppl_med.programs.parameters import free_parameters, named_modules_of
from ppl_med.programs.sites import Program

Factory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
EXAMPLE = "pass a function, such as lambda parameters: torch.optim.SGD(parameters, lr=0.1)"


def check_factory(optimizer: Any) -> None:
    """Raise where ``optimizer`` of ``fit`` is no function of the parameters.

    Raises:
        ValueError: If it is an optimizer, or nothing that can be called.
    """
    known = optimizer is None or isinstance(optimizer, VariationalOnlineNewton)
    if not (known or callable(optimizer)):
        shown = type(optimizer).__name__
        reject("optimizer", "a function from parameters to a torch optimizer", shown, EXAMPLE)


def make_optimizer(
    factory: Factory | VariationalOnlineNewton | None,
    learning_rate: Rates,
    groups: Groups,
    pair: tuple[Program, Program],
    num_cases: int,
) -> torch.optim.Optimizer:
    """The optimizer of a model's and a guide's parameters.

    Args:
        factory: The user's function; None for Adam.
        learning_rate: Of Adam; where it has several rates, the function is given groups.
        groups: All that is to be trained.
        pair: Model and guide they belong to, which name them.
        num_cases: Size of the data set.

    Raises:
        ValueError: If it is no optimizer, its steps need a closure, or it lacks a parameter.
    """
    several = isinstance(learning_rate, Mapping)
    parameters = groups.parameters
    given: Any = groups.trained if several else parameters
    if factory is None:
        if isinstance(learning_rate, Mapping):
            return torch.optim.Adam(given, fused=True)
        return torch.optim.Adam(given, lr=learning_rate, fused=True)
    if isinstance(factory, VariationalOnlineNewton):
        refuse_rates(learning_rate)
        return factory.build(parameters, pair[1], num_cases)
    own = factory(list(given))
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
    rates = {group["lr"] for group in groups.trained} if several else set()
    if not rates <= {group.get("lr") for group in own.param_groups}:
        raise ValueError(
            f"optimizer {type(own).__name__} does not use the rates of learning_rate; pass the "
            "groups that the function is given on: lambda groups: torch.optim.SGD(groups)"
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
