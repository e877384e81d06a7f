"""Several graders' masks of one image -> what a program trains on: one annotation at a time."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.data.masks import UNANNOTATED, check_mask_axes, check_masks, whole_mask

if TYPE_CHECKING:
    from torch import Generator


def one_grader_per_case(
    arrays: Mapping[str, Any], *, drop_absent: bool = False, num_classes: int | None = None
) -> dict[str, Any]:
    """Turn graded images into training pairs: one case for each annotation of each image.

    Every grader's opinion weighs the same, and an image counts as often as it was annotated. The
    image is copied for each; to keep one copy in memory, give the graded arrays to ``Batches`` with
    ``transform=random_grader``.

    Args:
        arrays: "image" (case, channel, [depth,] row, col), "mask" whole (case, grader, [depth,]
            row, col), optionally "id" (case) and metadata, first axis case.
        drop_absent: Pairs whose "reader_present" (case, grader) is False fall away too: an empty
            mask of a reader who did not mark the lesion then counts as missing, not as an answer.
        num_classes: Class ids must be below it, if given.

    Returns:
        "image" and metadata, repeated; "mask" (case, [depth,] row, col), of the dtype given; "id"
        str, "<id>/g<grader>" with the grader counted from 0; "image_id", the id of the image;
        "grader" int64. Cases are ordered by image, then grader. Masks that are -1 everywhere fall
        away. "reader_present", if given, is that of the pair.

    Raises:
        TypeError: Masks hold no whole numbers.
        ValueError: There is no axis of graders, ``check_masks`` finds a fault, an image is left
            without annotation, ``drop_absent`` without "reader_present", or lengths that differ.
    """
    missing = {"image", "mask"} - arrays.keys()
    if missing:
        raise ValueError(f"arrays lacks {sorted(missing)}; its keys are {sorted(arrays)}")
    given = arrays.get("id")
    ids = np.arange(len(arrays["image"])) if given is None else np.asarray(given)
    check_masks(arrays["image"], arrays["mask"], num_classes=num_classes, ids=ids.tolist())
    image, mask = np.asarray(arrays["image"]), whole_mask(np.asarray(arrays["mask"]))
    if mask.ndim != image.ndim:
        raise ValueError(
            f"mask has shape {mask.shape}; expected (case, grader, ...) beside an image of shape "
            f"{image.shape}: masks of one grader need no such step"
        )
    annotated = _annotated(arrays, mask, drop_absent)
    if not annotated.any(1).all():
        first = int((~annotated.any(1)).argmax())
        raise ValueError(
            f"case {first} (id {ids[first].item()!r}) has no annotation left; drop the case first"
        )
    case, grader = annotated.nonzero()
    pairs = {
        name: _rows(name, values, case, len(image))
        for name, values in arrays.items()
        if name not in ("mask", "id", "reader_present")
    }
    if "reader_present" in arrays:
        pairs["reader_present"] = np.asarray(arrays["reader_present"], bool)[case, grader]
    own = [f"{one}/g{who}" for one, who in zip(ids[case].tolist(), grader.tolist(), strict=True)]
    return pairs | {
        "mask": mask[case, grader],
        "id": np.array(own),
        "image_id": ids[case],
        "grader": grader.astype(np.int64),
    }


def random_grader(batch: dict[str, Any], generator: "Generator") -> dict[str, Any]:
    """Keep one grader's mask of every image, all who annotated it equally likely.

    A ``transform`` of ``Batches``: the grader is drawn anew for every batch of every epoch.

    Args:
        batch: Holds "mask" (case, grader, [depth,] row, col); a grader whose mask is -1 everywhere
            did not annotate the image.
        generator: Source of the choices, one per case.

    Returns:
        The batch with "mask" (case, [depth,] row, col), and "grader" int64 (case).

    Raises:
        ValueError: There is no axis of graders, but one of channels or classes or none, or nobody
            annotated an image.
    """
    import torch

    image, mask = batch["image"], batch.get("mask")
    if mask is None or mask.ndim != image.ndim:
        raise ValueError(
            "random_grader needs batches with a mask of dims (case, grader, ...), got "
            f"{'none' if mask is None else tuple(mask.shape)}"
        )
    check_mask_axes(mask, image.shape)
    annotated = (mask != UNANNOTATED).flatten(2).any(-1)
    if not annotated.any(1).all():
        first = int((~annotated.any(1)).nonzero()[0])
        raise ValueError(f"nobody annotated position {first} of the batch; drop the case")
    # The largest of independent uniform numbers is any of them with the same probability.
    draw = torch.rand(annotated.shape, generator=generator, dtype=torch.float64)
    grader = torch.where(annotated.cpu(), draw, -1.0).argmax(1).to(mask.device)
    kept = mask[torch.arange(len(mask), device=mask.device), grader]
    return batch | {"mask": kept, "grader": grader}


def _annotated(arrays: Mapping[str, Any], mask: NDArray, drop_absent: bool) -> NDArray[np.bool_]:
    """Which grader annotated which image, dims (case, grader)."""
    annotated = (mask != UNANNOTATED).any(tuple(range(2, mask.ndim)))
    if not drop_absent:
        return annotated
    if "reader_present" not in arrays:
        raise ValueError(
            'drop_absent needs "reader_present" (case, grader) in arrays; mark absent graders by '
            "masks of -1 instead"
        )
    present = np.asarray(arrays["reader_present"], bool)
    if present.shape != annotated.shape:
        raise ValueError(
            f"reader_present has shape {present.shape}; expected {annotated.shape}, (case, grader)"
        )
    return annotated & present


def _rows(name: str, values: Any, case: NDArray, num_cases: int) -> NDArray:
    array = np.asarray(values)
    if array.ndim == 0 or len(array) != num_cases:
        raise ValueError(f"{name} has shape {array.shape}; expected one entry per case, first axis")
    return array[case]
