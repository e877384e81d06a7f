"""Losses on their way from the device to the history: read in bunches, so that no step waits."""

import math
import time

import torch
from torch import Tensor

from ppl_med.inference.training.history import History
from ppl_med.inference.training.objectives import Loss


class LossLog:
    """Terms of the loss by site, on the device until they are read, last at time ``read_at``."""

    def __init__(self) -> None:
        self.read_at = time.monotonic()
        self._pending: list[tuple[Tensor, float, int]] = []
        self._observed: list[str] = []
        self._latent: list[str] = []
        self._extra: list[str] = []
        self._epoch_kl: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._pending)

    def clear(self) -> None:
        """Forget what was not read."""
        self._pending = []

    def start_epoch(self) -> None:
        """Forget the KL of the epoch before."""
        self._epoch_kl = []

    def add(self, loss: Loss, num_cases: int, weight: float, epoch: int) -> None:
        """Take the terms of one step, in nats for ``num_cases`` cases."""
        self._observed, self._latent, self._extra = list(loss.nll), list(loss.kl), list(loss.extra)
        values = [*loss.nll.values(), *loss.kl.values(), *loss.extra.values()]
        terms = torch.stack(values).detach() / num_cases
        self._pending.append((terms, weight, epoch))

    def read(self, history: History) -> None:
        """Move what is pending into the history, in nats per case.

        Raises a FloatingPointError at the first step whose loss is not finite; it names step and
        sites.
        """
        self.read_at = time.monotonic()
        if not self._pending:
            return
        rows = torch.stack([terms for terms, _, _ in self._pending]).double().cpu()
        pending, self._pending = self._pending, []
        num_observed, num_terms = len(self._observed), len(self._observed) + len(self._latent)
        for row, (_, weight, epoch) in zip(rows, pending, strict=True):
            if not bool(row.isfinite().all()):
                raise FloatingPointError(
                    f"the loss stopped being finite at step {len(history.nll)}: {self._bad(row)}"
                )
            history.nll.append(float(row[:num_observed].sum()))
            history.kl.append(float(row[num_observed:num_terms].sum()))
            for name, value in zip(self._extra, row[num_terms:].tolist(), strict=True):
                history.extra.setdefault(name, []).append(value)
            history.kl_weight.append(weight)
            history.epoch.append(epoch)
        self._epoch_kl.append(rows[:, num_observed:num_terms])

    def kl_by_site(self) -> dict[str, float]:
        """Mean KL of each latent site over the epoch so far, in nats per case."""
        if not self._epoch_kl:
            return {}
        means = torch.cat(self._epoch_kl).mean(0).tolist()
        return dict(zip(self._latent, means, strict=True))

    def _bad(self, row: Tensor) -> str:
        names = [f"negative log-likelihood of {name!r}" for name in self._observed]
        names += [f"KL of {name!r}" for name in self._latent]
        names += self._extra
        return "; ".join(
            f"{name} is {float(value)}"
            for name, value in zip(names, row, strict=True)
            if not math.isfinite(value)
        )
