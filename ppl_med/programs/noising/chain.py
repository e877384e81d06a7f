"""What all noising processes share: the steps, and how a chain of them is written as Pyro sites.

The sites of a chain of T steps, seen from the mask x_0:

- the whole chain (``form="slow"``): ``x<T>``, ..., ``x1`` and the mask, one after the other;
- one random step of every case (``form="fast"``): ``x<T>``, the auxiliary ``at_step`` t and
  ``noised`` x_t, whose densities do not count, and ``earlier`` x_(t-1), or the mask where t = 1, in
  a plate ``step`` of size T, which scales them.

Pixels that nobody annotated (-1) are noise at every step, by law, in model and guide: the chain of
such a case is one of its annotated pixels, and the bound that of their density.

The guide draws from the later state to the earlier one, so that both programs know x_t where they
say what x_(t-1) is, and the KL between them is the closed form of two given distributions.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppl_med.checks import choice, whole
from ppl_med.programs.noising.places import stratified
from ppl_med.programs.noising.schedules import Schedule, signal_kept

Form = Literal["fast", "slow"]


class Transition(NamedTuple):
    """From a later step to an earlier one: the shares of signal that a reverse step needs.

    Attributes:
        later: Kept at the later step t, dims as the steps.
        earlier: Kept at the earlier step s < t.
    """

    later: Tensor
    earlier: Tensor

    @property
    def between(self) -> Tensor:
        """Kept of the earlier state at the later step."""
        return self.later / self.earlier


class StepsOfBatch(TorchDistribution):
    """Steps 1 to T of the cases of a batch, each uniform, together spread evenly (stratified).

    Args:
        num_steps: T.
        shape: Of the batch, such as (case,).
        device: Where to draw.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, num_steps: int, shape: Sequence[int], device: Any = None) -> None:
        self.num_steps, self.device = num_steps, device
        super().__init__(torch.Size(shape), validate_args=False)

    @property
    def support(self) -> Any:
        """Integers from 1 to T."""
        return constraints.integer_interval(1, self.num_steps)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "StepsOfBatch":
        """The same for more cases."""
        return StepsOfBatch(self.num_steps, batch_shape, self.device)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """One step in each of as many equal strata as there are cases, in random order."""
        place = stratified(torch.Size(sample_shape) + self.batch_shape, self.device)
        return (place * self.num_steps).long().clamp(max=self.num_steps - 1) + 1

    def icdf(self, u: Tensor) -> Tensor:
        """Steps of uniform numbers; those of one case, before the last axis, spread evenly."""
        if u.dim() > 1:
            place = torch.arange(len(u), device=u.device).view(-1, *[1] * (u.dim() - 1))
            u = (place + u) / len(u)
        steps = (u * self.num_steps).long().clamp(max=self.num_steps - 1) + 1
        return steps.to(self.device or u.device)

    def log_prob(self, value: Tensor) -> Tensor:
        """Minus log T, each."""
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        uniform = torch.full((), float(self.num_steps), device=value.device)
        return -uniform.log().expand(shape)


