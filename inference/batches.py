"""What ``fit`` and ``predict`` need of batches: a length, a size, an order that can be resumed."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ppl_med.checks import reject, whole
from ppl_med.data.boxes import check_boxes
from ppl_med.data.masks import check_masks
from ppl_med.data.transform_seeds import random_parts, seed_parts
from ppl_med.data.validation import check_batch
from ppl_med.inference.case_order import check_stream
from ppl_med.inference.crops import crops_in, share_of_volume, spread, volumes_of
from ppl_med.inference.epoch_visits import (
    EpochCount,
    Visits,
    WatchedBatches,
    expected_total,
    visits_of_loader,
)
from ppl_med.inference.loader_generators import loader_generators, owners
from ppl_med.programs import protocol
from ppl_med.programs.sites import argument_names

SEED_STRIDE = 1_000_003


@dataclass
class Loader:
    """Batches with a known number of them in an epoch, and a known number of cases.

    ``visits`` says how often an epoch visits the cases.
    """

    batches: Any
    num_batches: int
    num_cases: int
    visits: Visits = field(default_factory=Visits)

    def __post_init__(self) -> None:
        """Watch the positions of the cases where their weights need them."""
        self._source = self.batches
        watched = self.visits.by_case is not None or not self.visits.known
        if watched and isinstance(self.batches, DataLoader):
            self._source = WatchedBatches(self.batches)
        self._told = False
        self._random = random_parts(getattr(self.batches, "dataset", None))

    def open(
        self, epoch: int, start: int, seed: int
    ) -> Iterator[tuple[dict[str, Any], float | Tensor]]:
        """An epoch's batches from ``start`` on, in an order that depends on seed and epoch.

        Each comes with the factor by which its cases weigh more than in a batch drawn at random:
        one number, or one a case, so that over an epoch every case weighs the same.

        Loaders without ``iterate(epoch, start)`` (a torch DataLoader) take their order from
        torch's global generator or from their own, and MONAI's transforms are seeded for the epoch;
        their first batches are loaded here and dropped.
        """
        if hasattr(self.batches, "iterate"):
            found = iter(self.batches.iterate(epoch + SEED_STRIDE * seed, start))
            return self._weighed(found, None if start else self._count())
        for owner in owners(self.batches):
            if hasattr(owner, "set_epoch"):
                owner.set_epoch(epoch)
        seed_parts(self._random, epoch + SEED_STRIDE * seed)
        iterator, count = iter(self._source), self._count()
        for _ in range(start):
            if (batch := next(iterator, None)) is not None:
                count.add(visited_cases(batch), self._positions())
        return self._weighed(iterator, count)

    def _count(self) -> EpochCount:
        return EpochCount(self.visits, self.num_batches)

    def _positions(self) -> list[int]:
        """Of the cases of the batch that was just taken; none where nobody watches."""
        return self._source.positions.popleft() if isinstance(self._source, WatchedBatches) else []

    def _weighed(
        self, batches: Iterator[dict[str, Any]], count: EpochCount | None
    ) -> Iterator[tuple[dict[str, Any], float | Tensor]]:
        for batch in batches:
            positions = self._positions()
            if count is not None:
                count.add(visited_cases(batch), positions)
            yield batch, self._factor(batch, positions)
        fault = None if self._told or count is None else count.fault()
        if fault is not None:
            self._told = True
            warnings.warn(fault, stacklevel=2)

    def _factor(self, batch: Mapping[str, Any], positions: list[int]) -> float | Tensor:
        size, cases, crops = num_cases_in(batch), visited_cases(batch), crops_in(batch)
        if self.visits.by_case is None:
            total = self.visits.total or self.num_batches * cases
            return share_of_volume(self.num_batches * size / total, crops)
        if len(positions) != cases:
            raise ValueError(
                f"a batch has {cases} cases, but the sampler drew {len(positions)}; where cases "
                "are drawn by weights, a batch must hold those and no others"
            )
        visits = self.visits.by_case[spread(positions, crops)] * (self.visits.num_cases or 0)
        return share_of_volume((self.num_batches * size / visits).float(), crops)

    def see(self, first: Mapping[str, Any]) -> None:
        """Take the size of the first batch for that of most, where nobody says what an epoch is."""
        if self.visits.total is None:
            size, cases = visited_cases(first), self.visits.num_cases or self.num_cases
            self.visits.total = expected_total(size, self.num_batches, cases)

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


def check_iterable(batches: Any, name: str = "batches") -> int:
    """Number of batches; a TypeError where they cannot be iterated again, a ValueError for none."""
    advice = "pass ppl_med.data.Batches, a torch DataLoader or a list of dicts"
    check_stream(batches, name)
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
    loaded = isinstance(batches, DataLoader)
    visits = visits_of_loader(batches) if loaded else Visits()
    size = visits.num_cases if loaded else getattr(batches, "num_cases", None)
    if isinstance(batches, list | tuple):
        size = visits.total = sum(visited_cases(batch) for batch in batches)
    dataset: Any = getattr(batches, "dataset", None)
    supposed = size if size is not None or not hasattr(dataset, "__len__") else len(dataset)
    if not loaded:
        size = supposed
    visits.num_cases = supposed
    if num_cases is not None:
        size = whole("num_cases", num_cases)
    if size is None:
        raise ValueError(
            "num_cases cannot be read off batches; pass num_cases=<size of the data set>: "
            "it scales the likelihood against the KL"
        )
    own = getattr(batches, "cases_per_epoch", None)
    if own is not None:
        visits.total = whole("cases_per_epoch of batches", own)
    return Loader(batches, length, int(size), visits)


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


def visited_cases(batch: Any) -> int:
    """Cases in a batch, where crops of one volume are one case."""
    return volumes_of(num_cases_in(batch), crops_in(batch))


@dataclass
class BatchSpec:
    """What a model accepts: names of its arguments, classes and image channels, None if unknown.

    ``partial`` is the argument that may hold NaN for what was not observed, if there is one;
    ``class_map`` says that "mask" is known to be a map of classes; ``value_checks`` of values.
    """

    arguments: frozenset[str]
    num_classes: int | None
    in_channels: int | None
    partial: str | None = None
    class_map: bool = False
    value_checks: Mapping[str, Callable[[Tensor], None]] = field(default_factory=dict)
    least_cases: int = 1

    def check(self, batch: Any, num_cases: int | None = None) -> None:
        """Raise if a batch does not fit; reads tensors that are on the CPU only.

        Raises:
            TypeError: Wrong types; see ``data.validation.check_batch``.
            ValueError: Wrong shapes or values, or more cases than ``num_cases``.
        """
        size = num_cases_in(batch)
        if num_cases is not None and visited_cases(batch) > num_cases:
            raise ValueError(
                f"num_cases is {num_cases}, smaller than a batch of {visited_cases(batch)} cases; "
                "pass the size of the whole data set"
            )
        if 0 < size < self.least_cases:
            raise ValueError(
                f"a batch has {size} case(s), the model takes {self.least_cases} or more at once: "
                "use another batch size, so that the last batch has as many too"
            )
        image = batch.get("image")
        on_device = isinstance(image, Tensor) and image.device.type != "cpu"
        label = batch.get("label")
        takes_map = "mask" in self.arguments and "label" not in self.arguments
        if takes_map and isinstance(label, Tensor) and label.dim() > 2 and "mask" not in batch:
            raise ValueError(
                f"label holds a map, shape {tuple(label.shape)}, but this model observes mask: "
                "pass keys={'label': 'mask'}, or name it batch['mask']"
            )
        if "image" in self.arguments and not on_device:
            known = batch
            if self.num_classes is None:  # without classes, a label may be any number
                known = {name: value for name, value in batch.items() if name != "label"}
            check_batch(known, num_classes=self.num_classes, in_channels=self.in_channels)
            self._check_mask(batch)
            if "box" in self.arguments and batch.get("box") is not None:
                check_boxes(batch, self.num_classes)
        for name in self.arguments & batch.keys() - {"image", "box", "box_label"}:
            _check_argument(name, batch[name], size, may_be_nan=name == self.partial)
            if name in self.value_checks and not on_device:
                self.value_checks[name](batch[name])

    def _check_mask(self, batch: Mapping[str, Any]) -> None:
        """Classes in range and the image's size; an argument of another kind is left alone."""
        mask = batch.get("mask") if "mask" in self.arguments else None
        if not isinstance(mask, Tensor) or not self.num_classes:
            return
        if self.class_map or not mask.is_floating_point():
            names = None if batch.get("id") is None else list(batch["id"])
            mask = mask.cpu().float() if mask.is_floating_point() else mask.cpu()
            check_masks(batch["image"], mask, num_classes=self.num_classes, ids=names)


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
        getattr(protocol.likelihood(model), "site", None) == "mask",
        value_checks=protocol.value_checks(model),
        least_cases=protocol.least_cases(model),
    )


def choose_device(device: Any) -> torch.device:
    """The device of that name; without one, a GPU where there is one.

    Raises:
        ValueError: There is no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        reject("device", "a device of torch, such as 'cpu' or 'cuda'", device)


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
