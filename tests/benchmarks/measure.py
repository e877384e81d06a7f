"""How it is timed: allocator, clock, round-robin, quartiles, counts of kernels and host syncs."""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

# Keep large buffers instead of mapping and unmapping them at every step: under glibc's defaults a
# flat vector of millions of weights pays for page faults, which is the allocator, not the design.
# One arena: the heaps of other threads (fit runs in one here) hold 64 MiB at most.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "34359738368",
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_ARENA_MAX": "1",
}
SYNCS = frozenset(
    {
        "aten._local_scalar_dense.default",
        "aten.equal.default",
        "aten.masked_select.default",
        "aten.nonzero.default",
        "aten._unique2.default",
    }
)
MIN_SECONDS = 0.01


def tune_allocator() -> None:
    """Start the script anew with ``ALLOCATOR`` in the environment, unless it is there already.

    A smoke run goes on as it is, for its times mean nothing.
    """
    if "--smoke" not in sys.argv and any(
        os.environ.get(name) != value for name, value in ALLOCATOR.items()
    ):
        os.environ.update(ALLOCATOR)
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.argv])


class Counts(TorchDispatchMode):
    """Counts kernels (aten calls that are no views) and calls that make the host wait.

    Attributes:
        kernels: Number of kernels.
        syncs: Number of host synchronisations; on the CPU, where there would be one on a GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.syncs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and go on."""
        boolean_index = str(func) == "aten.index.Tensor" and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        self.syncs += str(func) in SYNCS or boolean_index
        self.kernels += not func.is_view
        return func(*args, **(kwargs or {}))


class Clock:
    """Seconds that a call takes.

    With one CPU thread it reads the process's CPU time, so that other work on the machine counts
    less; otherwise wall time, after the device has finished.
    """

    def __init__(self, device: torch.device, num_threads: int) -> None:
        self.cuda = device.type == "cuda"
        self.read = time.process_time if num_threads == 1 and not self.cuda else time.perf_counter

    def __call__(self, run: Callable[[], Any], repeats: int = 1) -> float:
        """Mean over some calls, in seconds."""
        if self.cuda:
            torch.cuda.synchronize()
        start = self.read()
        for _ in range(repeats):
            run()
        if self.cuda:
            torch.cuda.synchronize()
        return (self.read() - start) / repeats


def interleave(
    runs: Mapping[str, Callable[[], Any]],
    around: Mapping[str, Callable[[], AbstractContextManager[Any]]],
    *,
    rounds: int,
    repeats: int,
    clock: Clock,
    rng: np.random.Generator,
) -> dict[str, NDArray[np.float64]]:
    """Time every run once a round, in an order that is drawn anew each round.

    Args:
        runs: What is timed, by name.
        around: Context of each, entered and left outside the timing.
        rounds: Number of rounds.
        repeats: Calls a round that are timed together.
        clock: The clock.
        rng: Draws the orders.

    Returns:
        Seconds a call, dims (round,), by name.
    """
    names = list(runs)
    seconds = {name: np.empty(rounds) for name in names}
    for index in range(rounds):
        for place in rng.permutation(len(names)):
            name = names[place]
            with around[name]():
                if repeats > 1:
                    runs[name]()  # the variant before has filled the caches with its own data
                seconds[name][index] = clock(runs[name], repeats)
    return seconds


def peak() -> float:
    """Peak resident memory of this process so far, MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def run_apart(script: str, *options: str) -> dict[str, Any]:
    """What a script prints last, as JSON, in a process of its own, whose peak is then its own."""
    command = [sys.executable, script, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def check_out(parser: argparse.ArgumentParser, path: Path | None) -> None:
    """End with a usage message unless a table can be written to a path."""
    if path is not None and path.suffix not in (".json", ".md"):
        parser.error(f"--out must end in .json or .md, got {path}")


def write_table(path: Path | None, content: Any, text: str) -> None:
    """Write a table's content as .json, or its text as .md; nothing without a path."""
    if path is not None:
        path.write_text(json.dumps(content, indent=1) if path.suffix == ".json" else text + "\n")


def quartiles(values: NDArray[np.float64]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [float(value) for value in np.quantile(values, (0.25, 0.5, 0.75))]


def machine(device: torch.device, num_threads: int) -> str:
    """One line on where it ran."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    load = os.getloadavg()[0]
    return (
        f"{name}, {num_threads} thread(s) of {os.cpu_count()} cores, load average {load:.1f}, "
        f"torch {torch.__version__}"
    )
