"""Ctrl-C: a step of training is finished and saved, and whoever pressed it is told how to go on."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Interrupts:
    """Keeps a first Ctrl-C until it is asked for; a second one stops at once.

    Only in the main thread, and only where nobody else handles the signal. Elsewhere ``asked``
    stays False, and Python raises as it always does.
    """

    def __init__(self) -> None:
        self.asked = False
        self._earlier: Any = None

    def __enter__(self) -> "Interrupts":
        """Take over the signal."""
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._earlier = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        """Give the signal back."""
        if self._earlier is not None:
            signal.signal(signal.SIGINT, self._earlier)

    def _note(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def told_interrupt(message: str) -> KeyboardInterrupt:
    """A KeyboardInterrupt that ends a script with a sentence in the place of a traceback."""
    error = KeyboardInterrupt(message)
    error.told = True  # type: ignore[attr-defined]
    error._render_traceback_ = lambda: [message]  # type: ignore[attr-defined]  # IPython reads it
    if not getattr(sys.excepthook, "tells_interrupts", False):
        sys.excepthook = _telling(sys.excepthook)
    return error


@contextmanager
def telling_interrupts(message: str) -> Iterator[None]:
    """Run the block, and let a Ctrl-C in it end a script with the message."""
    try:
        yield
    except KeyboardInterrupt as error:
        if getattr(error, "told", False):
            raise
        raise told_interrupt(message) from error


def stopped_prediction(store: str | Path | None) -> str:
    """What an interrupted ``predict`` leaves, and how to go on."""
    if store is not None and Path(store).suffix == ".zarr":
        return (
            f"predict was interrupted; the cases that are done are kept beside {store}. To go on, "
            "make the same call with resume=True."
        )
    return (
        "predict was interrupted, and nothing is kept; with store='run.zarr' the cases that are "
        "done are, and resume=True goes on."
    )


def _telling(earlier: Any) -> Any:
    def hook(kind: Any, error: BaseException, trace: Any) -> None:
        if getattr(error, "told", False):
            print(f"\n{error}", file=sys.stderr)
        else:
            earlier(kind, error, trace)

    hook.tells_interrupts = True  # type: ignore[attr-defined]
    return hook
