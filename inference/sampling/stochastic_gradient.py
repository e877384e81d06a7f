"""Stochastic-gradient samplers: a step reads one batch, and no step is rejected.

    SGLD    w <- w - a grad U(w) + sqrt(2 a) noise
    SGHMC   v <- m v - a grad U(w) + sqrt(2 (1 - m) a) noise,      w <- w + v

U is the potential of the *whole* data set in nats (the batch's log-likelihood times
num_cases / len(batch), and the prior once), at temperature 1. The step size a is in squared weights
per nat: the same step of an optimizer on the loss per case, as ``fit`` has it, is the learning rate
a * num_cases. A step below the smallest posterior variance of a weight is a good start.

The draws are of the posterior as a -> 0. On a normal posterior of precision h along an axis, SGLD
with all cases in a batch has the variance 1 / (h (1 - a h / 2)), too large by a h / 2; batches of a
few cases add the variance of their gradients, a/2 times it.

References: Welling and Teh, "Bayesian learning via stochastic gradient Langevin dynamics", ICML
2011; Chen, Fox and Guestrin, "Stochastic gradient Hamiltonian Monte Carlo", ICML 2014, equation 15
without an estimate of the gradient's noise; Zhang et al., "Cyclical stochastic gradient MCMC for
Bayesian deep learning", ICLR 2020, equation 1 and algorithm 1, on the cycles.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_med.checks import positive, reject, share, whole
from ppl_med.inference.sampling.contract import Chain, Kernel, Stats
from ppl_med.inference.sampling.target import Target


class _StochasticGradientChain(Chain):
    """A chain of either sampler; SGLD is the one whose velocity is forgotten at once."""

    def __init__(
        self,
        kernel: "_StochasticGradient",
        target: Target,
        position: Tensor,
        warm_up: int,
        seed: int,
    ) -> None:
        self.kernel, self.target, self.warm_up = kernel, target, warm_up
        self.stream = target.batches(seed)
        self.position = position.detach().clone()
        self.velocity = torch.zeros_like(self.position)
        self.taken = 0

    def step(self) -> Stats:
        """One batch."""
        inputs, factor = self.stream.next()
        if isinstance(factor, Tensor):
            factor = factor.to(self.target.device)
        position = self.position.requires_grad_(True)
        potential = self.target.estimate(position, self.target.converted(inputs), factor)
        (gradient,) = torch.autograd.grad(potential, position)
        if not bool(torch.isfinite(potential) & torch.isfinite(gradient).all()):
            raise FloatingPointError("the potential or its gradient stopped being finite")
        step_size, explores = self.kernel.rate(self.taken - self.warm_up)
        kept = self.kernel.momentum
        with torch.no_grad():
            self.velocity = kept * self.velocity - step_size * gradient
            if not explores:
                noise = torch.randn_like(self.velocity)
                self.velocity = self.velocity + math.sqrt(2 * (1 - kept) * step_size) * noise
            self.position = position.detach() + self.velocity
        self.taken += 1
        return {"step_size": step_size}

    def state(self) -> dict[str, Any]:
        """Position, velocity and place among the batches."""
        return {
            "position": self.position.detach(),
            "velocity": self.velocity,
            "taken": self.taken,
            "stream": self.stream.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        self.velocity = state["velocity"].to(self.position)
        self.position = state["position"].to(self.position)
        self.taken = state["taken"]
        self.stream.restore(state["stream"])


class _StochasticGradient(Kernel):
    """Settings that SGLD and SGHMC share; see ``SGLD``."""

    full_batch = False
    momentum = 0.0

    def _check(self, step_size: float, cycle: int | None, explore: float) -> None:
        self.step_size = positive("step_size", step_size)
        self.cycle = None if cycle is None else whole("cycle", cycle, least=2)
        self.explore = share("explore", explore)

    def start(self, target: Target, position: Tensor, warm_up: int, seed: int) -> Chain:
        """A chain; see ``Kernel``."""
        return _StochasticGradientChain(self, target, position, warm_up, seed)

    def rate(self, step: int) -> tuple[float, bool]:
        """The step size of a step, counted from the end of the warm-up, and whether it explores."""
        if self.cycle is None or step < 0:
            return self.step_size, False
        done = step % self.cycle / self.cycle
        return self.step_size / 2 * (math.cos(math.pi * done) + 1), done < self.explore

    def keeps(self, step: int, thin: int) -> bool:
        """Whether a step's draw is kept: of a cycle, in its sampling stage only."""
        if self.cycle is None:
            return super().keeps(step, thin)
        place = step % self.cycle - self._explored(self.cycle)
        return place >= 0 and place % thin == thin - 1

    def num_steps(self, draws: int, thin: int) -> int:
        """Steps after the warm-up until so many draws are kept."""
        if self.cycle is None:
            return super().num_steps(draws, thin)
        explored = self._explored(self.cycle)
        in_cycle = (self.cycle - explored) // thin
        if in_cycle == 0:
            rule = f"at most {self.cycle - explored}, the steps of a cycle that sample"
            reject("thin", rule, thin, "use a longer cycle, or a smaller share that explores")
        whole_cycles, rest = divmod(draws - 1, in_cycle)
        return whole_cycles * self.cycle + explored + (rest + 1) * thin

    def _explored(self, cycle: int) -> int:
        """The first steps of a cycle, which explore."""
        return next(step for step in range(cycle) if step / cycle >= self.explore)


class SGLD(_StochasticGradient):
    """Stochastic-gradient Langevin dynamics, with cycles where asked.

    Args:
        step_size: a, squared weights per nat; of cycles, at their start.
        cycle: Steps of a cycle, in which the step size falls along half a cosine to 0; None keeps
            it constant. A cycle starts at large steps, which may leave a mode.
        explore: First share of a cycle that descends without noise, and keeps no draw.

    Raises:
        ValueError: On a setting that is out of its range.
    """

    def __init__(self, step_size: float, *, cycle: int | None = None, explore: float = 0.8) -> None:
        self._check(step_size, cycle, explore)


class SGHMC(_StochasticGradient):
    """Stochastic-gradient Hamiltonian Monte Carlo: Langevin dynamics with a momentum.

    Its pace is that of SGLD with a step size of a / (1 - momentum).

    Args:
        step_size: a, squared weights per nat; of cycles, at their start.
        momentum: m in [0, 1), what is kept of the velocity; at 0 it is SGLD.
        cycle, explore: As in ``SGLD``.

    Raises:
        ValueError: On a setting that is out of its range.
    """

    def __init__(
        self,
        step_size: float,
        *,
        momentum: float = 0.9,
        cycle: int | None = None,
        explore: float = 0.8,
    ) -> None:
        self.momentum = share("momentum", momentum)
        self._check(step_size, cycle, explore)
