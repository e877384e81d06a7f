"""A program in another floating precision for a while, and exactly as it was afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ppl_med.programs.parameters import modules_of
from ppl_med.programs.sites import Program


@contextmanager
def in_precision(model: Program, dtype: torch.dtype) -> Iterator[None]:
    """Run the block with a model's tensors, and new ones, in a floating dtype.

    Args:
        model: Its parameters and buffers are converted; afterwards they are those before.
        dtype: Such as ``torch.float64``.
    """
    parts = [part for module in modules_of(model) for part in module.modules()]
    values = [(p, p.data) for part in parts for p in part.parameters(recurse=False)]
    tables = [(part._buffers, dict(part._buffers)) for part in parts]
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        for module in modules_of(model):
            module.to(dtype)
        yield
    finally:
        torch.set_default_dtype(default)
        for parameter, value in values:
            parameter.data = value
        for table, before in tables:
            table.update(before)
