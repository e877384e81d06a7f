"""Run a network with other values for its parameters, each put back afterwards.

``torch.func.functional_call`` replaces a parameter once under every name it has. Where a module is
used twice or sits under two names (``Sequential(l, ReLU(), l)``, MONAI's DynUNet), the second
replacement saves the first one's value as the original, so that the net keeps the drawn values.
Here a parameter is replaced once in every module that holds it, at half of the cost: of a small
network, which runs once a draw and batch, that is a twentieth of the run.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor, nn

Ties = Mapping[str, Sequence[str]]


def tied_names(net: nn.Module) -> dict[str, list[str]]:
    """First name of every parameter or buffer that several modules share, with its other names."""
    names: dict[int, list[str]] = {}
    for name, value in _held(net):
        names.setdefault(id(value), []).append(name)
    return {first: others for first, *others in names.values() if others}


def call_with(
    net: nn.Module,
    values: Mapping[str, Tensor],
    inputs: Sequence[Any],
    options: Mapping[str, Any] | None = None,
    ties: Ties | None = None,
) -> Any:
    """``net(*inputs, **options)`` with some parameters and buffers replaced while it runs.

    Args:
        net: A network.
        values: By name, the first where there are several, as ``named_parameters`` gives it.
        inputs: Positional arguments.
        options: Keyword arguments.
        ties: ``tied_names(net)``, if known: looking for them costs more than a layer.

    Raises:
        KeyError: If the network has no parameter or buffer of such a name.
    """
    full = under_all_names(values, tied_names(net) if ties is None else ties)
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for name, value in full.items():
            path, short = _steps(name)
            module: Any = net
            for step in path:
                module = module._modules[step]
            table = module._parameters if short in module._parameters else module._buffers
            replaced.append((table, short, table[short]))
            table[short] = value
        return net(*inputs, **(options or {}))
    finally:
        for table, short, before in reversed(replaced):
            table[short] = before


def under_all_names(values: Mapping[str, Tensor], ties: Ties) -> dict[str, Tensor]:
    """Values by every name that their parameter has, for ``functional_call``."""
    again = {other: values[n] for n, others in ties.items() if n in values for other in others}
    return {**values, **again}


@cache
def _steps(name: str) -> tuple[tuple[str, ...], str]:
    """Modules on the way to a parameter, and its own name."""
    *path, short = name.split(".")
    return tuple(path), short


def _held(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers with every module that holds them, each module once."""
    for path, module in net.named_modules():
        for table in (module._parameters, module._buffers):
            for short, value in table.items():
                if value is not None:
                    yield (f"{path}.{short}" if path else short), value
