"""When no more labels are bought: by held-out figures that the test cases have no part in."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import xarray as xr

from ppl_med.checks import choice, finite

Stopping = Callable[[xr.Dataset], bool]


@dataclass(frozen=True)
class Reached:
    """Stop once a validation figure has reached a value, for ``active_learn(stopping=...)``.

    The figure crosses the value by chance, too: with few validation cases buying ends too early.

    Args:
        figure: Its name, such as "accuracy" or "nll".
        at_least: Value from which on a figure is good enough that should be high.
        at_most: Value up to which one is good enough that should be low.

    Raises:
        ValueError: Not exactly one of the two values is given, or it is no finite number.
    """

    figure: str
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        given = {"at_least": self.at_least, "at_most": self.at_most}
        values = {name: value for name, value in given.items() if value is not None}
        if len(values) != 1:
            raise ValueError(f"give one of at_least and at_most, got {given}")
        for name, value in values.items():
            finite(name, value)

    def __call__(self, validation: xr.Dataset) -> bool:
        """Whether the last step's figure is good enough; NaN never is."""
        options = [str(name) for name, one in validation.items() if one.dims == ("step",)]
        value = float(validation[choice("figure", self.figure, options)].values[-1])
        if math.isnan(value):
            return False
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most
