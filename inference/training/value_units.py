"""The unit of numbers, taken from the training values before the first step."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ppl_med.data import Batches
from ppl_med.inference.loader_generators import generators_restored
from ppl_med.likelihoods.number_units import NumberLikelihood
from ppl_med.programs.parameters import parts_of

MOST_BATCHES = 100


def learn_units(models: Sequence[Any], batches: Any) -> None:
    """Give likelihoods of numbers mean and standard deviation of their training values.

    Those are left alone whose unit was given, or learnt by an earlier run. All values of
    ``Batches`` and of a list are read; of other batches, the first ``MOST_BATCHES`` of a pass.
    Random number generators, also the loader's own, are left as they were.

    Args:
        models: The models of all members, which get the same.
        batches: As in ``fit``.
    """
    found = [part for model in models for part in parts_of(model)]
    still = [part for part in found if isinstance(part, NumberLikelihood) and part.is_open]
    if not still:
        return
    moments: dict[str, _Moments] = {}
    with generators_restored(batches):
        for batch in _read(batches):
            for part in still:
                value = batch.get(part.site)
                if isinstance(value, Tensor) and part is _first_of(still, part.site):
                    moments.setdefault(part.site, _Moments(part.loc.ndim)).add(value)
    for part in still:
        if part.site in moments:
            part.learn_unit(*moments[part.site].result(part.loc))


def _read(batches: Any) -> Iterable[Mapping[str, Any]]:
    if isinstance(batches, Batches):
        return [batches.arrays]
    return batches if isinstance(batches, list | tuple) else islice(batches, MOST_BATCHES)


def _first_of(parts: Sequence[NumberLikelihood], site: str) -> NumberLikelihood:
    return next(part for part in parts if part.site == site)


class _Moments:
    """Count, sum and sum of squares about the first values, of each of the last ``kept`` axes."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.centre: Tensor | None = None
        self.count = self.total = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, value: Tensor) -> None:
        """Take in values (case, ...), without what is NaN."""
        value = value.detach().cpu().double()
        flat = value.reshape(-1, *value.shape[value.ndim - self.kept :])
        seen = flat.isfinite()
        flat = flat.nan_to_num(0.0, 0.0, 0.0)
        if self.centre is None:
            self.centre = flat.sum(0) / seen.sum(0).clamp(min=1)
        away = torch.where(seen, flat - self.centre, 0.0)
        self.count = self.count + seen.sum(0)
        self.total = self.total + away.sum(0)
        self.squares = self.squares + away.square().sum(0)

    def result(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, 0 where it has none."""
        assert self.centre is not None
        count = self.count.clamp(min=1)
        mean = self.total / count
        variance = (self.squares / count - mean.square()).clamp(min=0)
        return (self.centre + mean).to(like), variance.sqrt().to(like)
