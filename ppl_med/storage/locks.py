"""One writer at a time: a lock beside a file or folder, gone with the process that held it.

The lock is the operating system's on a small file ``.<name>.lock`` with the number of the process.
The file is removed when the lock is given back; one that a killed process left locks nobody out.
"""

import contextlib
import errno
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_BYTE = 2**30  # which is locked on Windows, where nobody may read what is locked

# Process, thread and depth of who holds a lock. Locks of the system do not tell threads apart.
_held: dict[Path, tuple[int, int, int]] = {}
_guard = threading.Lock()


@contextmanager
def locked(
    path: str | os.PathLike[str], what: str = "file", *, wait: float = 0.0
) -> Iterator[None]:
    """Keep other processes and threads from writing to a path; the same thread may nest locks.

    Where the folder of ``path`` is not there, nothing is locked.

    Args:
        path: File or folder that is to be written.
        what: What it is, for messages: "checkpoint", "store".
        wait: Seconds to wait for who holds the lock.

    Raises:
        BlockingIOError: Another process or thread writes to the path.
        OSError: The lock's file cannot be written, because the folder cannot.
    """
    path = Path(path)
    if not path.parent.is_dir():
        yield
        return
    key = path.parent.resolve() / path.name
    until = time.monotonic() + wait
    while not _enter(key):
        if time.monotonic() >= until:
            raise _taken(path, what, "another thread of this process")
        time.sleep(0.05)
    note = key.with_name(f".{key.name}.lock")
    try:
        outermost = _held[key][2] == 1
        file = _acquire(note, path, what, until) if outermost else None
        try:
            yield
        finally:
            if file is not None:
                _release(note, file)
    finally:
        _leave(key)


def _enter(key: Path) -> bool:
    me = (os.getpid(), threading.get_ident())
    with _guard:
        process, thread, depth = _held.get(key, (*me, 0))
        if process != me[0]:  # before a fork
            thread, depth = me[1], 0
        if thread != me[1]:
            return False
        _held[key] = (*me, depth + 1)
        return True


def _leave(key: Path) -> None:
    with _guard:
        process, thread, depth = _held.pop(key)
        if depth > 1:
            _held[key] = (process, thread, depth - 1)


def _acquire(note: Path, path: Path, what: str, until: float) -> int | None:
    """The open file that holds the lock; None where the file system knows no locks."""
    while True:
        file = os.open(note, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(file)
            if _is_same(note, file):
                with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
                    os.truncate(file, 0)
                    os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return file
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                _release(note, file)
                warnings.warn(
                    f"{path.parent} is on a file system without locks; see to it that no other "
                    f"process writes to {what} {path}",
                    stacklevel=4,
                )
                return None
            if error.errno not in _TAKEN or time.monotonic() >= until:
                holder = os.read(file, 200).decode(errors="replace")
                os.close(file)
                if error.errno in _TAKEN:
                    raise _taken(path, what, holder or "another process") from None
                raise
        os.close(file)
        time.sleep(0.05)


def _lock(file: int) -> None:
    if fcntl is not None:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt

    os.lseek(file, _BYTE, os.SEEK_SET)
    vars(msvcrt)["locking"](file, vars(msvcrt)["LK_NBLCK"], 1)
    os.lseek(file, 0, os.SEEK_SET)


def _is_same(note: Path, file: int) -> bool:
    """Whether the locked file is still the one at its place: who gives a lock back removes it."""
    try:
        return os.path.samestat(os.stat(note), os.fstat(file))
    except FileNotFoundError:
        return False


def _release(note: Path, file: int) -> None:
    with contextlib.suppress(OSError):  # Windows removes no open file
        note.unlink()
    os.close(file)


def _taken(path: Path, what: str, holder: str) -> BlockingIOError:
    return BlockingIOError(
        errno.EAGAIN,
        f"{holder} is writing to {what} {path}; wait until it has ended, or give another path",
    )
