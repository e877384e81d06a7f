"""What ``fit`` was asked to do, and where in it a run stands."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ppl_med.inference.batches import BatchSpec, Loader, is_finite

CHECKED = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass
class Plan:
    """Everything ``fit`` was asked to do; see its arguments."""

    loader: Loader
    epochs: int
    learning_rate: float
    optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer] | None
    schedule: str | Callable[[float], float]
    kl_weight: float | Callable[[float], float]
    objective: torch.nn.Module
    precision: str
    device: torch.device
    seed: int
    checkpoint: Path | None
    checkpoint_every: float
    validation: Any
    progress: bool
    limits: BatchSpec

    def factor(self, done: float) -> float:
        """Factor on the learning rate at a finished fraction."""
        if not callable(self.schedule):
            return 0.5 * (1 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1.0
        factor = self.schedule(done)
        if not (is_finite(factor) and factor >= 0):
            raise ValueError(
                f"schedule must give a finite number >= 0, got {factor!r} at {done:.3g} of the run"
            )
        return float(factor)

    def weight(self, done: float) -> float:
        """KL weight at a finished fraction."""
        weight = self.kl_weight(done) if callable(self.kl_weight) else self.kl_weight
        if not (is_finite(weight) and weight >= 0):
            raise ValueError(
                f"kl_weight must be a finite number >= 0, got {weight!r} at {done:.3g} of the run"
            )
        return float(weight)

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with the interrupted one; checks the schedules."""
        return {
            "epochs": self.epochs,
            "num_cases": self.loader.num_cases,
            "len(batches)": self.loader.num_batches,
            **self.loader.settings(),
            **self.objective.settings(),  # type: ignore[operator]
            "learning_rate": self.learning_rate,
            "precision": self.precision,
            "seed": self.seed,
            "kl_weight": [round(self.weight(x), 12) for x in CHECKED],
            "schedule": [round(self.factor(x), 12) for x in CHECKED],
            "validation": self.validation is not None,
        }


@dataclass
class Position:
    """Where the next step stands."""

    member: int = 0
    epoch: int = 0
    batch: int = 0
