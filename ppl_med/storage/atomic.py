"""Replacing a file or a folder so that nobody ever sees half of it."""

import errno
import glob
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ppl_med.storage.locks import locked

WAIT = 30.0  # seconds for which a write waits until another process has written the same path
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What HDF5, zarr and torch say in a RuntimeError that has no number.
_SAYS_FULL = (f"errno = {errno.ENOSPC},", "No space left", "enforce fail")


@contextmanager
def replacing(
    path: str | os.PathLike[str],
    what: str = "file",
    *,
    needed: int | None = None,
    advice: str = "free some space or choose another path",
) -> Iterator[Path]:
    """A temporary path to write to, which takes the place of ``path`` once the block is over.

    An error in the block, a full disk and a kill leave the earlier file or folder as it was. What
    killed writes of it left behind is removed. Two processes write one after the other.

    Args:
        path: Where the file or folder goes.
        what: What it is, for messages: "report", "checkpoint".
        needed: Bytes that will be written, about, for messages.
        advice: What to do where it cannot be written, for messages.

    Yields:
        A path beside ``path`` where nothing is yet; the block makes a file or a folder there.

    Raises:
        BlockingIOError: Another process has been writing the path for ``WAIT`` seconds.
        OSError: It cannot be written, or the disk is full.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with locked(path, what, wait=WAIT):
            try:
                yield partial
                if partial.is_file():
                    with partial.open("r+b") as file:
                        os.fsync(file.fileno())
                _move_into_place(partial, path)
                remove_leftovers(path)
            finally:
                _clear(partial)
    except BlockingIOError:
        raise
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_full(error):
            raise
        advice = f"an earlier {what} is intact; {advice}"
        raise not_written(f"{what} {path}", path, error, advice, needed) from error


def write_text(path: str | os.PathLike[str], text: str, what: str = "file") -> None:
    """Write text as UTF-8, replacing an earlier file only once the new one is complete.

    ``what`` is what the file is, for the messages of ``replacing``.
    """
    data = text.encode()
    with replacing(path, what, needed=len(data)) as partial:
        partial.write_bytes(data)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove what killed processes left of a file or folder; call it while it is ``locked``."""
    path = Path(path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        _remove(left)
    if path.exists():  # else it is the earlier result, moved aside when the process was killed
        _remove(set_aside(path))


def check_writable(path: str | os.PathLike[str], what: str = "file") -> None:
    """Raise an OSError where a file or folder could not be written, before the work for it."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise not_written(f"{what} {path}", path, error, "choose another path") from error


def not_written(
    what: str, path: Path, error: Exception, advice: str, needed: int | None = None
) -> OSError:
    """The error to raise where a file cannot be written.

    ``what`` is the file's kind and name, ``advice`` what is safe and what to do, ``needed`` the
    bytes that it takes, about.
    """
    number, reason = getattr(error, "errno", None) or errno.EIO, str(error)
    if is_full(error):
        number = number if number in _FULL else errno.ENOSPC
        there = next((one for one in path.absolute().parents if one.is_dir()), None)
        free = "" if there is None else f" ({_megabytes(shutil.disk_usage(there).free)} free)"
        needs = "" if needed is None else f", about {_megabytes(needed)} are needed"
        reason = f"the disk is full{free}{needs}"
    return OSError(number, f"{what} could not be written: {reason}; {advice}")


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that the disk or a quota is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(words in str(error) for words in _SAYS_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def set_aside(path: Path) -> Path:
    """Where an earlier folder lies for the moment in which it is replaced."""
    return path.with_name(f".{path.name}.previous")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _move_into_place(partial: Path, path: Path) -> None:
    if not path.is_dir():
        os.replace(partial, path)
        return
    if partial.is_file():
        raise IsADirectoryError(errno.EISDIR, "a folder is in the way of the file", str(path))
    earlier = set_aside(path)
    _remove(earlier)
    os.replace(path, earlier)
    try:
        os.replace(partial, path)
    except BaseException:
        os.replace(earlier, path)
        raise
    _remove(earlier)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _clear(partial: Path) -> None:
    """Remove what a failed write left; zarr's own threads may still be adding to it."""
    absent = 0 if partial.exists() else 3
    for _ in range(100):
        if absent == 3:
            return
        _remove(partial)
        time.sleep(0.02)
        absent = 0 if partial.exists() else absent + 1
