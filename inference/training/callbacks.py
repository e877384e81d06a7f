"""What a user's code is told after every epoch, and how it stops a run.

    def on_epoch(history: xr.Dataset) -> bool | None: ...

A callback is such a function, or an object with such a method (``loggers`` are some) and perhaps
``on_end()``, which is called when ``fit`` returns or raises.
"""

import warnings
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import xarray as xr

from ppl_med.checks import reject

SIGNATURE = "functions of the history, such as lambda history: None, or objects with on_epoch"


class StopTraining(Exception):
    """Raised in a callback, it ends training after the epoch, as returning True does.

    What was learned so far is kept, in the checkpoint too. Its text goes to the history's
    ``stopped_by``.
    """


@runtime_checkable
class Callback(Protocol):
    """An object that is told of every epoch."""

    def on_epoch(self, history: xr.Dataset) -> Any:
        """Look at the history after an epoch; True stops the training of this member."""


class Callbacks:
    """The callbacks of a run, of which one that fails is left out from then on.

    Args:
        callbacks: Functions or objects as above.

    Raises:
        ValueError: If one is neither.
    """

    def __init__(self, callbacks: Any) -> None:
        if isinstance(callbacks, str | bytes) or not isinstance(callbacks, Iterable):
            reject("callbacks", "a list of " + SIGNATURE, callbacks)
        self._all = list(callbacks)
        for one in self._all:
            if isinstance(one, type) or not (isinstance(one, Callback) or callable(one)):
                reject("callbacks", "a list of " + SIGNATURE, one)
        self._working = list(self._all)

    def __bool__(self) -> bool:
        return bool(self._all)

    def on_epoch(self, history: xr.Dataset) -> str | None:
        """Tell every callback; who stops the training, or None.

        Warns:
            UserWarning: If one fails; the run goes on without it.
        """
        stopped = None
        for one in list(self._working):
            told: Callable[[xr.Dataset], Any] = one.on_epoch if isinstance(one, Callback) else one
            try:
                if told(history.copy(deep=True)) is True:
                    stopped = stopped or f"callback {_name(one)}"
            except StopTraining as reason:
                stopped = stopped or (str(reason) or f"callback {_name(one)}")
            except Exception as error:
                self._working.remove(one)
                warnings.warn(
                    f"callback {_name(one)} failed and is left out from now on; training goes on: "
                    f"{type(error).__name__}: {error}",
                    stacklevel=6,
                )
        return stopped

    def on_end(self) -> None:
        """Tell those that want to know it that the run is over."""
        for one in self._all:
            end = getattr(one, "on_end", None)
            try:
                if callable(end):
                    end()
            except Exception as error:
                warnings.warn(
                    f"callback {_name(one)} failed at the end: {type(error).__name__}: {error}",
                    stacklevel=5,
                )


def _name(callback: Any) -> str:
    return getattr(callback, "__name__", type(callback).__name__)
