"""From what a data set of dicts returns to a batch: crops side by side, names, geometry, masks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from ppl_med.checks import reject
from ppl_med.data.geometry import geometry_of, is_meta_tensor, plain

CROPS = "crops"


def check_keys(keys: Any) -> dict[str, str]:
    """The names of a pipeline's entries -> names of the model's arguments.

    Raises:
        ValueError: If they are no dict of names, or two entries get one name.
    """
    if keys is None:
        return {}
    rule = 'a dict from the names in the batches to those of the model, such as {"label": "mask"}'
    named = isinstance(keys, Mapping) and all(
        isinstance(one, str) for pair in keys.items() for one in pair
    )
    if not named or len(set(keys.values())) < len(keys):
        reject("keys", rule + ", each name once", keys)
    return dict(keys)


class CaseEntries:
    """Collates items of a data set, dicts or lists of dicts, to a batch that models can read.

    - A list of dicts, as MONAI's cropping transforms return, is several crops of one volume. They
      stand side by side, and "crops" int64 (case) says how many the volume of each has given, where
      it is more than one.
    - MetaTensors become tensors; what the images' files tell (``data.geometry``) stands beside
      them.
    - A mask with one channel, (case, 1, ...), loses that axis.
    - "id" is the name of the image's file where there is no other and ``names`` knows it.

    Args:
        collate: What joins the items; None, or torch's own, stands for what MONAI does where there
            are MetaTensors and torch's otherwise.
        keys: Names in the items -> names in the batch.
        names: Paths of images -> ids.
    """

    def __init__(
        self,
        collate: Callable[[Any], Any] | None = None,
        keys: Mapping[str, str] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Check the names; see the class."""
        self.collate, self.keys, self.names = collate, check_keys(keys), dict(names or {})

    def __call__(self, items: Any) -> Any:
        """A batch of items; an item that is a batch by itself is converted."""
        if not isinstance(items, list):
            return self.convert(items if self.collate is None else self.collate(items))
        crops = [item if _is_crops(item) else [item] for item in items]
        if self.collate is None or self.collate is default_collate:
            batch = _joined([one for item in crops for one in item])
        else:
            batch = self.collate(items)
        return self.convert(batch, [len(item) for item in crops])

    def convert(self, batch: Any, counts: Sequence[int] = ()) -> Any:
        """A batch that is collated, as models read it; ``counts`` are the crops of each item."""
        if not isinstance(batch, Mapping):
            return batch  # which is told where batches are checked
        found = self._renamed(batch)
        image = found.get("image")
        if not is_meta_tensor(image):
            image = next((one for one in found.values() if is_meta_tensor(one)), None)
        found = {**geometry_of(image), **{name: plain(value) for name, value in found.items()}}
        files = found.get("filename_or_obj", [])
        if found.get("id") is None and files and all(file in self.names for file in files):
            found["id"] = [self.names[file] for file in files]
        mask, image = found.get("mask"), found.get("image")
        if isinstance(mask, Tensor) and isinstance(image, Tensor):
            if mask.ndim == image.ndim > 3 and mask.shape[1] == 1:
                found["mask"] = mask[:, 0]
        if max(counts, default=1) > 1:
            found[CROPS] = torch.tensor([count for count in counts for _ in range(count)])
        return found

    def _renamed(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        absent = sorted(set(self.keys) - set(batch))
        if absent:
            raise ValueError(
                f"keys names {absent}, which batches do not have; theirs are "
                f"{sorted(map(str, batch))}"
            )
        clash = sorted(set(self.keys.values()) & (set(batch) - set(self.keys)))
        if clash:
            raise ValueError(
                f"keys gives the name {clash[0]!r} to an entry, but batches have one of that name; "
                f"rename that too: keys={{..., {clash[0]!r}: 'other'}}"
            )
        return {self.keys.get(name, name): value for name, value in batch.items()}


def _is_crops(item: Any) -> bool:
    return isinstance(item, list) and bool(item) and all(isinstance(one, Mapping) for one in item)


def _joined(items: list[Any]) -> Any:
    """A batch by MONAI's or torch's collate function.

    Raises:
        ValueError: If cases differ in shape or in the names of their entries.
    """
    first = items[0]
    if not isinstance(first, Mapping):
        return default_collate(items)
    for position, item in enumerate(items):
        if item.keys() != first.keys():
            other = sorted(map(str, item.keys() ^ first.keys()))
            raise ValueError(
                f"cases of a batch have different entries: only some have {other}, as is seen at "
                f"position {position}; give every case the same"
            )
    for name, value in first.items():
        shapes = [tuple(item[name].shape) for item in items if isinstance(item[name], Tensor)]
        others = [shape for shape in shapes if shape != shapes[0]]
        if isinstance(value, Tensor) and others:
            raise ValueError(
                f"{name!r} has {len(set(shapes))} shapes in one batch of {len(shapes)}: "
                f"{shapes[0]}, {others[0]}{', ...' if len(set(shapes)) > 2 else ''}; crop or pad "
                "to one (RandSpatialCropd, ResizeWithPadOrCropd), or take batches of one case: "
                "batch_size=1"
            )
    if any(is_meta_tensor(value) for value in first.values()):
        from monai.data import list_data_collate

        return list_data_collate(items)
    return default_collate(items)
