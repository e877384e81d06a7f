"""Processes of their own, forked from one that has imported the package once."""

import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
PLACES = (TESTS / "robustness", TESTS, TESTS.parent)
# The server starts with the first process, and what it has not imported then every process must.
PRELOADED = ["campaign", "killed_runs", "test_readers", "torch._dynamo", "torchvision"]
PRELOADED += ["h5netcdf", "h5py", "zarr", "dask.array", "arviz", "matplotlib.pyplot", "PIL.Image"]
PRELOADED += ["nibabel", "pydicom", "scipy.io", "sklearn.linear_model", "monai.networks.nets"]
PRELOADED += ["ppl_med.models", "ppl_med.inference", "ppl_med.plots", "ppl_med.explain"]

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(PRELOADED)


def start(target: Callable[..., None], *args: Any) -> Any:
    """Start a function in a process of its own."""
    held = {name: os.environ.get(name) for name in ("PYTHONPATH", "OMP_NUM_THREADS")}
    path = [*map(str, PLACES), *filter(None, [held["PYTHONPATH"]])]
    os.environ |= {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    try:  # the server takes the environment of the first start
        process = SERVER.Process(target=target, args=args)
        process.start()
    finally:
        for name, value in held.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return process


def wait(started: list[Any], what: str, limit: float, *, together: bool = False) -> list[int]:
    """Return the exit codes of processes: -9 where one was killed.

    With ``together`` the others are killed as soon as one of them fails, as by the agent of
    ``torchrun``.
    """
    until = time.monotonic() + limit
    while any(one.exitcode is None for one in started):
        late = time.monotonic() > until
        if late or (together and any(one.exitcode not in (None, 0) for one in started)):
            time.sleep(0.05)  # one that fails by itself at the same time keeps its code
            for one in started:
                one.kill()
        if late:
            raise TimeoutError(f"{what} hangs: {[one.exitcode for one in started]}")
        for one in started:
            one.join(0.02)
    return [one.exitcode for one in started]


def run_apart(target: Callable[..., None], *args: Any, limit: float = 120) -> int:
    """Run a function in a process of its own and return its exit code: -9 where it was killed."""
    (code,) = wait([start(target, *args)], f"{target.__name__}{args}", limit)
    return code


def run_script(arguments: list[str], folder: Path, printed: Path, errors: Path) -> None:
    """Run a script as ``python SCRIPT OPTIONS`` does; what it prints goes to two files."""
    with printed.open("w") as out, errors.open("w") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        os.chdir(folder)
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).parent)
        try:
            runpy.run_path(arguments[0], run_name="__main__")
        finally:  # the traceback of an error is printed by multiprocessing
            sys.stdout.flush()
