"""How often an epoch visits each case: what makes the mean over its steps the ELBO of all cases.

A step's log-densities are weighed so that, summed over an epoch of T batches and divided by T,
every case counts once:

    weight of case i in a step  =  T / (expected visits of i in an epoch)

in whatever order and whatever sizes the batches come, with or without replacement. Where all cases
are visited alike, V times in sum, that is T * num_cases / V. On several ranks, each with its share
of an epoch, T and the visits are those of one rank.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)


@dataclass
class Visits:
    """Visits that an epoch makes.

    Attributes:
        total: Cases in all batches of an epoch; None where nobody says.
        num_cases: Different cases that epochs visit in the long run; None where nobody says.
        by_case: Expected visits of every position of the data set, float64 (position,), where they
            differ.
        known: Whether the order is that of a sampler whose chances are known.
    """

    total: int | None = None
    num_cases: int | None = None
    by_case: Tensor | None = None
    known: bool = True


def visits_of_loader(loader: DataLoader) -> Visits:
    """Read the visits off the samplers of a DataLoader.

    Subsets are drawn by a sampler as well as by a ``Subset``; the size of the data set that they
    are drawn from is then not the one that scales the likelihood.

    Raises:
        ValueError: If cases are drawn by weights without replacement, so that how often each is
            visited has no closed form.
    """
    if isinstance(loader.dataset, IterableDataset):
        size = len(loader.dataset) if isinstance(loader.dataset, Sized) else None
        return Visits(num_cases=size)
    batched: Any = loader.batch_sampler
    if _kind(batched) is not BatchSampler:
        return Visits(known=batched is None)
    sampler: Any = batched.sampler
    kind = _kind(sampler)
    total = len(batched) * batched.batch_size if batched.drop_last else _length(sampler)
    if kind is SequentialSampler:
        return Visits(total, total)  # the same cases are left out every time
    if kind is RandomSampler:
        return Visits(total, len(sampler.data_source))
    if kind is SubsetRandomSampler:
        return Visits(total, len(sampler.indices))
    if kind is WeightedRandomSampler:
        return _weighted(sampler, total)
    if kind is DistributedSampler:
        return _distributed(sampler, total)
    return Visits(total, known=False)


def _kind(sampler: Any) -> type:
    """The class of a sampler; of torchdata's, which draw alike, torch's of that name."""
    kind = type(sampler)
    if not kind.__module__.startswith("torchdata."):
        return kind
    return getattr(torch.utils.data, kind.__name__.removeprefix("Stateful"), kind)


def _length(sampler: Any) -> Any:
    return len(sampler) if isinstance(sampler, Sized) else None


def _weighted(sampler: Any, total: int) -> Visits:
    weights = sampler.weights.double()
    drawn = weights > 0
    if not sampler.replacement:
        if total != int(drawn.sum()):
            raise ValueError(
                "batches draw cases by a WeightedRandomSampler without replacement: how often each "
                "is visited has no closed form, so its weight cannot be divided out; pass "
                "replacement=True"
            )
        return _by_case(drawn.double(), total)
    return _by_case(total * weights / weights.sum(), total)


def _distributed(sampler: Any, total: int) -> Visits:
    """Cases of one rank; without shuffling, the same few are given twice to fill the last rank."""
    size, ranks = len(sampler.dataset), sampler.num_replicas
    if sampler.shuffle:
        return Visits(total, size)
    positions = torch.arange(sampler.total_size) % size
    shares = positions.reshape(-1, ranks)[:total]
    return _by_case(shares.flatten().bincount(minlength=size).double() / ranks, total)


def _by_case(expected: Tensor, total: int) -> Visits:
    visited = expected[expected > 0]
    alike = bool((visited == visited[0]).all())
    return Visits(total, len(visited), None if alike else expected)


class WatchedBatches:
    """A DataLoader that notes the positions of the cases in each batch.

    Args:
        loader: Takes its batches from a batch sampler, and is left as it is.

    Attributes:
        positions: Of the batches that were drawn and not yet asked for, in order.
    """

    def __init__(self, loader: DataLoader) -> None:
        self.positions: deque[list[int]] = deque()
        self._sampler: Any = loader.batch_sampler
        self._loader = object.__new__(type(loader))  # a DataLoader lets no sampler be exchanged
        self._loader.__dict__.update(vars(loader), batch_sampler=self._Noting(self))

    def __iter__(self) -> Iterator[Any]:
        """The batches of an epoch."""
        self.positions.clear()
        return iter(self._loader)

    class _Noting:
        def __init__(self, owner: "WatchedBatches") -> None:
            self.owner = owner

        def __iter__(self) -> Iterator[Any]:
            for positions in self.owner._sampler:
                self.owner.positions.append(list(positions))
                yield positions

        def __len__(self) -> int:
            return len(self.owner._sampler)


def expected_total(first_size: int, num_batches: int, num_cases: int) -> int:
    """Cases in an epoch of batches that say nothing of it, from the size of the first.

    All cases once where their number fits; else as many full batches as there are, as where the
    last is dropped, or where an epoch passes over the data several times.
    """
    full = first_size * num_batches
    return num_cases if full - first_size < num_cases <= full else full


class EpochCount:
    """Counts what an epoch visits and says where that is not what its weights assume."""

    def __init__(self, visits: Visits, num_batches: int) -> None:
        self.total, self.num_batches, self.known = visits.total, num_batches, visits.known
        self.cases = self.batches = 0
        self.positions: Counter[int] = Counter()

    def add(self, size: int, positions: list[int]) -> None:
        """Count one batch."""
        self.cases, self.batches = self.cases + size, self.batches + 1
        if not self.known:
            self.positions.update(positions)

    def fault(self) -> str | None:
        """A sentence with the cure, or None."""
        if (
            self.total
            and self.batches
            and (self.cases, self.batches) != (self.total, self.num_batches)
        ):
            return (
                f"an epoch of batches had {self.cases} cases in {self.batches} batches where "
                f"{self.total} in {self.num_batches} were expected, so that the likelihood is "
                f"scaled by {self.cases * self.num_batches / (self.batches * self.total):.3g} "
                "times what it should be; give batches the attribute cases_per_epoch and a length "
                "that hold"
            )
        most = max(self.positions.values(), default=1)
        if most > 1:
            return (
                f"batches visited a case {most} times in one epoch by a sampler whose weights are "
                "not known, and every visit counts: the posterior is that of the resampled data; "
                "use a torch WeightedRandomSampler, whose weights are divided out"
            )
        return None
