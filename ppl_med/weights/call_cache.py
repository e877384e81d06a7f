"""Run once what no latent changes: the deterministic part of a program, while it is drawn from.

``predict`` runs a program once a draw on the same batch. A network of the image alone gives the
same output every time; called through ``cached_call``, it runs once a batch:

    features = cached_call(self.backbone, image)

Outside ``predict`` and in training, ``cached_call(net, *inputs)`` is ``net(*inputs)``.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from operator import attrgetter
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ppl_med.moved import renamed
from ppl_med.weights.random_weights import RandomWeights

Kept = dict[tuple[int | str, ...], tuple[Any, ...]]
_version = attrgetter("_version")
_kept: ContextVar[Kept | None] = ContextVar("kept", default=None)


@contextlib.contextmanager
def caching() -> Iterator[None]:
    """Keep outputs of ``cached_call`` until the block is left."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def cached_call(net: Callable[..., Any], *inputs: Tensor) -> Any:
    """``net(*inputs)``, run once for the same tensors inside a ``caching`` block.

    A network is run every time while it trains, while gradients are recorded, in torch's inference
    mode, which does not tell whether a tensor was changed in place, and if it draws random numbers
    of a program itself (``RandomWeights``, ``PyroModule``). It is run anew where its inputs, its
    parameters and buffers, or the output that it gave were changed in place since, as an activation
    with ``inplace=True`` behind it does.

    Args:
        net: A deterministic network, or a method of one.
        inputs: Its inputs; the same tensor objects mean the same call.

    Raises:
        TypeError: If ``net`` is neither.
    """
    owner: Any = getattr(net, "__self__", net)  # a bound method is made anew each time it is read
    if not isinstance(owner, nn.Module):
        raise TypeError(
            f"net must be a torch.nn.Module or a method of one, got {net!r}; call it as it is"
        )
    kept = _kept.get()
    if kept is None or torch.is_grad_enabled() or any(value.is_inference() for value in inputs):
        return net(*inputs)
    if owner.training:
        return net(*inputs)
    name = getattr(net, "__name__", "")
    key = (id(owner), name, *(n for value in inputs for n in (id(value), value._version)))
    if key in kept:
        output, tables, versions, *_ = kept[key]
        if _versions(_tensors(tables, output)) == versions:
            return output
    output = net(*inputs)
    tables = _tables(owner)
    tensors = _tensors(tables, output)
    if not (_draws(owner) or any(value.is_inference() for value in tensors)):
        # All tensors are kept: the id of one that is gone may be given to another.
        kept[key] = (output, tables, _versions(tensors), net, inputs, tensors)
    return output


def _tables(net: nn.Module) -> list[Mapping[str, Tensor | None]]:
    """Where the modules of a network hold their parameters and buffers.

    They are kept: to walk through a network takes a tenth of drawing a mask of a small image.
    """
    each = (table for part in net.modules() for table in (part._parameters, part._buffers))
    return [table for table in each if table]


def _tensors(tables: list[Mapping[str, Tensor | None]], output: Any) -> list[Tensor]:
    """What a network and its output are made of."""
    found = [value for table in tables for value in table.values() if value is not None]
    return found + [value for value in tree_leaves(output) if isinstance(value, Tensor)]


def _versions(tensors: list[Tensor]) -> list[int]:
    """Which tensors these are, and how often each was changed."""
    return [*map(id, tensors), *map(_version, tensors)]


def _draws(net: nn.Module) -> bool:
    return any(isinstance(module, RandomWeights | PyroModule) for module in net.modules())


__getattr__ = renamed(__name__, {"once": "cached_call", "reuse": "caching"})
