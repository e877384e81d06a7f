"""What every attribution method has: a name, a unit, options with checks, and maps of a group."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from ppl_med.checks import choice
from ppl_med.explain.attribution.draw_groups import Draw

METHODS: dict[str, type["Method"]] = {}
"""Every method that has been defined, by its name."""
COMPLETE = "use method='integrated_gradients', which is complete for any differentiable net"


@dataclass
class Task:
    """Some cases to explain: images, baselines of their shape, and positions among all cases.

    ``batch_size`` is the most points of one forward and backward pass.
    """

    image: Tensor
    baseline: Tensor
    rows: Tensor
    batch_size: int

    def split(self, size: int) -> "list[Task]":
        """Parts of at most ``size`` cases."""
        parts = (values.split(size) for values in (self.image, self.baseline, self.rows))
        return [Task(x, y, rows, self.batch_size) for x, y, rows in zip(*parts, strict=True)]


@dataclass
class Maps:
    """Attributions (draw, case, channel, ...) of some cases by a group of draws; rest (draw, case).

    Attributes:
        total: What the attributions of a complete method should sum to.
        bias_attribution: The part of that sum that belongs to no pixel.
        checks: Other figures of quality by name.
    """

    values: Tensor
    total: Tensor | None = None
    bias_attribution: Tensor | None = None
    checks: dict[str, Tensor] = field(default_factory=dict)

    def delta(self) -> Tensor:
        """Sum of the attributions minus the total, (draw, case)."""
        found = self.values.detach().double().flatten(2).sum(2)
        if self.bias_attribution is not None:
            found = found + self.bias_attribution
        assert self.total is not None
        return found - self.total

    def mass(self) -> Tensor:
        """Sum of the absolute attributions, (draw, case)."""
        return self.values.detach().double().abs().flatten(2).sum(2)


class Method(ABC):
    """An attribution method; a dataclass whose fields are its options.

    A subclass with a ``name`` of its own can be asked for by it.

    Attributes:
        name: As in ``attribute(method=...)``.
        unit: Unit of a map, with ``{}`` for the unit of the explained number.
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

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            METHODS[cls.name] = cls

    @property
    def points_per_case(self) -> int:
        """Points of a case that are evaluated together."""
        return 1

    def validate(self, image: Tensor) -> None:  # noqa: B027
        """Raise if the options do not fit the images."""

    def check_function(self, draw: Draw, name: str, task: Task) -> None:  # noqa: B027
        """Raise, and name an alternative, if the method does not hold for a function.

        ``task`` is the first case; errors call the function ``name``.
        """

    @abstractmethod
    def maps(self, draws: Any, task: Task) -> Maps:
        """Attribute some cases by a group of draws."""

    def tasks(self, image: Tensor, baseline: Tensor, batch_size: int) -> list[Task]:
        """Cut the cases into parts whose points fit a batch."""
        rows = torch.arange(len(image), device=image.device)
        whole = Task(image, baseline, rows, batch_size)
        return whole.split(max(1, batch_size // self.points_per_case))

    def settings(self) -> dict[str, Any]:
        """The options, as attributes of a Dataset."""
        values = {option.name: getattr(self, option.name) for option in fields(self)}  # type: ignore[arg-type]
        return {name: _short(value) for name, value in values.items() if value is not None}


def as_method(method: str | Method, options: dict[str, Any]) -> Method:
    """Return the method that a name and its options describe."""
    if isinstance(method, Method):
        if options:
            raise TypeError(
                f"method is a {type(method).__name__} already; give {sorted(options)} to it"
            )
        return method
    kind = METHODS[choice("method", method, METHODS)]
    known = [option.name for option in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"{method} has no option {unknown[0]!r}; it has {known or 'none'}")
    return kind(**options)


def _short(value: Any) -> str | int | float:
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, Tensor):
        return "tensor"
    return getattr(value, "__name__", None) or str(value)
