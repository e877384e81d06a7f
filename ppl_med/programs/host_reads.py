"""Where a program makes the host wait for the device, found on any machine.

What makes the host wait on a GPU is the same operator on the CPU, so a dispatch mode sees it
without one. A step without such operators never stops a GPU's stream, and can be captured.
"""

import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

HOST_READS = {
    "_local_scalar_dense",  # item, bool(tensor), float(tensor)
    "is_nonzero",
    "nonzero",
    "nonzero_numpy",
    "equal",
    "allclose",
    "masked_select",
    "unique_consecutive",
    "unique_dim",
    "_unique",
    "_unique2",
    "bincount",
    "histc",
    "repeat_interleave",
}
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
_WITH_POSITIONS = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
)
# torch's own laws that make a constant whatever they are given.
_WITH_CONSTANTS = ("distributions/chi2.py", "distributions/half_normal.py")


class HostWaits(RuntimeError):
    """A program makes the host wait for the device."""


class NoHostReads(TorchDispatchMode):
    """Raises on operators whose result, or its shape, the host must know."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        space, _, name = func._schema.name.partition("::")
        sized = name == "repeat_interleave" and (kwargs or {}).get("output_size") is not None
        masked = name.startswith(("index", "_index_put")) and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            for index in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())
        )
        # A mask and one number are a masked_fill, as in torch's KL of two categoricals.
        filled = name.startswith(("index_put", "_index_put")) and args[2].numel() == 1
        if space == "aten" and (name in HOST_READS or masked) and not (sized or filled):
            raise HostWaits(f"{name} makes the host wait for the device")
        return func(*args, **(kwargs or {}))


class NoCopies(TorchDispatchMode):
    """Raises where a tensor is copied from a device to the CPU or back: there the host waits.

    torch makes a tensor of a Python number on the CPU first, so it is seen as well; so are
    positions on the CPU, ``x[:, positions]``, which torch copies inside of the operator.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        read: list[Any] = []
        if func in _COPIES:
            read = [args[-1 if func is _COPIES[0] else 1]]
        elif func in _WITH_POSITIONS:
            read = [positions for positions in args[1] if positions is not None]
        if read:
            ends = {tensor.device.type for tensor in (result, *read)}
            if len(ends) > 1 and "cpu" in ends and not _is_inside(_WITH_CONSTANTS):
                raise HostWaits(
                    "a tensor is copied between CPU and GPU in every step; make it with "
                    "device=... of its neighbours, by torch.full or new_full where it is a number, "
                    "or keep it as a buffer"
                )
        return result


def _is_inside(files: tuple[str, ...]) -> bool:
    """Whether a function of these files is being called."""
    return any(frame.filename.endswith(files) for frame in traceback.extract_stack())


def place_of(error: BaseException, *others: str) -> str:
    """The line of a program at which an error came up, ``", at <file>:<line>: <code>"``, or "".

    Args:
        error: The error.
        others: Files that are no program's, besides this one and those of torch and Pyro.
    """
    packages, files = {"torch", "pyro"}, (__file__, *others)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.line  # none in the code that beartype writes
        and frame.filename not in files
        and not packages & {*Path(frame.filename).parts}
    ]
    last = frames[-1] if frames else None
    return f", at {last.filename}:{last.lineno}: {last.line}" if last else ""
