"""What ``fit`` and ``predict`` need of batches: a length, a size, an order that can be resumed."""

from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
)

from ppl_med.checks import choice, positive, whole
from ppl_med.data.masks import check_masks
from ppl_med.data.validation import check_batch
from ppl_med.programs import protocol
from ppl_med.programs.sites import argument_names

SEED_STRIDE = 1_000_003


@dataclass
class Loader:
    """Batches with a known number of them in an epoch, and a known number of cases."""

    batches: Any
    num_batches: int
    num_cases: int

    def open(self, epoch: int, start: int, seed: int) -> Iterator[dict[str, Any]]:
        """An epoch's batches from ``start`` on, in an order that depends on seed and epoch.

        Loaders without ``iterate(epoch, start)`` (a torch DataLoader) take their order from
        torch's global generator or from their own; their first batches are loaded here and
        dropped.
        """
        if hasattr(self.batches, "iterate"):
            return iter(self.batches.iterate(epoch + SEED_STRIDE * seed, start))
        if hasattr(self.batches, "set_epoch"):
            self.batches.set_epoch(epoch)
        iterator = iter(self.batches)
        for _ in range(start):
            next(iterator, None)
        return iterator

    @property
    def draws_its_order(self) -> bool:
        """Whether the order comes from a generator's state."""
        return not hasattr(self.batches, "iterate")

    def generators(self) -> list[torch.Generator]:
        """As ``loader_generators``."""
        return loader_generators(self.batches)

    def settings(self) -> dict[str, Any]:
        """Settings that fix the order of the batches, as far as they can be read."""
        if self.draws_its_order:
            return {}
        names = ("seed", "shuffle", "batch_size")
        found = {name: getattr(self.batches, name, None) for name in names}
        return {f"batches.{n}": v for n, v in found.items() if isinstance(v, bool | int)}


def loader_generators(batches: Any) -> list[torch.Generator]:
    """A loader's own generators, such as of ``DataLoader(generator=...)``, each once."""
    sampler = getattr(batches, "sampler", None)
    inner = getattr(getattr(batches, "batch_sampler", None), "sampler", None)
    found = [getattr(owner, "generator", None) for owner in (batches, sampler, inner)]
    own = {id(g): g for g in found if isinstance(g, torch.Generator)}
    return list(own.values())


def check_iterable(batches: Any, name: str = "batches") -> int:
    """Number of batches; a TypeError where they cannot be iterated again, a ValueError for none."""
    advice = "pass ppl_med.data.Batches, a torch DataLoader or a list of dicts"
    if isinstance(batches, Mapping):
        raise TypeError(f"{name} is a dict, one batch; {advice}, such as [batch]")
    try:
        length, iterable = len(batches), hasattr(batches, "__iter__")
    except TypeError:
        length, iterable = 0, False
    if not iterable or isinstance(batches, str):
        raise TypeError(
            f"{name} must be re-iterable and have a length, got {type(batches).__name__}; {advice}"
        )
    if length == 0:
        raise ValueError(f"{name} is empty: it yields no batch; check the folder or the split")
    return length


def first_batch(batches: Any, name: str = "batches") -> dict[str, Any]:
    """The first batch; raise a ValueError where there is none."""
    first = next(iter(batches), None)
    if first is None:
        raise ValueError(f"{name} is empty: it yields no batch; check the folder or the split")
    return first


def as_loader(batches: Any, num_cases: int | None) -> Loader:
    """Read length and size off batches.

    Raises:
        TypeError: If they cannot be iterated again and again.
        ValueError: If they are empty, or the size is unknown or makes no sense.
    """
    length = check_iterable(batches)
    given = num_cases is not None
    size = whole("num_cases", num_cases) if given else getattr(batches, "num_cases", None)
    if size is None and isinstance(batches, DataLoader):
        size = _size_of_loader(batches)
    elif size is None and hasattr(getattr(batches, "dataset", None), "__len__"):
        size = len(batches.dataset)
    if size is None and isinstance(batches, list | tuple):
        size = sum(num_cases_in(batch) for batch in batches)
    if size is None:
        raise ValueError(
            "num_cases cannot be read off batches; pass num_cases=<size of the data set>: "
            "it scales the likelihood against the KL"
        )
    return Loader(batches, length, int(size))


def _size_of_loader(loader: DataLoader) -> int | None:
    """Cases that a DataLoader visits in the long run, or None where its sampler does not say.

    Subsets are drawn by a sampler as well as by a ``Subset``; the size of the data set that they
    are drawn from is then not the one that scales the likelihood.
    """
    if isinstance(loader.dataset, IterableDataset):
        return len(loader.dataset) if isinstance(loader.dataset, Sized) else None
    sampler: Any = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
    if type(sampler) is BatchSampler:
        batched, sampler = sampler, sampler.sampler
        if batched.drop_last and type(sampler) is SequentialSampler:
            return len(batched) * batched.batch_size  # the same cases are left out every time
    if type(sampler) in (RandomSampler, SequentialSampler):
        return len(sampler.data_source)
    return len(sampler.indices) if type(sampler) is SubsetRandomSampler else None


