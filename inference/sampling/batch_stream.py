"""Batches without end for samplers that read one a step, from where a chain stands."""

from collections.abc import Mapping
from typing import Any

import torch

from ppl_med.inference.batches import BatchSpec, Loader
from ppl_med.inference.training.resumed_epochs import epoch_from
from ppl_med.programs.sites import Program, select_arguments


class BatchStream:
    """Epoch after epoch of batches.

    Args:
        model: Whose arguments the batches give.
        loader: The batches.
        spec: What the model accepts.
        seed: Of the order.
        device: Whose generator is used.
    """

    def __init__(
        self, model: Program, loader: Loader, spec: BatchSpec, seed: int, device: torch.device
    ) -> None:
        self.model, self.loader, self.spec = model, loader, spec
        self.seed, self.device = seed, device
        self.epoch = self.batch = 0
        self._start: dict[str, Any] | None = None
        self._iterator: Any = None

    def next(self) -> tuple[dict[str, Any], Any]:
        """The next batch's inputs, and what its cases weigh beyond num_cases / len(batch)."""
        while (found := self._taken()) is None:
            if self.batch == 0:
                raise ValueError(
                    f"batches yielded nothing in epoch {self.epoch}; it must be re-iterable"
                )
            self.epoch, self.batch, self._start, self._iterator = self.epoch + 1, 0, None, None
        batch, factor = found
        self.spec.check(batch, self.loader.num_cases)
        self.batch += 1
        return select_arguments(self.model, batch), factor

    def _taken(self) -> Any:
        """The next of the epoch's batches; None at its end."""
        if self._iterator is None:
            self._iterator, self._start = epoch_from(
                self.loader, self.epoch, self.batch, self._start, self.seed, self.device
            )
        return next(self._iterator, None)

    def state(self) -> dict[str, Any]:
        """Where the stream stands."""
        return {"epoch": self.epoch, "batch": self.batch, "start": self._start}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Counterpart of ``state``; the next batch is the one that would have come."""
        self.epoch, self.batch, self._start = state["epoch"], state["batch"], state["start"]
        self._iterator = None
