"""The processes that work together, and which of them this one is.

They are those of ``torch.distributed``: of the group that a script has initialised, or of
``torchrun``, whose group is joined here when it is first needed. A process on its own is rank 0
of 1, and nothing here waits for anybody. So is each one once that group is destroyed.
"""

import atexit
import datetime
import os
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import distributed

Value = TypeVar("Value")

# Others may wait for one that judges, writes or trains alone; one that dies is noticed at once.
PATIENCE = datetime.timedelta(days=30)
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # torchrun sets them
_host_groups: dict[Any, Any] = {}
_met = False  # whether there has been a group


def join() -> None:
    """Join the group of ``torchrun``, where it has started this process and no script has."""
    if _initialized() or not _launched():
        return
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(local_rank() % gpus)
    shared = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > gpus  # NCCL takes one rank a GPU
    distributed.init_process_group("gloo" if shared else None, **_meeting_place())
    atexit.register(_leave)


def rank() -> int:
    """Number of this process among those that work together, from 0."""
    if _initialized():
        return distributed.get_rank()
    return int(os.environ["RANK"]) if _launched() else 0


def num_ranks() -> int:
    """How many processes work together; 1 where this one is alone."""
    if _initialized():
        return distributed.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if _launched() else 1


def local_rank() -> int:
    """Number of this process among those of its machine, from 0, which chooses its GPU."""
    return int(os.environ.get("LOCAL_RANK", rank()))


def barrier() -> None:
    """Wait until all ranks are here."""
    if num_ranks() > 1:
        distributed.barrier(host_group())


def from_rank_0(value: Value) -> Value:
    """What rank 0 has, on all ranks: a plain object, small; what others pass does not matter."""
    if num_ranks() == 1:
        return value
    held: list[Any] = [value]
    distributed.broadcast_object_list(held, src=0, group=host_group())
    return held[0]


def of_all_ranks(value: Value) -> list[Value]:
    """What every rank has, in their order, on all ranks: plain objects, small."""
    if num_ranks() == 1:
        return [value]
    held: list[Any] = [None] * num_ranks()
    distributed.all_gather_object(held, value, group=host_group())
    return held


def on_rank_0(function: Callable[[], Value]) -> Value:
    """Run a function on rank 0 while the others wait; all of them get what it returns.

    Raises:
        Exception: What the function raises, on all ranks.
    """
    if num_ranks() == 1:
        return function()
    found: Any = None
    error: Exception | None = None
    if rank() == 0:
        try:
            found = function()
        except Exception as raised:
            error = raised
    found, told = from_rank_0((found, None if error is None else _sent(error)))
    if told is not None:
        raise told if error is None else error
    return found


def host_group() -> Any:
    """The group of all ranks for tensors on the CPU, whatever carries those on GPUs.

    Every rank makes it at the same point, as all that is done together.
    """
    join()
    world = distributed.group.WORLD
    if world not in _host_groups:
        _host_groups.clear()  # of a group that is gone
        _host_groups[world] = distributed.new_group(backend="gloo", timeout=PATIENCE)
    return _host_groups[world]


def _sent(error: Exception) -> Exception:
    """An error in a form that reaches other processes."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"rank 0 failed: {type(error).__name__}: {error}")
    return error


def _initialized() -> bool:
    global _met
    found = distributed.is_available() and distributed.is_initialized()
    _met = _met or found
    return found


def _launched() -> bool:
    """Whether ``torchrun``, or who speaks its dialect, has started this process for a group.

    Its variables stay when the group is destroyed, and others may be gone by then.
    """
    started = distributed.is_available() and all(name in os.environ for name in _VARIABLES)
    return started and not _met


def _meeting_place() -> dict[str, Any]:
    """Where the processes of one start find each other, for ``init_process_group``.

    After a rank has died, ``torchrun`` starts all anew with the same store, in which the addresses
    of the dead still stand; every start gets keys of its own.
    """
    store, own, size = next(distributed.rendezvous("env://"))
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = distributed.PrefixStore(f"ppl_med/{start}", store)
    return {"store": store, "rank": own, "world_size": size}


def _leave() -> None:
    if _initialized():
        _host_groups.clear()
        distributed.destroy_process_group()
