"""One member's optimizer steps, each from the gradients of one batch or of several.

A step from k batches is that of one batch k times as large: of the loss

    (NLL + kl_weight * KL) / num_cases

the likelihood's part is summed over the batches, each case with the weight it has in an epoch of
ceil(T / k) steps (``share_of_step``), and the KL, which every batch holds whole, is averaged.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ppl_med.inference.training.loss_log import LossLog
from ppl_med.inference.training.moving_average import MovingAverage
from ppl_med.inference.training.objectives import Loss
from ppl_med.inference.training.parameter_groups import Groups
from ppl_med.programs.elbo import total


class Updates:
    """Optimizer, objective and losses of a member, and the step that is being made.

    Args:
        optimizer: Of all parameters that are trained.
        objective: The member's own.
        groups: The parameters.
        num_cases: Size of the data set.
        clip_norm: Most that the norm of the gradient may be, nats per case; None for any.
        average: That of the parameters; None for none.
        shows_rate: Whether the losses get the learning rate of every step.

    Attributes:
        engine: What gives the loss of a batch: the objective, or what averages over ranks.
        size: Batches of the open step; 0 where none is open.
        weight: The KL weight of the open step.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        objective: nn.Module,
        groups: Groups,
        num_cases: int,
        clip_norm: float | None,
        average: MovingAverage | None = None,
        *,
        shows_rate: bool = False,
    ) -> None:
        self.optimizer, self.objective, self.groups = optimizer, objective, groups
        self.engine: Callable[..., Loss] = objective
        self.num_cases, self.clip_norm, self.shows_rate = num_cases, clip_norm, shows_rate
        self.average, self.losses = average, LossLog()
        self.size = self._count = 0
        self.weight = 1.0
        self._nll: Tensor | None = None
        self._rates = [g.setdefault("initial_lr", g["lr"]) for g in optimizer.param_groups]
        self._masks = [(p, (s > 0).to(s)) for p, s in groups.shares if bool((s == 0).any())]

    def open(self, size: int, rate: float, weight: float) -> None:
        """Begin a step of ``size`` batches, at a factor on the learning rate and a KL weight."""
        for group, full in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = full * rate
        self.size, self._count, self.weight, self._nll = size, 0, weight, None
        self.optimizer.zero_grad(set_to_none=True)

    def add(self, loss: Loss, epoch: int) -> None:
        """Take the gradient of a batch; with the last one of the step, make it."""
        value = loss.value / self.num_cases
        (value if self.size == 1 else value / self.size).backward()
        self._count += 1
        self.losses.add(loss, self.num_cases, self.size)
        nll = total(loss.nll).detach()
        nll = nll if self.size == 1 else nll / self.size
        self._nll = nll if self._nll is None else self._nll + nll
        if self._count == self.size:
            self.finish(epoch)

    def finish(self, epoch: int) -> None:
        """Make the step of the batches so far, where there are any."""
        if not self._count:
            return
        extra = {}
        if self.clip_norm is not None:
            for parameter, mask in self._masks:
                if parameter.grad is not None:
                    parameter.grad.mul_(mask)
            norm = torch.nn.utils.clip_grad_norm_(list(self._parameters()), self.clip_norm)
            extra["gradient_norm"] = norm
        before = [parameter.detach().clone() for parameter, _ in self.groups.shares]
        self.optimizer.step()
        with torch.no_grad():
            for (parameter, share), earlier in zip(self.groups.shares, before, strict=True):
                parameter.copy_(torch.lerp(earlier, parameter, share.expand_as(parameter)))
        if self.average is not None:
            self.average.update()
        self.objective.advance(self._nll, self.num_cases)  # type: ignore[operator]
        self.losses.close(self.weight, epoch, extra, self._shown_rate())
        self.size = self._count = 0

    def _shown_rate(self) -> float | None:
        """The learning rate of the first group of parameters."""
        return float(self.optimizer.param_groups[0]["lr"]) if self.shows_rate else None

    def is_finite(self) -> bool:
        """Whether the gradients of an open step are all finite."""
        found = [p.grad for p in self._parameters() if self._count and p.grad is not None]
        return all(bool(gradient.isfinite().all()) for gradient in found)

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.optimizer.param_groups:
            yield from group["params"]

    def open_step(self) -> dict[str, Any] | None:
        """What a checkpoint holds of a step that is being made; None where none is."""
        if not self._count:
            return None
        return {
            "size": self.size,
            "count": self._count,
            "weight": self.weight,
            "rates": [group["lr"] for group in self.optimizer.param_groups],
            "nll": self._nll,
            "losses": self.losses.open_terms(),
            "gradients": [p.grad for p in self._parameters()],
        }

    def reopen(self, state: dict[str, Any] | None) -> None:
        """Counterpart of ``open_step``."""
        if state is None:
            return
        self.open(state["size"], 1.0, state["weight"])
        for group, rate in zip(self.optimizer.param_groups, state["rates"], strict=True):
            group["lr"] = rate
        for parameter, gradient in zip(self._parameters(), state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter)
        self._count = state["count"]
        self._nll = state["nll"].to(next(self._parameters()).device)
        self.losses.reopen(state["losses"], self._nll.device)


def share_of_step(num_batches: int, accumulate: int, size: int) -> float:
    """What a batch's likelihood is multiplied by in a step of ``size`` batches.

    An epoch of T batches has ceil(T / k) steps; where k divides T it is 1.
    """
    return num_steps(num_batches, accumulate) * size / num_batches


def num_steps(num_batches: int, accumulate: int) -> int:
    """Steps in an epoch."""
    return -(-num_batches // accumulate)
