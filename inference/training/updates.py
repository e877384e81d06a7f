"""One member's optimizer steps, each from the gradients of one batch or of several.

A step from k batches is that of one batch k times as large: of the loss

    (NLL + kl_weight * KL) / num_cases

the likelihood's part is summed over the batches, each case with the weight it has in an epoch of
ceil(T / k) steps (``share_of_step``), and the KL, which every batch holds whole, is averaged.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ppl_med.inference.training.loss_log import LossLog
from ppl_med.inference.training.moving_average import MovingAverage
from ppl_med.inference.training.objectives import Loss
from ppl_med.inference.training.parameter_groups import Groups
from ppl_med.programs.elbo import Terms, total


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
        capture: Whether steps are captured: learning rates and KL weight are then tensors on the
            device, which a replay reads anew.

    Attributes:
        engine: What gives the loss of a batch: the objective, or what averages over ranks.
        size: Batches of the open step; 0 where none is open.
        weight: The KL weight of the open step.
        kl_weight: The same, as the objective is to be given it.
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
        capture: bool = False,
    ) -> None:
        self.optimizer, self.objective, self.groups = optimizer, objective, groups
        self.engine: Callable[..., Loss] = objective
        self.num_cases, self.clip_norm, self.shows_rate = num_cases, clip_norm, shows_rate
        self.average, self.losses = average, LossLog()
        self.size = self._count = 0
        self.weight = 1.0
        self.kl_weight: float | Tensor = self.weight
        self._nll: Tensor | None = None
        self._rates = [g.setdefault("initial_lr", g["lr"]) for g in optimizer.param_groups]
        self._present = list(self._rates)
        self._on_trial = False
        if capture:
            self._put_on_device()
        self._masks = [(p, (s > 0).to(s)) for p, s in groups.shares if bool((s == 0).any())]

    def _put_on_device(self) -> None:
        """Let optimizer and objective read rates and KL weight off the device."""
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            device = group["params"][0].device
            group["capturable"] = True
            group["lr"] = torch.full((), float(rate), device=device)
        self.kl_weight = torch.ones((), device=device)

    def open(self, size: int, rate: float, weight: float) -> None:
        """Begin a step of ``size`` batches, at a factor on the learning rate and a KL weight."""
        self._open(size, [full * rate for full in self._rates], weight)
        self.optimizer.zero_grad(set_to_none=True)

    def _open(self, size: int, rates: Sequence[float], weight: float) -> None:
        self.size, self._count, self._nll = size, 0, None
        self.weight, self._present = weight, list(rates)
        if not isinstance(self.kl_weight, Tensor):
            self.kl_weight = weight
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            return
        self.kl_weight.fill_(weight)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"].fill_(rate)

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
        extra = self._move()
        self.losses.close(self.weight, epoch, extra, self._shown_rate())
        self._end()

    def _move(self) -> Terms:
        """Move the parameters by their gradients; further figures of the step."""
        extra = {}
        if self.clip_norm is not None:
            for parameter, mask in self._masks:
                if parameter.grad is not None:
                    parameter.grad.mul_(mask)
            norm = torch.nn.utils.clip_grad_norm_(list(self.parameters()), self.clip_norm)
            extra["gradient_norm"] = norm
        before = [parameter.detach().clone() for parameter, _ in self.groups.shares]
        self.optimizer.step()
        with torch.no_grad():
            for (parameter, share), earlier in zip(self.groups.shares, before, strict=True):
                parameter.copy_(torch.lerp(earlier, parameter, share.expand_as(parameter)))
        self.objective.advance(self._nll, self.num_cases)  # type: ignore[operator]
        return extra

    def _end(self) -> None:
        self.size = self._count = 0
        if self.average is not None and not self._on_trial:
            self.average.update()

    @contextmanager
    def trial(self, rate: float = 1.0, weight: float | None = None) -> Iterator[None]:
        """Make the open step on trial in the block: it moves no average, and stays open.

        What moves the parameters is not undone. The block takes the step off ``losses``.

        Args:
            rate: Factor on its learning rates.
            weight: The KL weight; None for its own.
        """
        size, rates, own = self.size, self._present, self.weight
        self._on_trial = True
        self._open(size, [rate * full for full in rates], own if weight is None else weight)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            yield
        finally:
            self._on_trial = False
            self._open(size, rates, own)

    def replayed(self, terms: Tensor, epoch: int) -> None:
        """Take note of a step that was made by a replay; the next one writes to the same terms."""
        self.losses.append(terms.clone(), self.weight, epoch, self._shown_rate())
        self._end()

    def _shown_rate(self) -> float | None:
        """The learning rate of the first group of parameters."""
        return float(self._present[0]) if self.shows_rate else None

    def is_finite(self) -> bool:
        """Whether the gradients of an open step are all finite."""
        found = [p.grad for p in self.parameters() if self._count and p.grad is not None]
        return all(bool(gradient.isfinite().all()) for gradient in found)

    def parameters(self) -> Iterator[Tensor]:
        """All that the optimizer moves."""
        for group in self.optimizer.param_groups:
            yield from group["params"]

    def optimizer_state(self) -> dict[str, Any]:
        """What a checkpoint holds of the optimizer, the rates as numbers."""
        state = self.optimizer.state_dict()
        groups = zip(state["param_groups"], self._present, strict=True)
        return {**state, "param_groups": [{**group, "lr": rate} for group, rate in groups]}

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Counterpart of ``optimizer_state``; whether steps are captured may differ."""
        own = self.optimizer.param_groups
        rates = [group["lr"] for group in own]
        flags = [{n: v for n, v in group.items() if n == "capturable"} for group in own]
        groups = state["param_groups"]
        if len(groups) == len(flags):  # or torch says so
            groups = [{**group, **flag} for group, flag in zip(groups, flags, strict=True)]
        self.optimizer.load_state_dict({**state, "param_groups": groups})
        self._present = [group["lr"] for group in self.optimizer.param_groups]
        if isinstance(self.kl_weight, Tensor):
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def open_step(self) -> dict[str, Any] | None:
        """What a checkpoint holds of a step that is being made; None where none is."""
        if not self._count:
            return None
        return {
            "size": self.size,
            "count": self._count,
            "weight": self.weight,
            "rates": list(self._present),
            "nll": self._nll,
            "losses": self.losses.open_terms(),
            "gradients": [p.grad for p in self.parameters()],
        }

    def reopen(self, state: dict[str, Any] | None) -> None:
        """Counterpart of ``open_step``."""
        if state is None:
            return
        self._open(state["size"], state["rates"], state["weight"])
        for parameter, gradient in zip(self.parameters(), state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter)
        self._count = state["count"]
        self._nll = state["nll"].to(next(self.parameters()).device)
        self.losses.reopen(state["losses"], self._nll.device)


def share_of_step(num_batches: int, accumulate: int, size: int) -> float:
    """What a batch's likelihood is multiplied by in a step of ``size`` batches.

    An epoch of T batches has ceil(T / k) steps; where k divides T it is 1.
    """
    return num_steps(num_batches, accumulate) * size / num_batches


def num_steps(num_batches: int, accumulate: int) -> int:
    """Steps in an epoch."""
    return -(-num_batches // accumulate)
