"""What the data are, in one line, by which a resumed run notices that it was given others.

SHA-256 over the entries that the model takes as arguments, of

- ``Batches``: all arrays as they are held, with ``loc`` and ``scale``; of an array above 256 MiB,
  evenly spaced cases that make up so much;
- a list of batches: all of their entries, whatever the sizes of the batches;
- a ``DataLoader`` or ``DatasetBatches`` over a data set that can be indexed: four items, evenly
  spaced, as they are collated;
- other batches: the first case of the first batch.

The last two are read twice under one seed, and what differs then (augmentation by a generator of
the data set's own) is left out. So nothing is loaded that does not fit into memory, and a change in
a few files of a lazy data set, or in ``augment`` and ``transform``, is not noticed.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ppl_med.data import Batches, DatasetBatches
from ppl_med.inference.loader_generators import generators_restored
from ppl_med.programs import rng

DATA = "data_sha256"  # what it is called in checkpoints and trees
MOST_BYTES, NUM_ITEMS = 256 * 1024**2, 4


def data_digest(batches: Any, names: Iterable[str]) -> str:
    """The digest of some entries of a data set, after the way it was made and a colon.

    Random number generators, also the loader's own, are left as they were.

    Args:
        batches: As in ``fit`` and ``predict``.
        names: Entries of a batch that count.
    """
    wanted = sorted(names)
    if isinstance(batches, Batches):
        standardised = {"loc": batches.loc, "scale": batches.scale}
        return f"arrays:{_digest([{**_chosen(batches.arrays, wanted), **standardised}])}"
    if isinstance(batches, list | tuple):
        return f"list:{_digest([_chosen(batch, wanted) for batch in batches])}"
    with generators_restored(batches):
        kind, first = _sample(batches)
        _, second = _sample(batches)
    again = _chosen(second, wanted)
    stable = {
        name: value
        for name, value in _chosen(first, wanted).items()
        if _digest([{name: value}]) == _digest([{name: again.get(name)}])
    }
    return f"{kind}:{_digest([stable])}"


def same_data(one: Any, other: Any) -> bool:
    """Whether two digests may be of the same data: those made in different ways, or none, may."""
    if not (isinstance(one, str) and isinstance(other, str)):
        return True
    (kind, found), (also, expected) = (text.split(":", 1) for text in (one, other))
    return kind != also or found == expected


def _chosen(batch: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: batch[name] for name in names if batch.get(name) is not None}


def _sample(batches: Any) -> tuple[str, Mapping[str, Any]]:
    """Some cases, the same ones every time."""
    rng.seed_all(0)
    if isinstance(batches, DatasetBatches):
        return "items", batches.items(_spaced(batches.num_cases))
    indexed = isinstance(batches, DataLoader) and batches.batch_sampler is not None
    if indexed and not isinstance(batches.dataset, IterableDataset):
        with suppress(Exception):  # positions may be no numbers
            data: Any = batches.dataset
            found = batches.collate_fn([data[position] for position in _spaced(len(data))])
            if isinstance(found, Mapping):
                return "items", found
    first: Mapping[str, Any] = next(iter(batches), {})
    return "first", {name: value[:1] for name, value in first.items() if _has_cases(value)}


def _spaced(num_items: int) -> list[int]:
    return np.unique(np.linspace(0, num_items - 1, NUM_ITEMS).astype(int)).tolist()


def _has_cases(value: Any) -> bool:
    return isinstance(value, list | np.ndarray) or (isinstance(value, Tensor) and value.dim() > 0)


def _digest(parts: Sequence[Mapping[str, Any]]) -> str:
    """Of entries that stand in several batches, as if they stood in one."""
    entries: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            _update(entries.setdefault(_form(name, value), hashlib.sha256()), value)
    whole = hashlib.sha256()
    for name in sorted(entries):
        whole.update(f"{name} {entries[name].hexdigest()} ".encode())
    return whole.hexdigest()


def _form(name: str, value: Any) -> str:
    """A name with the kind of what it names."""
    numbers = isinstance(value, Tensor | np.ndarray)
    return f"{name} {value.dtype} {tuple(value.shape[1:])}" if numbers else name


def _update(found: Any, value: Any) -> None:
    is_text = isinstance(value, np.ndarray) and value.dtype.kind in "OTU"
    if is_text or not isinstance(value, Tensor | np.ndarray):
        for one in value if isinstance(value, list | np.ndarray) else [value]:
            found.update(f"{one!r} ".encode())
        return
    array = torch.as_tensor(value).reshape(1) if value.ndim == 0 else torch.as_tensor(value)
    size = max(array[:1].nbytes, 1)
    most = max(MOST_BYTES // size, 1)
    if len(array) > most:
        array = array[torch.linspace(0, len(array) - 1, most).long()]
    for cases in array.split(max(2**24 // size, 1)):
        found.update(bytes_of(cases))


def bytes_of(tensor: Tensor) -> Any:
    """The bytes of a tensor's values, as a buffer."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
