"""Several processes of a group that a script has initialised; those of ``torchrun``: rank_runs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
from torch import distributed


def joined(target: Callable[..., None], number: int, ranks: int, meet: Path, *args: Any) -> None:
    """Run a function as one rank of a gloo group that meets by a file."""
    os.environ["LOCAL_RANK"] = str(number)
    address = f"file://{meet}"
    distributed.init_process_group("gloo", init_method=address, rank=number, world_size=ranks)
    target(*args)
    distributed.destroy_process_group()


def run_together(
    target: Callable[..., None], ranks: int, meet: Path, *args: Any, limit: float = 120
) -> list[int]:
    """Run a function as so many ranks and return their exit codes.

    As soon as one of them fails, the others are killed, as by the agent of ``torchrun``.
    """
    started = [
        processes.start(joined, target, number, ranks, meet, *args) for number in range(ranks)
    ]
    return processes.wait(started, f"{target.__name__}{args}", limit, together=True)
