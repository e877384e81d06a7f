"""What every attribution method has: a name, a unit, options with checks, and maps of one group."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from torch import Tensor

from ppl_med.explain.attribution.draws import Draw, DrawGroup


@dataclass
class Task:
    """Some cases to explain.

    Attributes:
        image: (case, channel, ...).
        baseline: Of the same shape.
        rows: Their positions among all cases, (case,).
        batch_size: Most points of one forward and backward pass.
    """

    image: Tensor
    baseline: Tensor
    rows: Tensor
    batch_size: int


@dataclass
class Maps:
    """Attributions of some cases by a group of draws.

    Attributes:
        values: (draw, case, channel, ...).
        total: What the attributions of a complete method should sum to, (draw, case).
        unlocated: The part of that sum that has no place in the image, (draw, case).
        checks: Other figures of quality by name, (draw, case).
    """

    values: Tensor
    total: Tensor | None = None
    unlocated: Tensor | None = None
    checks: dict[str, Tensor] = field(default_factory=dict)


class Method(ABC):
    """An attribution method; a dataclass whose fields are its options.

    Attributes:
        name: As in ``attribute(method=...)``.
        unit: Of a map, with ``{}`` for the unit of the explained number.
        is_complete: Whether the maps should sum to a known total; then the gap is reported.
        advice: What to change where they do not.
        needs_gradient: Whether it differentiates the functions.
        uses_baseline: Whether the baseline matters.
        takes_groups: Whether it asks for no more than values and gradients, of any group of draws.
        is_linear: Whether it is linear in the gradient at points that do not depend on the draw.
        outputs: The units of ``Output`` that it is valid for.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = "{}"
    is_complete: ClassVar[bool] = False
    advice: ClassVar[str] = ""
    needs_gradient: ClassVar[bool] = True
    uses_baseline: ClassVar[bool] = False
    takes_groups: ClassVar[bool] = False
    is_linear: ClassVar[bool] = False
    outputs: ClassVar[tuple[str, ...]] = ("logit", "log_probability", "probability", "value")

    @property
    def points_per_case(self) -> int:
        """How many points of a case are looked at together."""
        return 1

    def validate(self, image: Tensor) -> None:  # noqa: B027
        """Raise if the options do not fit the images."""

    def check_function(self, draw: Draw, name: str, task: Task) -> None:  # noqa: B027
        """Raise, and name an alternative, if the method does not hold for a function.

        Args:
            draw: The function with the number that is explained.
            name: How to call it.
            task: The first case.
        """

    @abstractmethod
    def maps(self, draws: Any, task: Task) -> Maps:
        """Attribute some cases by a group of draws."""

    def settings(self) -> dict[str, Any]:
        """The options, as attributes of a Dataset."""
        values = {option.name: getattr(self, option.name) for option in fields(self)}  # type: ignore[arg-type]
        plain = (str, int, float)
        return {
            name: value if isinstance(value, plain) else _short(value)
            for name, value in values.items()
            if value is not None
        }


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return "tensor"
    return getattr(value, "__name__", None) or str(value)


__all__ = ["Draw", "DrawGroup", "Maps", "Method", "Task"]
