"""Learning rates by name: backbone and head at paces of their own, and parts that are frozen.

A parameter bears the name that it has in the model, such as ``network.net.layer1.0.conv1.weight``.
Random weights lie in one vector of the guide, and bear the names of the net's parameters that they
stand for: a pattern means the same layer whether its weights are random or not. Other parameters of
the guide are ``guide.`` and their name in it.
"""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ppl_med.checks import finite, positive, reject
from ppl_med.inference.guides.weight_guide import WeightGuide
from ppl_med.programs.parameters import free_parameters, named_modules_of
from ppl_med.programs.sites import Program
from ppl_med.weights import RandomWeights

SHOWN = 8
Rates = float | Mapping[str, float]


@dataclass
class Groups:
    """Parameters by learning rate.

    Attributes:
        trained: Groups for a torch optimizer: ``params`` and, where rates differ, ``lr``.
        shares: Of vectors whose entries have different rates: the vector, and the factor on its
            group's rate for each entry, dims as the vector's or broadcast to it.
        frozen: Parameters that do not learn.
    """

    trained: list[dict[str, Any]]
    shares: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    frozen: list[Tensor] = field(default_factory=list)

    @property
    def parameters(self) -> list[Tensor]:
        """All that are trained."""
        return [parameter for group in self.trained for parameter in group["params"]]


def check_rates(learning_rate: Any) -> None:
    """Raise a ``ValueError`` where learning rates are no numbers above 0, or a dict of none."""
    if not isinstance(learning_rate, Mapping):
        positive("learning_rate", learning_rate)
        return
    if not learning_rate or not all(isinstance(pattern, str) for pattern in learning_rate):
        example = "such as {'*layer4*': 1e-4, '*': 1e-3}"
        reject("learning_rate", "a number, or rates by pattern", dict(learning_rate), example)
    for pattern, rate in learning_rate.items():
        finite(f"learning_rate[{pattern!r}]", rate, least=0)


def group_parameters(
    learning_rate: Rates, parameters: Sequence[Tensor], pair: tuple[Program, Program]
) -> Groups:
    """Sort parameters by the first pattern that fits their names.

    Args:
        learning_rate: One rate, or rates by pattern; 0 freezes.
        parameters: All that could be trained.
        pair: Model and guide, which name them.

    Raises:
        ValueError: If a pattern fits no name, or a name fits no pattern; if nothing is trained.
    """
    if not isinstance(learning_rate, Mapping):
        return Groups([{"params": list(parameters)}])
    names = names_of(pair)
    used: set[str] = set()
    groups: dict[float, list[Tensor]] = {}
    found = Groups([])
    for parameter in parameters:
        parts = names.get(id(parameter), [("", parameter.numel())])
        rates = [_rate(name, learning_rate, used) for name, _ in parts]
        highest = max(rates)
        if highest == 0:
            found.frozen.append(parameter)
            continue
        groups.setdefault(highest, []).append(parameter)
        if min(rates) < highest:
            pieces = [
                parameter.new_full((size,), rate / highest)
                for rate, (_, size) in zip(rates, parts, strict=True)
            ]
            share = torch.cat(pieces)
            found.shares.append((parameter, share.reshape(-1, *[1] * (parameter.dim() - 1))))
    unused = [pattern for pattern in learning_rate if pattern not in used]
    if unused:
        known = [name for parts in names.values() for name, _ in parts]
        raise ValueError(
            f"learning_rate: the pattern {unused[0]!r} fits no parameter that an earlier pattern "
            f"left; they are {', '.join(map(repr, known[:SHOWN]))}"
            + (f" … ({len(known)} in all)" if len(known) > SHOWN else "")
        )
    if not groups:
        raise ValueError("learning_rate is 0 for all parameters: there is nothing to train")
    found.trained = [{"params": group, "lr": rate} for rate, group in groups.items()]
    return found


def names_of(pair: tuple[Program, Program]) -> dict[int, list[tuple[str, int]]]:
    """By id of each parameter: its name and size, or those of the weights that lie in it."""
    model, guide = pair
    found: dict[int, list[tuple[str, int]]] = {}
    nets: dict[str, str] = {}
    for reached, module in named_modules_of(model).items():
        for name, parameter in module.named_parameters():
            found[id(parameter)] = [(_joined(reached, name), parameter.numel())]
        for path, part in module.named_modules():
            if isinstance(part, RandomWeights):
                nets[part.site] = _joined(reached, path, "net")
    for reached, module in named_modules_of(guide).items():
        for name, parameter in module.named_parameters():
            found.setdefault(id(parameter), [(_joined("guide", reached, name), parameter.numel())])
        for part in module.modules():
            if isinstance(part, WeightGuide):
                found.update(_weights_in(part, nets))
    for name, value in free_parameters(model, guide).items():
        found.setdefault(id(value), [(name, value.numel())])
    return found


def _weights_in(
    guide: WeightGuide, nets: Mapping[str, str]
) -> Iterator[tuple[int, list[tuple[str, int]]]]:
    for site, part in guide.parts.items():
        entries = guide.layout(site).entries
        names = [(_joined(nets.get(site, site), e.name), e.num_weights) for e in entries]
        for parameter in part.parameters(recurse=False):
            if parameter.dim() and len(parameter) == guide.layout(site).num_weights:
                yield id(parameter), names


def _joined(*parts: str) -> str:
    return ".".join(filter(None, parts))


def _rate(name: str, rates: Mapping[str, float], used: set[str]) -> float:
    for pattern, rate in rates.items():
        if fnmatch.fnmatchcase(name, pattern):
            used.add(pattern)
            return float(rate)
    raise ValueError(
        f"learning_rate has no pattern that fits the parameter {name!r}; add a last one for the "
        "rest, such as '*': 1e-3"
    )


def frozen_norms(modules: Sequence[nn.Module], frozen: Sequence[Tensor]) -> list[nn.Module]:
    """Norm layers with running statistics whose own parameters are all frozen: both stand still."""
    still = {id(parameter) for parameter in frozen}
    found = []
    for module in modules:
        for part in module.modules():
            own = list(part.parameters(recurse=False))
            keeps = getattr(part, "running_mean", None) is not None
            if keeps and own and all(id(parameter) in still for parameter in own):
                found.append(part)
    return found
