"""Losses on their way from the device to the history: read in bunches, so that no step waits."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_med.inference.training.history import History
from ppl_med.inference.training.objectives import Loss
from ppl_med.programs.elbo import Terms


@dataclass
class _Step:
    """Terms of one step, on the device, with what the host knows of it."""

    terms: Tensor
    weight: float
    epoch: int
    rate: float | None


class LossLog:
    """Terms of the loss by site, on the device until they are read, last at time ``read_at``."""

    def __init__(self) -> None:
        self.read_at = time.monotonic()
        self._pending: list[_Step] = []
        self._observed: list[str] = []
        self._latent: list[str] = []
        self._extra: list[str] = []
        self._more: list[str] = []
        self._epoch_kl: list[Tensor] = []
        self._open: Tensor | None = None

    def __len__(self) -> int:
        return len(self._pending)

    def clear(self) -> None:
        """Forget what was not read."""
        self._pending, self._open = [], None

    def start_epoch(self) -> None:
        """Forget the KL of the epoch before."""
        self._epoch_kl = []

    def add(self, loss: Loss, num_cases: int, size: int = 1) -> None:
        """Take the terms of a batch, in nats for ``num_cases`` cases; ``size`` make a step."""
        self._observed, self._latent, self._extra = list(loss.nll), list(loss.kl), list(loss.extra)
        values = [*loss.nll.values(), *loss.kl.values(), *loss.extra.values()]
        terms = torch.stack(values).detach() / num_cases
        terms = terms if size == 1 else terms / size
        self._open = terms if self._open is None else self._open + terms

    def close(
        self, weight: float, epoch: int, more: Terms | None = None, rate: float | None = None
    ) -> None:
        """End a step, with its KL weight, further figures and perhaps its learning rate."""
        assert self._open is not None
        terms, self._open = self._open, None
        if more:
            terms = torch.cat([terms, torch.stack([v.detach() for v in more.values()]).to(terms)])
        self._more = list(more or ())
        self.append(terms, weight, epoch, rate)

    def append(self, terms: Tensor, weight: float, epoch: int, rate: float | None) -> None:
        """Take a step that has the terms of the last one that was closed, in their order."""
        self._pending.append(_Step(terms, weight, epoch, rate))

    def pop(self) -> Tensor:
        """Forget the last step; its terms."""
        return self._pending.pop().terms

    def open_terms(self) -> dict[str, Any]:
        """What was taken of a step that has not ended, for a checkpoint."""
        names = {"observed": self._observed, "latent": self._latent, "extra": self._extra}
        return {**names, "terms": self._open}

    def reopen(self, state: dict[str, Any], device: torch.device) -> None:
        """Counterpart of ``open_terms``."""
        self._observed, self._latent = state["observed"], state["latent"]
        self._extra, self._open = state["extra"], state["terms"].to(device)

    def read(self, history: History) -> None:
        """Move what is pending into the history, in nats per case.

        Raises a FloatingPointError at the first step whose loss is not finite; it names step and
        sites. A step that has not ended counts as one.
        """
        self.read_at = time.monotonic()
        pending, self._pending = self._pending, []
        if pending:
            rows = torch.stack([step.terms for step in pending]).double().cpu()
            self._move(rows, pending, history)
        if self._open is not None:
            self._check(self._open.cpu(), len(history.nll))

    def _move(self, rows: Tensor, pending: list[_Step], history: History) -> None:
        num_observed, num_terms = len(self._observed), len(self._observed) + len(self._latent)
        for row, step in zip(rows, pending, strict=True):
            self._check(row, len(history.nll))
            history.nll.append(float(row[:num_observed].sum()))
            history.kl.append(float(row[num_observed:num_terms].sum()))
            names = [*self._extra, *self._more]
            for name, value in zip(names, row[num_terms:].tolist(), strict=True):
                history.extra.setdefault(name, []).append(value)
            history.kl_weight.append(step.weight)
            history.epoch.append(step.epoch)
            if step.rate is not None:
                history.learning_rate.append(step.rate)
        self._epoch_kl.append(rows[:, num_observed:num_terms])

    def kl_by_site(self) -> dict[str, float]:
        """Mean KL of each latent site over the epoch so far, in nats per case."""
        if not self._epoch_kl:
            return {}
        means = torch.cat(self._epoch_kl).mean(0).tolist()
        return dict(zip(self._latent, means, strict=True))

    def _check(self, row: Tensor, step: int) -> None:
        if bool(row.isfinite().all()):
            return
        names = [f"negative log-likelihood of {name!r}" for name in self._observed]
        names += [f"KL of {name!r}" for name in self._latent]
        names += [*self._extra, *self._more]
        bad = "; ".join(
            f"{name} is {float(value)}"
            for name, value in zip(names, row, strict=False)
            if not math.isfinite(value)
        )
        raise FloatingPointError(f"the loss stopped being finite at step {step}: {bad}")
