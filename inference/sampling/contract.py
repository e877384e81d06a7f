"""What a kernel is: settings that start a chain, which takes steps and can be written down.

A new sampler is a ``Kernel`` with the chain that it starts; ``sample`` knows none by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ppl_med.checks import reject

if TYPE_CHECKING:
    from ppl_med.inference.sampling.target import Target

Stats = dict[str, float | bool | int]


class Chain(ABC):
    """One chain on its way.

    Attributes:
        position: Where it stands, dims (weight,), unconstrained.
    """

    position: Tensor

    @abstractmethod
    def step(self) -> Stats:
        """Take a step, and tell of it under ArviZ's names for ``sample_stats``.

        Raises:
            FloatingPointError: The potential, or its gradient, is not finite where it must be.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Plain tensors and numbers, from which the chain goes on, bit for bit."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Counterpart of ``state``."""


class Kernel(ABC):
    """A sampler's settings.

    Attributes:
        full_batch: Whether a step takes all cases.
    """

    full_batch = True

    @abstractmethod
    def start(self, target: "Target", position: Tensor, warm_up: int, seed: int) -> Chain:
        """A chain at a position, that adapts itself in its first ``warm_up`` steps if it does."""

    def keeps(self, step: int, thin: int) -> bool:
        """Whether the draw after a step, counted from 0 after the warm-up, is kept."""
        return step % thin == thin - 1

    def num_steps(self, draws: int, thin: int) -> int:
        """Steps after the warm-up until so many draws are kept."""
        return draws * thin

    def check(self, warm_up: int) -> None:  # noqa: B027
        """Raise a ValueError where the settings ask for another warm-up."""

    def settings(self) -> str:
        """What a resumed run must share."""
        given = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({given})"


def check_kernel(kernel: Any) -> Kernel:
    """The kernel; raise a ValueError where it is none."""
    if isinstance(kernel, Kernel):
        return kernel
    fix = "from ppl_med.inference; for a kernel of Pyro's own, run pyro.infer.MCMC and from_mcmc"
    return reject("kernel", "NUTS(), HMC(), SGLD(...) or SGHMC(...)", kernel, fix)
