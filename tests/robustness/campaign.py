"""Processes that are killed or limited, and files that are damaged, all from seeded numbers."""

import os
import resource
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SECONDS, MEMORY = 30, 2**31  # for one damaged input, beyond what the process has already
KILLED = -9


def killed_after(seconds: float | None, function: Callable[..., None], *args: Any) -> None:
    """Run a function in this process, which is killed after some seconds."""
    if seconds is not None:
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
    function(*args)


# ------------------------------------------------------------------------------------ damage


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """The bytes of a file after an accident of a random kind."""
    size = len(content)
    kind = rng.integers(9)
    if kind <= 3 and size:  # one bit, the most frequent and the hardest to notice
        changed = bytearray(content)
        changed[int(rng.integers(size))] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    start, stop = sorted(int(place) for place in rng.integers(0, size + 1, 2))
    if kind == 4:
        return content[:start]
    if kind == 5:  # what a full disk leaves
        return content[:start] + bytes(stop - start) + content[stop:]
    if kind == 6:
        return content[:start] + content[stop:]
    if kind == 7:
        return content[:start] + rng.bytes(stop - start) + content[stop:]
    return [b"", b"404: not found\n" * 20, content + content, rng.bytes(200)][int(rng.integers(4))]


def _limit() -> None:
    """Let this process die of an input that takes too much memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def same(first: Any, second: Any) -> bool:
    """Whether two results are equal in every bit, types and names included."""
    if isinstance(first, dict):
        names = first.keys() == second.keys()
        return names and all(same(value, second[name]) for name, value in first.items())
    if hasattr(first, "identical"):
        return bool(first.identical(second))
    first, second = np.asarray(first), np.asarray(second)
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and bool(first.tobytes() == second.tobytes())
    )


def outcome(read: Callable[[], Any], truth: Any, file: Path) -> str:
    """What reading a damaged file came to: refused, warned, same, changed, or a raw error."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = read()
    except (ValueError, FileNotFoundError, MemoryError) as error:
        said = str(error)
        named = any(part in said for part in (file.name, file.stem.split(".")[0], *_folders(file)))
        return "refused" if named else f"nameless {type(error).__name__}: {said[:300]}"
    except BaseException:
        return "raw " + traceback.format_exc()[-600:]
    if same(found, truth):
        return "same"
    return "warned" if any(file.name in str(one.message) for one in caught) else "changed"


def _folders(file: Path) -> list[str]:
    return [part for part in file.parts[-8:] if part.endswith((".zarr", ".pt"))]


def read_damaged(
    name: str, file: Path, seeds: range, read: Callable[[Path], Any], folder: Path, log: Path
) -> None:
    """Read a data set with one of its files damaged in as many ways; log what each came to.

    A line of the log is begun before the input is read, so that one on which the process dies is
    known.
    """
    content = file.read_bytes()
    truth = read(folder)
    _limit()
    with log.open("a", buffering=1) as lines:
        for seed in seeds:
            changed = damaged(content, np.random.default_rng([seed, *name.encode()]))
            file.write_bytes(changed)
            lines.write(f"{seed}\t{file.name}\t")
            signal.alarm(SECONDS)
            what = outcome(lambda: read(folder), truth, file)
            signal.alarm(0)
            lines.write("same\n" if changed == content else f"{what!r}\n".replace("'same'", "same"))
    file.write_bytes(content)
