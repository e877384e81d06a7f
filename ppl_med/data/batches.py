"""Batches: arrays in memory -> dicts of CPU tensors, in an order that can be resumed.

Batch b of epoch e is a function of (seed, e, b) alone: its cases and its augmentation do not depend
on what was drawn before. A run that was killed skips to where it stood and sees the same pixels.
uint8 images stay uint8 in memory and become float32 one batch at a time, int8 masks int64.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_med.checks import reject, whole
from ppl_med.data.arrays import as_ids, as_image, as_label, as_mask, as_metadata
from ppl_med.data.augmentation import check_square_pixels
from ppl_med.data.boxes import check_boxes
from ppl_med.data.random_streams import random_stream

Augment = Callable[[Tensor, torch.Generator], Tensor]
Transform = Callable[[dict[str, Any], torch.Generator], dict[str, Any]]
PerChannel = int | float | Sequence[int | float] | NDArray | np.floating | Tensor
Indices = Sequence[int] | Sequence[bool] | NDArray | Tensor
_ORDER, _AUGMENT, _TRANSFORM = range(3)  # streams of random numbers


class Epochs(ABC):
    """Batches that can be passed over again: each pass is an epoch, of batches of its own.

    Attributes:
        epoch: The epoch that iteration will use, from 0.
    """

    epoch = 0

    @abstractmethod
    def iterate(self, epoch: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the batches of one epoch, from batch ``start`` on."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the batches of the current epoch."""
        return self.iterate(self.epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose batches the next pass yields."""
        self.epoch = epoch


class Batches(Epochs):
    """Re-iterable batches over arrays held in memory.

    Each batch is a dict: "image" float32 (case, channel, row, col) or (case, channel, depth, row,
    col); "label" int64 (case), if given; "mask" int64 (case, row, col) or (case, grader, row, col),
    and likewise with depth, if given (a bool mask stays bool); "box" float32 (case, [grader,] box,
    4) and "box_label" int64, if given (see ``check_boxes``); "id" list of str or int; every other
    array by its own name, numbers as tensors and strings as lists.

    Args:
        arrays: Holds "image", uint8 or floating, and optionally "label" (integers from 0), "mask"
            (class ids from 0, -1 where nobody annotated), "id" (unique str or int; positions if
            missing) and metadata, each with one entry per case.
        batch_size: Cases per batch.
        shuffle: New order every epoch. Call ``set_epoch``, or use ``iterate``: without it every
            pass repeats the same order.
        seed: Seed of order and augmentation, together with the epoch and the batch's index.
        augment: ``augment(image, generator) -> image`` on the standardised batch; must keep shape.
        transform: ``transform(batch, generator) -> batch``, or several that follow each other, on
            the whole batch after all else: moves image and mask together, draws a grader, switches
            classes.
        drop_last: Leave out a last batch that is smaller than ``batch_size``.
        loc: Subtracted from the image, a number or one per channel, after uint8 was brought to
            0..1. Fit it on the training images with ``standardization`` and pass it to all splits.
        scale: The image is divided by it.

    Attributes:
        num_cases: Cases in the arrays, whatever ``drop_last`` says.
        cases_per_epoch: Cases in the batches of an epoch.
        ids: Their ids, in the order of the arrays.
        loc: Subtracted from the image, dims (channel or 1, 1, 1).
        scale: The image is divided by it; likewise.
        epoch: The epoch that iteration will use, from 0.

    Raises:
        TypeError: Labels, ids, masks or pixels are of a type that cannot be used.
        ValueError: An array is empty, has the wrong rank or length, holds NaN or infinite pixels,
            negative labels or duplicate ids, a mask has another size than its image, or pixels
            whose "spacing" is not square are to be turned, or ``check_boxes`` finds a fault.
    """

    def __init__(
        self,
        arrays: Mapping[str, Any],
        *,
        batch_size: int = 128,
        shuffle: bool = False,
        seed: int = 0,
        augment: Augment | None = None,
        transform: Transform | Sequence[Transform] | None = None,
        drop_last: bool = False,
        loc: PerChannel = 0.0,
        scale: PerChannel = 1.0,
    ) -> None:
        """Check the arrays and settings; see the class."""
        if not isinstance(arrays, Mapping):
            if hasattr(arrays, "__getitem__") and not hasattr(arrays, "__iter__"):
                raise TypeError(
                    f"arrays is a {type(arrays).__name__}, a data set: use DatasetBatches(dataset, "
                    "batch_size=...), or pass it to fit and predict as it is"
                )
            reject("arrays", "a dict of arrays, such as {'image': array}", arrays)
        if "image" not in arrays:
            raise ValueError(f'arrays has no "image"; its keys are {sorted(arrays)}')
        self._image = as_image(arrays["image"])
        self.num_cases = len(self._image)
        self._columns: dict[str, Tensor | np.ndarray] = {}
        if arrays.get("label") is not None:
            self._columns["label"] = as_label(arrays["label"], self.num_cases)
        if arrays.get("mask") is not None:
            self._columns["mask"] = as_mask(arrays["mask"], self._image.shape)
        self._columns["id"] = as_ids(arrays.get("id"), self.num_cases)
        for name in arrays.keys() - {"image", "label", "mask", "id"}:
            self._columns[name] = as_metadata(name, arrays[name], self.num_cases)
        if {"box", "box_label"} <= self._columns.keys():
            check_boxes(self.arrays)
        whole("batch_size", batch_size, most=self.num_cases if drop_last else None)
        self.loc, self.scale = self._per_channel("loc", loc), self._per_channel("scale", scale)
        if not (self.scale > 0).all():
            raise ValueError(f"scale must be positive, got {scale}")
        whole("seed", seed, 0)
        self.batch_size, self.shuffle, self.drop_last = batch_size, shuffle, drop_last
        self.seed, self.augment, self.transform = seed, augment, transform
        self._check_augment()
        if "spacing" in self._columns:
            steps = [augment, *self._steps()]
            check_square_pixels(steps, self._columns["spacing"], self.ids)

    @property
    def ids(self) -> list[str] | list[int]:
        """Ids of all cases, in the order of the arrays."""
        return self._columns["id"].tolist()

    @property
    def arrays(self) -> dict[str, Tensor | np.ndarray]:
        """All arrays as they are held: uint8 images are not standardised yet."""
        return {"image": self._image, **self._columns}

    @property
    def cases_per_epoch(self) -> int:
        """Cases in the batches of an epoch, without those that ``drop_last`` leaves out."""
        return len(self) * self.batch_size if self.drop_last else self.num_cases

    def __len__(self) -> int:
        """Batches per epoch."""
        batches = self.num_cases / self.batch_size
        return math.floor(batches) if self.drop_last else math.ceil(batches)

    def iterate(self, epoch: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the batches of one epoch, from 0, from batch ``start`` on, at no cost before."""
        order = None
        if self.shuffle:
            permuted = random_stream(self.seed, _ORDER, epoch).permutation(self.num_cases)
            order = torch.from_numpy(permuted)
        for batch in range(start, len(self)):
            window = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            yield self._batch(window if order is None else order[window], epoch, batch)

    def subset(self, indices: Indices, **settings: Any) -> "Batches":
        """Return ``Batches`` over some of the cases, with the same settings unless told otherwise.

        Args:
            indices: Positions in the arrays, or a boolean mask with one entry per case.
            settings: Arguments of ``Batches`` to change, such as ``shuffle=False``.
        """
        positions = np.atleast_1d(np.arange(self.num_cases)[np.asarray(indices)])
        index = torch.from_numpy(positions)
        columns = {
            name: values[index if isinstance(values, Tensor) else positions]
            for name, values in self._columns.items()
        }
        own = {name: getattr(self, name) for name in _SETTINGS}
        own |= {"loc": self.loc.flatten(), "scale": self.scale.flatten()}
        return Batches({"image": self._image[index], **columns}, **(own | settings))

    def first(self, num_cases: int, **settings: Any) -> "Batches":
        """Return batches over the first cases of the arrays; see ``subset``."""
        return self.subset(np.arange(min(num_cases, self.num_cases)), **settings)

    def _batch(self, index: slice | Tensor, epoch: int, batch: int) -> dict[str, Any]:
        image = self._image[index]
        if image.dtype == torch.uint8:
            image = image.float().div_(255)
        image = image.float().sub(self.loc).div_(self.scale)
        if self.augment is not None:
            augmented = self.augment(image, self._generator(_AUGMENT, epoch, batch))
            if augmented.shape != image.shape:
                raise ValueError(
                    f"augment turned shape {tuple(image.shape)} into {tuple(augmented.shape)}; "
                    "it must keep the shape"
                )
            image = augmented
        rows: slice | np.ndarray = index if isinstance(index, slice) else index.numpy()
        columns = {
            name: values[index] if isinstance(values, Tensor) else values[rows].tolist()
            for name, values in self._columns.items()
        }
        mask = columns.get("mask")
        if isinstance(mask, Tensor) and mask.dtype != torch.bool:
            columns["mask"] = mask.long()
        if self.transform is not None and isinstance(index, slice):  # it may write in place
            columns = {
                name: values.clone() if isinstance(values, Tensor) else values
                for name, values in columns.items()
            }
        return self._transformed({"image": image, **columns}, epoch, batch)

    def _transformed(self, columns: dict[str, Any], epoch: int, batch: int) -> dict[str, Any]:
        if self.transform is None:
            return columns
        generator = self._generator(_TRANSFORM, epoch, batch)
        for step in self._steps():
            columns = step(columns, generator)
        return columns

    def _steps(self) -> Sequence[Transform]:
        if self.transform is None:
            return ()
        return [self.transform] if callable(self.transform) else self.transform

    def _generator(self, *key: int) -> torch.Generator:
        seed = int(random_stream(self.seed, *key).integers(2**63))
        return torch.Generator().manual_seed(seed)

    def _per_channel(self, name: str, value: PerChannel) -> Tensor:
        """Shape ``loc`` or ``scale`` as (channel or 1, 1, 1) so that it broadcasts."""
        try:
            vector = np.asarray(value, np.float32).reshape(-1)
        except (TypeError, ValueError):
            reject(name, "one finite number, or one for each channel", value)
        channels = self._image.shape[1]
        if len(vector) not in (1, channels) or not np.isfinite(vector).all():
            raise ValueError(
                f"{name} must be one finite number, or one for each of the {channels} channel(s); "
                f"got {value}"
            )
        return torch.from_numpy(vector.copy()).reshape(-1, *[1] * (self._image.ndim - 2))

    def _check_augment(self) -> None:
        """An augmentation moves the pixels of the image only, so nothing else may be a map."""
        maps: Sequence[str] = [
            name
            for name, values in self._columns.items()
            if isinstance(values, Tensor) and values.shape[-2:] == self._image.shape[-2:]
            if values.ndim > 2
        ]
        maps = [*maps, *(name for name in ("box",) if name in self._columns and name not in maps)]
        if self.augment is not None and maps:
            raise ValueError(
                f"augment moves the image but not {maps}, which belongs to its pixels and would no "
                "longer match; leave it out of arrays, or move both by transform="
            )


_SETTINGS = ("batch_size", "shuffle", "seed", "augment", "transform", "drop_last")
