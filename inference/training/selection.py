"""What held-out scores decide: which epoch is kept, when training stops, when the rate falls.

All of it is a function of the scores so far, so that a resumed run decides as the whole one did.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ppl_med.checks import finite, inside, whole


@dataclass(frozen=True)
class EarlyStopping:
    """Stop training where the held-out NLL no longer improves, for ``fit(stopping=...)``.

    Args:
        patience: Epochs in a row without improvement after which training stops.
        min_delta: Nats per case by which an epoch must beat the best one to count as improved.

    Raises:
        ValueError: If an argument is out of range.
    """

    patience: int = 5
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        whole("patience", self.patience)
        finite("min_delta", self.min_delta, least=0)

    def is_over(self, scores: Sequence[float]) -> bool:
        """Whether training stops after the epochs with these held-out NLLs, nats per case."""
        best, waited = math.inf, 0
        for score in scores:
            best, waited = _seen(score, best, waited, self.min_delta)
        return waited >= self.patience


@dataclass(frozen=True)
class Plateau:
    """A learning rate that falls where the held-out NLL does not, for ``fit(schedule=...)``.

    Args:
        patience: Epochs in a row without improvement after which the rate falls; the count then
            starts anew.
        factor: What the rate is multiplied by, in (0, 1).
        min_delta: Nats per case by which an epoch must beat the best one to count as improved.
        least: Smallest factor on the learning rate.

    Raises:
        ValueError: If an argument is out of range.
    """

    patience: int = 5
    factor: float = 0.1
    min_delta: float = 0.0
    least: float = 0.0

    def __post_init__(self) -> None:
        whole("patience", self.patience)
        inside("factor", self.factor)
        finite("min_delta", self.min_delta, least=0)
        finite("least", self.least, least=0, most=1)

    def rate(self, scores: Sequence[float]) -> float:
        """Factor on the learning rate after epochs with these held-out NLLs, nats per case."""
        best, waited, rate = math.inf, 0, 1.0
        for score in scores:
            best, waited = _seen(score, best, waited, self.min_delta)
            if waited >= self.patience:
                rate, waited = max(rate * self.factor, self.least), 0
        return rate


def _seen(score: float, best: float, waited: int, min_delta: float) -> tuple[float, int]:
    """Best score and epochs since it, once another epoch is over; NaN never improves."""
    return (score, 0) if score < best - min_delta else (best, waited + 1)


def best_epoch(scores: Sequence[float]) -> int | None:
    """The first epoch with the lowest held-out NLL; None where none is finite."""
    known = [(score, epoch) for epoch, score in enumerate(scores) if math.isfinite(score)]
    return min(known)[1] if known else None