def num_cases_in(batch: Any) -> int:
    """Cases in a batch, the length of its first tensor; a TypeError where there is none."""
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"a batch must be a dict such as {{'image': Tensor, 'label': Tensor}}, got "
            f"{type(batch).__name__}; wrap the loader so that it yields dicts"
        )
    for value in batch.values():
        if isinstance(value, Tensor) and value.dim() > 0:
            return len(value)
    raise TypeError(f"a batch must hold a tensor with one entry a case; its keys are {[*batch]}")


@dataclass
class BatchSpec:
    """What a model accepts: names of its arguments, classes and image channels, None if unknown.

    ``partial`` is the argument that may hold NaN for what was not observed, if there is one.
    """

    arguments: frozenset[str]
    num_classes: int | None
    in_channels: int | None
    partial: str | None = None

    def check(self, batch: Any, num_cases: int | None = None) -> None:
        """Raise if a batch does not fit; reads tensors that are on the CPU only.

        Raises:
            TypeError: Wrong types; see ``data.validation.check_batch``.
            ValueError: Wrong shapes or values, or more cases than ``num_cases``.
        """
        size = num_cases_in(batch)
        if num_cases is not None and size > num_cases:
            raise ValueError(
                f"num_cases is {num_cases}, smaller than a batch of {size} cases; "
                "pass the size of the whole data set"
            )
        image = batch.get("image")
        on_device = isinstance(image, Tensor) and image.device.type != "cpu"
        if "image" in self.arguments and not on_device:
            known = batch
            if self.num_classes is None:  # without classes, a label may be any number
                known = {name: value for name, value in batch.items() if name != "label"}
            check_batch(known, num_classes=self.num_classes, in_channels=self.in_channels)
            self._check_mask(batch)
        for name in self.arguments & batch.keys() - {"image"}:
            _check_argument(name, batch[name], size, may_be_nan=name == self.partial)

    def _check_mask(self, batch: Mapping[str, Any]) -> None:
        """Classes in range and the image's size; an argument of another kind is left alone."""
        mask = batch.get("mask") if "mask" in self.arguments else None
        if isinstance(mask, Tensor) and not mask.is_floating_point() and self.num_classes:
            ids = batch.get("id")
            names = None if ids is None else list(ids)
            check_masks(batch["image"], mask.cpu(), num_classes=self.num_classes, ids=names)


def _check_argument(name: str, value: Any, size: int, *, may_be_nan: bool = False) -> None:
    if not isinstance(value, Tensor) or value.dim() == 0 or value.device.type != "cpu":
        return
    if len(value) != size:
        raise ValueError(f"{name} has {len(value)} entries but the batch has {size} cases")
    if may_be_nan and value.is_floating_point():
        missing = value.isnan()
        if bool(missing.reshape(size, -1).all(1).any()):
            raise ValueError(f"{name} is NaN everywhere in a case; drop the case before training")
        value = torch.where(missing, torch.zeros_like(value), value)
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise ValueError(
            f"{name} holds NaN or infinite values; replace them or drop the cases before training"
        )


def batch_spec(model: Any) -> BatchSpec:
    """Read off a model what it says it accepts."""
    classes = protocol.coords(model).get("class")
    return BatchSpec(
        frozenset(argument_names(model)),
        len(classes) if classes else None,
        protocol.in_channels(model),
        protocol.partial_site(model),
    )


def check_arguments(
    *, epochs: int, learning_rate: float, precision: str, schedule: Any, seed: int
) -> None:
    """Raise a ValueError on arguments of ``fit`` that make no sense; it names the argument."""
    whole("epochs", epochs)
    positive("learning_rate", learning_rate)
    choice("precision", precision, ("float32", "bfloat16"))
    if not callable(schedule):
        choice("schedule", schedule, ("constant", "cosine"), fix="or pass a function")
    check_seed(seed)


def check_seed(seed: int) -> int:
    """A seed, a whole number from 0 on that 63 bits hold; raise a ValueError where it is none."""
    return whole("seed", seed, least=0, most=2**63 - 1)


def has_graders(values: Mapping[str, Any]) -> bool:
    """Whether a batch's masks have an axis of graders: as many axes as its images."""
    image, mask = values.get("image"), values.get("mask")
    return isinstance(image, Tensor) and isinstance(mask, Tensor) and mask.dim() == image.dim()


def first_grader(values: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with one annotation a case, for learning what a program does with it."""
    return {**values, "mask": values["mask"][:, 0]} if has_graders(values) else dict(values)


def check_one_grader(values: Mapping[str, Any]) -> None:
    """Raise where masks have an axis of graders, each of whom is an observation of its own."""
    if has_graders(values):
        raise ValueError(
            f"mask has shape {tuple(values['mask'].shape)}, an axis of graders; to train and to "
            "validate, give one annotation a case: data.one_grader_per_case(arrays), or "
            "Batches(..., transform=random_grader)"
        )