class Chain(nn.Module, ABC):
    """A noising process of T steps.

    Args:
        num_steps: T.
        schedule: See ``signal_kept``.
        hardening: See ``signal_kept``.
        form: "fast" trains by one random step of every case; "slow" by the whole chain, which
            costs T times as much and is the same in expectation.
        bound_steps: Steps of every case by which ``predict`` estimates the bound in the fast form.

    Attributes:
        kept: Share of the signal after every step, float64 (T + 1).
    """

    kept: Tensor

    def __init__(
        self,
        num_steps: int,
        schedule: Schedule = "cosine",
        hardening: float = 1.0,
        form: Form = "fast",
        bound_steps: int = 1,
    ) -> None:
        super().__init__()
        whole(
            "num_steps", num_steps, 2, fix="a chain has one state between noise and mask at least"
        )
        self.register_buffer("kept", signal_kept(num_steps, schedule, hardening), persistent=False)
        self.num_steps, self.schedule, self.hardening = num_steps, schedule, float(hardening)
        self.form = choice("form", form, get_args(Form))
        self.bound_steps = whole("bound_steps", bound_steps)

    @abstractmethod
    def encode(self, mask: Tensor) -> Tensor:
        """The state x_0 of a mask (case, *space) of classes; any, where that is -1, not known."""

    @abstractmethod
    def seen(self, mask: Tensor) -> Tensor:
        """Where a mask is known, bool, dims as those of a state or 1."""

    @abstractmethod
    def start(self, image: Tensor) -> Any:
        """The law of pure noise x_T of the cases of a batch of images."""

    @abstractmethod
    def noised(self, state: Tensor, kept: Tensor, seen: Tensor) -> Any:
        """The law of x_t given x_0, of which a share ``kept`` (..., case) is left; see ``seen``."""

    @abstractmethod
    def posterior(self, noised: Tensor, state: Tensor, at: Transition, seen: Tensor) -> Any:
        """The law of x_s given x_t and x_0."""

    @property
    @abstractmethod
    def event(self) -> tuple[str, ...]:
        """Names of the axes of a state after the case."""

    @property
    def space(self) -> tuple[str, ...]:
        """Names of the spatial axes."""
        return tuple(name for name in self.event if name != "channel")

    def signal(self) -> Tensor:
        """How much a state tells of x_0 after every step, falling from 1 to nearly 0, (T + 1)."""
        return self.kept.sqrt()

    def num_particles(self, *, training: bool) -> int:
        """Steps of every case in one run of the fast form."""
        return 1 if training else self.bound_steps

    def settings(self) -> str:
        """What a resumed run must share."""
        return (
            f"{type(self).__name__}(num_steps={self.num_steps}, schedule={self.schedule!r}, "
            f"hardening={self.hardening:g}, form={self.form!r})"
        )

    def trained_for(self) -> dict[str, Any]:
        """The chain, by which alone the weights of a net that undoes it mean something."""
        return {
            "num_steps": self.num_steps,
            "schedule": self.schedule,
            "hardening": self.hardening,
        }

    def at(self, later: Tensor | int, earlier: Tensor | int) -> Transition:
        """The shares of signal of two steps, float64."""
        # By a number, not by a tensor of one, whose value the host would read off the device.
        steps = (s.to(self.kept.device) if isinstance(s, Tensor) else s for s in (later, earlier))
        return Transition(*(self.kept[step] for step in steps))

    def grid(self, num_steps: int | None = None, start: int | None = None) -> list[tuple[int, int]]:
        """Pairs of later and earlier steps from T down to 0, evenly spaced.

        Args:
            num_steps: How many pairs; None for all T.
            start: Where to begin in the place of T, at least ``num_steps``.

        Raises:
            ValueError: If there are fewer steps than that.
        """
        number = self.num_steps if num_steps is None else num_steps
        if not 1 <= number <= self.num_steps:
            raise ValueError(
                f"sampling_steps must be from 1 to num_steps, {self.num_steps}, got {number}; "
                "sample with fewer steps, or train a longer chain"
            )
        places = torch.linspace(start or self.num_steps, 0, number + 1).round().long().tolist()
        return list(itertools.pairwise(places))

    def steps_of(self, shape: Sequence[int], device: Any) -> StepsOfBatch:
        """Random steps of a batch, for the fast form."""
        return StepsOfBatch(self.num_steps, shape, device)


def counted(law: Any, seen: Tensor) -> Any:
    """The same law of a map, in whose density only the entries count that were seen."""
    return dist.Independent(law.base_dist.mask(seen), law.reinterpreted_batch_ndims)


def over_space(values: Tensor, like: Tensor) -> Tensor:
    """Numbers (..., case) in the shape that broadcasts against a map (..., case, *event)."""
    return values.view(*values.shape, *[1] * (like.dim() - values.dim()))


def in_classes(state: Tensor, num_classes: int) -> Tensor:
    """Whether an entry is of each class, dims (..., class); all False where it has none.

    A comparison, since torch's ``one_hot`` checks the range on the host.
    """
    return state.unsqueeze(-1) == torch.arange(num_classes, device=state.device)
