"""Whether one can tell which case is which, and when all have been seen."""

from collections.abc import Mapping, Sized
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
)


def check_stream(batches: Any, name: str = "batches") -> None:
    """Raise a TypeError on a stream of cases of which nobody knows when an epoch ends."""
    data = getattr(batches, "dataset", batches)
    if isinstance(data, IterableDataset) and not isinstance(data, Sized):
        raise TypeError(
            f"{name}: {type(data).__name__} is an IterableDataset without a length, so that "
            "nobody knows when an epoch ends; give it __len__, the number of its cases, or write "
            "it as a Dataset with __getitem__ and __len__"
        )


def distributed_sampler(batches: Any) -> DistributedSampler | None:
    """What gives each process its part of the cases, where batches come from such a one."""
    batched = getattr(batches, "batch_sampler", None)
    sampler = getattr(batched, "sampler", None)
    known = isinstance(batches, DataLoader) and isinstance(sampler, DistributedSampler)
    return sampler if known else None


def check_order(batches: Any, first: Mapping[str, Any]) -> None:
    """Raise where cases without ids come in an order that is not the data set's.

    Positions would be their names then, which belong to other cases at the next pass.

    Args:
        batches: What is predicted.
        first: Its first batch.

    Raises:
        ValueError: If they come from a DataLoader with another sampler than a sequential one, and
            have no "id".
    """
    if first.get("id") is not None or not isinstance(batches, DataLoader):
        return
    if isinstance(batches.dataset, IterableDataset):
        return  # which draws its order itself, or not
    sampler: Any = batches.sampler if batches.batch_sampler is None else batches.batch_sampler
    sampler = sampler.sampler if type(sampler) is BatchSampler else sampler
    if type(sampler) is not SequentialSampler:
        raise ValueError(
            f"batches come in the order of a {type(sampler).__name__} and have no 'id', so nobody "
            "could tell which prediction is whose; use DataLoader(..., shuffle=False), or let the "
            "data set return an 'id' with every case"
        )
