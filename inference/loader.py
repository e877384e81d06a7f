"""What ``fit`` and ``predict`` need of batches: a length, a size, an order that can be resumed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ppl_med.data.validation import check_batch
from ppl_med.inference.programs import argument_names
from ppl_med.weights import random_weights

SEED_STRIDE = 1_000_003


@dataclass
class Loader:
    """Batches with a known length and size.

    Attributes:
        batches: What the caller gave.
        num_batches: Batches an epoch.
        num_cases: Size of the data set.
    """

    batches: Any
    num_batches: int
    num_cases: int

    def iterate(self, epoch: int, start: int, seed: int) -> Iterator[dict[str, Any]]:
        """Yield an epoch's batches from ``start`` on, in an order that depends on seed and epoch.

        Loaders without ``iterate(epoch, start)`` (a torch DataLoader) take their order from
        torch's global generator; their first batches are loaded and dropped.
        """
        if hasattr(self.batches, "iterate"):
            yield from self.batches.iterate(epoch + SEED_STRIDE * seed, start)
            return
        if hasattr(self.batches, "set_epoch"):
            self.batches.set_epoch(epoch)
        for index, batch in enumerate(self.batches):
            if index >= start:
                yield batch

    @property
    def draws_its_order(self) -> bool:
        """Whether the order comes from torch's global generator."""
        return not hasattr(self.batches, "iterate")


def as_loader(batches: Any, num_cases: int | None) -> Loader:
    """Read length and size off batches.

    Raises:
        TypeError: If they cannot be iterated again and again.
        ValueError: If they are empty, or the size is unknown or smaller than a batch.
    """
    if not hasattr(batches, "__iter__") or not hasattr(batches, "__len__"):
        raise TypeError(
            f"batches must be re-iterable and have a length, got {type(batches).__name__}; "
            "pass ppl_med.data.Batches, a torch DataLoader or a list of dicts"
        )
    if len(batches) == 0:
        raise ValueError("batches is empty: it yields no batch; check the folder or the split")
    size = num_cases or getattr(batches, "num_cases", None)
    if size is None and hasattr(batches, "dataset"):
        size = len(batches.dataset)
    if size is None and isinstance(batches, list | tuple):
        size = sum(_length(batch) for batch in batches)
    if size is None:
        raise ValueError(
            "num_cases cannot be read off batches; pass num_cases=<size of the data set>: "
            "it scales the likelihood against the KL"
        )
    return Loader(batches, len(batches), int(size))


def _length(batch: Any) -> int:
    if not isinstance(batch, dict) or not batch:
        raise TypeError(f"a batch must be a dict of tensors, got {type(batch).__name__}")
    return next(len(value) for value in batch.values() if isinstance(value, torch.Tensor))


@dataclass
class Limits:
    """What a model accepts.

    Attributes:
        takes_image: Whether it has an argument ``image``.
        num_classes: Classes, None where it does not say.
        in_channels: Image channels, None where they cannot be told.
    """

    takes_image: bool
    num_classes: int | None
    in_channels: int | None

    def check(self, batch: Any, num_cases: int | None = None) -> None:
        """Raise if a batch does not fit; reads tensors that are on the CPU only.

        Raises:
            TypeError: Wrong types; see ``data.validation.check_batch``.
            ValueError: Wrong shapes or values, or more cases than ``num_cases``.
        """
        if not isinstance(batch, dict):
            raise TypeError(f"a batch must be a dict of tensors, got {type(batch).__name__}")
        image = batch.get("image")
        on_device = isinstance(image, torch.Tensor) and image.device.type != "cpu"
        if self.takes_image and not on_device:
            check_batch(batch, num_classes=self.num_classes, in_channels=self.in_channels)
        if num_cases is not None and _length(batch) > num_cases:
            raise ValueError(
                f"num_cases is {num_cases}, smaller than a batch of {_length(batch)} cases; "
                "pass the size of the whole data set"
            )


def model_limits(model: Any) -> Limits:
    """Read off a model what it accepts."""
    classes = getattr(model, "coords", {}).get("class")
    channels = getattr(model, "in_channels", None)
    if channels is None:
        for weights in random_weights([model]).values():
            layers = [m for m in weights.net.modules() if isinstance(m, nn.Linear | _ConvNd)]
            if layers and isinstance(layers[0], _ConvNd):
                channels = layers[0].in_channels
    takes_image = "image" in argument_names(model)
    return Limits(takes_image, len(classes) if classes else None, channels)


def check_arguments(*, epochs: int, precision: str, schedule: Any, seed: int) -> None:
    """Raise on arguments of ``fit`` that make no sense.

    Raises:
        ValueError: Names the argument.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision must be 'float32' or 'bfloat16', got {precision!r}")
    if not callable(schedule) and schedule not in ("constant", "cosine"):
        raise ValueError(f"schedule must be 'constant', 'cosine' or a function, got {schedule!r}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
