"""Networks compiled by ``torch.compile`` as functions of their drawn weights, while a block runs.

Only the network is compiled: the Pyro program around it stays as it is, and draws its weights
before. That holds for weights that a whole batch shares; estimators that give every example weights
of its own draw inside the layers.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ppl_med.weights.tied_parameters import Ties, call_with, under_all_names

BACKEND = "inductor"
# By id of a network: what it was compiled for, and the compiled function.
Compiled = dict[int, tuple[Any, Callable[..., Any]]]
_compiled: ContextVar[Compiled | None] = ContextVar("compiled", default=None)


@contextmanager
def compiled_nets() -> Iterator[Compiled]:
    """Compile networks that run in the block with gradients; yield those that were."""
    found: Compiled = {}
    token = _compiled.set(found)
    try:
        yield found
    finally:
        _compiled.reset(token)


def asked_to_compile(net: nn.Module) -> bool:
    """Whether a network is to be compiled: it trains, in a block of ``compiled_nets``."""
    return _compiled.get() is not None and net.training and torch.is_grad_enabled()


def compiled_call(
    net: nn.Module,
    values: Mapping[str, Tensor],
    inputs: Sequence[Any],
    options: Mapping[str, Any],
    ties: Ties,
) -> Any:
    """As ``call_with``, compiled; inputs of other shapes than the first run as they are.

    Raises:
        ValueError: If the network cannot be compiled.
    """
    from torch._dynamo.exc import TorchDynamoException

    found = _compiled.get()
    assert found is not None
    shapes = [_shape(one) for one in inputs], {n: _shape(one) for n, one in options.items()}
    if id(net) not in found:
        compiled = torch.compile(
            lambda views, images, named: functional_call(
                net, views, images, named, tie_weights=False
            ),
            fullgraph=True,
            dynamic=False,
            backend=BACKEND,
        )
        found[id(net)] = (shapes, compiled)
    known, compiled = found[id(net)]
    if known != shapes:
        return call_with(net, values, inputs, options, ties)
    try:
        with warnings.catch_warnings():  # the tracer asks drawn weights for a .grad
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            return compiled(under_all_names(values, ties), tuple(inputs), dict(options))
    except TorchDynamoException as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ValueError(
            f"compile_nets must be False with {type(net).__name__}, which torch.compile cannot "
            f"compile on this machine: {(lines or [type(error).__name__])[0]}"
        ) from error


def _shape(value: Any) -> Any:
    """What a compiled function is for: a tensor's shape and type, the value of anything else."""
    return (value.shape, value.dtype) if isinstance(value, Tensor) else value
