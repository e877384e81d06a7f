"""Whatever a user has of batches, as ``fit`` and ``predict`` read them."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader

from ppl_med.data.case_entries import CaseEntries, check_keys
from ppl_med.data.dataset_batches import DatasetBatches, is_dataset
from ppl_med.data.geometry import is_meta_tensor
from ppl_med.data.source_files import check_sources, source_names
from ppl_med.data.transform_seeds import random_parts, seed_worker


def adapted(batches: Any, keys: Mapping[str, str] | None = None, *, training: bool = False) -> Any:
    """Batches whose entries have the names and forms that models read.

    A data set is given out in batches of one case, shuffled in training. A DataLoader is copied,
    with a collate function that ends in ``CaseEntries``; the one that was given is left as it is.

    Args:
        batches: As in ``fit`` and ``predict``.
        keys: Names of entries -> names of the model's arguments.
        training: Whether files must also be alike, see ``data.source_files.check_sources``.

    Raises:
        FileNotFoundError: Files behind a data set are missing.
        ValueError: ``keys`` are not as described, or files are unlike.
    """
    keys = check_keys(keys)
    if is_dataset(batches):
        batches = DatasetBatches(batches, shuffle=training, keys=keys)
        keys = {}
    if isinstance(batches, DatasetBatches):
        batches.check(training=training)
    if isinstance(batches, DataLoader):
        return _copied(batches, keys, training)
    convert = CaseEntries(keys=keys).convert
    if isinstance(batches, list | tuple):
        plain = not keys and not _foreign(batches)
        return batches if plain else [convert(batch) for batch in batches]
    return _Converted(batches, convert) if keys and hasattr(batches, "__iter__") else batches


def warn_of_kept_workers(batches: Any) -> None:
    """Warn where no resumed run can draw what workers of a DataLoader would have drawn.

    Warns:
        UserWarning: Workers live on from epoch to epoch, with generators of their own.
    """
    if isinstance(batches, DataLoader) and batches.num_workers and batches.persistent_workers:
        warnings.warn(
            "batches keep their workers (persistent_workers=True), whose random numbers no "
            "checkpoint holds: where transforms are random, a resumed run sees other crops and "
            "flips than an uninterrupted one; leave it out, or use DatasetBatches(dataset, "
            "workers=...), which resumes exactly",
            stacklevel=4,
        )


def _foreign(batches: Sequence[Any]) -> bool:
    dicts = [batch for batch in batches if isinstance(batch, Mapping)]
    return any(is_meta_tensor(value) for batch in dicts for value in batch.values())


def _copied(loader: DataLoader, keys: dict[str, str], training: bool) -> DataLoader:
    dataset: Any = loader.dataset
    check_sources(dataset, headers=training, spacing=True)
    entries = CaseEntries(loader.collate_fn, keys, source_names(dataset, keys))
    own: dict[str, Any] = {"collate_fn": entries, "_iterator": None}
    if loader.num_workers and loader.worker_init_fn is None and random_parts(dataset):
        own["worker_init_fn"] = seed_worker  # else all workers crop alike
    copied = object.__new__(type(loader))  # a DataLoader lets nothing be exchanged
    copied.__dict__.update(vars(loader), **own)
    return copied


class _Converted:
    """Batches of any kind, each converted; else as they were."""

    def __init__(self, batches: Any, convert: Any) -> None:
        self._batches, self._convert = batches, convert

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Any:
        return map(self._convert, self._batches)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._batches, name)
        if name != "iterate":
            return found
        return lambda *place, **named: map(self._convert, found(*place, **named))
