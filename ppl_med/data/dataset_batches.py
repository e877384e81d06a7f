"""Batches of a data set that returns dicts, MONAI's or one's own, in an order that can be resumed.

Item i of epoch e is a function of (seed, e, i) alone: before it is made, the generators of torch,
NumPy and Python and those of MONAI's transforms are seeded for it. So a run that was killed, or
one with more workers, sees the same crops and the same flips.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ppl_med.checks import whole
from ppl_med.data.batches import Epochs
from ppl_med.data.case_entries import CaseEntries
from ppl_med.data.random_streams import random_stream
from ppl_med.data.source_files import check_sources, source_names
from ppl_med.data.transform_seeds import random_parts, seed_parts
from ppl_med.programs import rng

_ORDER, _ITEM = range(2)  # streams of random numbers


class DatasetBatches(Epochs):
    """Re-iterable batches over a data set that is asked for one case at a time.

    ``fit`` and ``predict`` make them of a data set that is given to them, with batches of one case.
    What stands in a batch is told by ``data.case_entries.CaseEntries``: crops of a volume stand
    side by side, each with its share of the volume's weight, so that an epoch sums to
    ``num_cases`` volumes, however many crops they give.

    Args:
        dataset: Has a length and ``dataset[i]``, a dict or a list of dicts (crops): a data set of
            MONAI (``Dataset``, ``CacheDataset``, ``PersistentDataset``) or of torch.
        batch_size: Items per batch, of one shape; a volume that gives crops is one item.
        shuffle: New order every epoch.
        seed: Seed of order and random transforms, together with the epoch and the item.
        drop_last: Leave out a last batch that is smaller than ``batch_size``.
        workers: Processes that make the items; 0 makes them here. They do not change the items.
        keys: Names of the data set's entries -> names of the model's arguments, such as
            ``{"label": "mask"}``.
        mixed_spacing: Whether cases of different spacing are meant; otherwise ``fit`` raises.

    Attributes:
        num_cases: Items of the data set, also as ``cases_per_epoch`` unless ``drop_last`` leaves
            some out.
        epoch: The epoch that iteration will use, from 0.

    Raises:
        TypeError: The data set cannot be asked for an item, or has no length.
        ValueError: It is empty, or an argument is out of range.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        workers: int = 0,
        keys: Mapping[str, str] | None = None,
        mixed_spacing: bool = False,
    ) -> None:
        """Check the settings; see the class."""
        if not is_dataset(dataset):
            raise TypeError(
                f"dataset must have a length and give its items by dataset[i], got "
                f"{type(dataset).__name__}; arrays go to Batches, and a DataLoader or a list of "
                "batches to fit and predict as it is"
            )
        self.dataset, self.num_cases = dataset, len(dataset)
        if self.num_cases == 0:
            raise ValueError("dataset is empty: it has no item; check the folder or the split")
        self.batch_size = whole("batch_size", batch_size, most=len(dataset) if drop_last else None)
        self.seed, self.workers = whole("seed", seed, 0), whole("workers", workers, 0)
        self.shuffle, self.drop_last, self.mixed_spacing = shuffle, drop_last, mixed_spacing
        entries = CaseEntries(keys=keys)
        self._collate = CaseEntries(keys=keys, names=source_names(dataset, entries.keys))
        self._items = _Items(dataset, self.seed)

    @property
    def cases_per_epoch(self) -> int:
        """Items in the batches of an epoch, without those that ``drop_last`` leaves out."""
        return len(self) * self.batch_size if self.drop_last else self.num_cases

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.num_cases // self.batch_size + (
            0 if self.drop_last else self.num_cases % self.batch_size > 0
        )

    def iterate(self, epoch: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the batches of one epoch, from 0, from batch ``start`` on, at no cost before."""
        order = list(range(self.num_cases))
        if self.shuffle:
            order = random_stream(self.seed, _ORDER, epoch).permutation(self.num_cases).tolist()
        size = self.batch_size
        places = [
            [(epoch, item) for item in order[batch * size : (batch + 1) * size]]
            for batch in range(start, len(self))
        ]
        yield from DataLoader(
            self._items,
            batch_sampler=places,
            num_workers=self.workers,
            collate_fn=self._joined,
            generator=torch.Generator(),  # which the order does not hang on
        )

    def check(self, *, training: bool) -> None:
        """Raise where the files behind the data set are missing or unlike; see ``source_files``."""
        check_sources(self.dataset, headers=training, spacing=not self.mixed_spacing)

    def items(self, positions: Any) -> Any:
        """A batch of some items, as in epoch 0."""
        return self._joined([self._items[0, int(position)] for position in positions])

    def _joined(self, placed: list[tuple[int, Any]]) -> Any:
        """A batch of items with their places, which are the ids of cases that have no other."""
        for place, item in placed:
            if not isinstance(item, Mapping | list):
                raise TypeError(
                    f"an item must be a dict such as {{'image': Tensor, 'label': Tensor}}, or a "
                    f"list of them, got {type(item).__name__} at dataset[{place}]; give names to "
                    "what the data set returns"
                )
        batch = self._collate([item for _, item in placed])
        if isinstance(batch, dict) and batch.get("id") is None:
            crops = [len(item) if isinstance(item, list) else 1 for _, item in placed]
            places = [place for place, _ in placed]
            batch["id"] = [place for place, n in zip(places, crops, strict=True) for _ in range(n)]
        return batch


def is_dataset(dataset: Any) -> bool:
    """Whether something has a length and items, and is no loader, no dict and no list."""
    if isinstance(dataset, IterableDataset | Mapping | list | tuple | str | Epochs):
        return False
    has_items = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    # An array passes over its items by itself; torch's Dataset does not.
    return has_items and not hasattr(dataset, "__iter__")


class _Items(Dataset):
    """The items of a data set, each under random numbers of its own."""

    def __init__(self, dataset: Any, seed: int) -> None:
        super().__init__()
        self.dataset, self.seed = dataset, seed
        self.parts = random_parts(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int]) -> tuple[int, Any]:
        epoch, item = place
        own = int(random_stream(self.seed, _ITEM, epoch, item).integers(2**63))
        with rng.restored():
            rng.seed_in_use(own)
            seed_parts(self.parts, own)
            return item, self.dataset[item]
