"""From what a user has, lists, numpy arrays or tensors, to what ``Batches`` keeps in memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_med.checks import present
from ppl_med.data.masks import UNANNOTATED, check_image_shape, check_mask_axes, whole_mask

_CHUNK = 1024  # cases examined at a time, which bounds the memory of the check


def as_image(values: Any) -> Tensor:
    """Finite images, uint8 or floating, as a CPU tensor, dims (case, channel, [depth,] row, col).

    float64 becomes float32.
    """
    image = _tensor("image", values)
    check_image_shape(image.shape)
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise TypeError(
            f"image has dtype {image.dtype}; expected uint8 (0..255) or floating: convert with "
            'image.astype("float32")'
        )
    image = image.float() if image.dtype == torch.float64 else image
    for start in range(0, len(image), _CHUNK):
        bad = ~torch.isfinite(image[start : start + _CHUNK]).flatten(1).all(1)
        if bad.any():
            first = start + int(bad.nonzero()[0])
            raise ValueError(
                f"image holds NaN or infinite pixels, first in case {first}; replace the pixels or "
                "drop the case"
            )
    return image


def as_label(values: Any, num_cases: int) -> Tensor:
    """Return labels, integers from 0, as int64, dims (case)."""
    label = _tensor("label", values)
    if label.is_floating_point() or label.is_complex():
        raise TypeError(
            f"label has dtype {label.dtype}; expected integers from 0: convert with "
            'label.astype("int64") after checking that every value is whole'
        )
    check_label_shape(label)
    _check_length("label", len(label), num_cases)
    if (label < 0).any():
        first = int((label < 0).nonzero()[0])
        raise ValueError(
            f"label is {int(label[first])} in case {first}; labels count from 0: drop cases that "
            "have no label"
        )
    return label.long()


def as_mask(values: Any, image_shape: Sequence[int]) -> Tensor:
    """Masks as a CPU tensor: integers or booleans of the image's size, of the dtype given.

    Floats that are whole numbers are cast. Ids below -1, and 255 in masks of uint8, are refused.
    """
    if getattr(np.asarray(values), "dtype", None) in (np.uint16, np.uint32, np.uint64):
        values = np.asarray(values).astype(np.int64)  # torch can do little with these
    mask = as_metadata("mask", values, image_shape[0])
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
        floats = mask.float() if isinstance(mask, Tensor) and mask.dtype == torch.bfloat16 else mask
        mask = torch.from_numpy(whole_mask(np.asarray(floats)))
    check_mask_axes(mask, image_shape)
    if mask.dtype != torch.bool and mask.numel() and int(mask.min()) < UNANNOTATED:
        raise ValueError(
            f"mask holds {int(mask.min())}; class ids count from 0, and -1 marks pixels to ignore"
        )
    if mask.dtype == torch.uint8 and (mask == 255).any():
        raise ValueError(
            "mask is uint8 and holds 255, which is no class id: divide masks of 0 and 255 by 255, "
            'and where it stands for pixels to ignore, use -1: mask.astype("int16") first'
        )
    return mask


def check_label_shape(label: Tensor) -> None:
    """Raise unless labels have dims (case)."""
    if label.ndim != 1:
        raise ValueError(
            f"label has shape {tuple(label.shape)}; expected one integer per case, dims (case)"
            + (": use label[:, 0]" if label.ndim == 2 and label.shape[1] == 1 else "")
            + (': a map of classes stands under "mask"' if label.ndim > 2 else "")
        )


def as_ids(values: Any, num_cases: int) -> np.ndarray:
    """Return different ids as an array of str or int, dims (case); positions if there are none."""
    if values is None:
        return np.arange(num_cases)
    if np.ndim(values) == 1:  # else the shape is what is wrong
        present("id", values)
    ids = np.asarray(values)
    if ids.dtype == object and all(isinstance(one, str) for one in ids.flat):
        ids = ids.astype(str)
    mixed = isinstance(values, list | tuple) and len({isinstance(v, str) for v in values}) > 1
    if ids.dtype.kind not in "Uiu" or mixed:
        kind = "a mixture of str and other types" if mixed else f"of dtype {ids.dtype}"
        raise TypeError(f"id is {kind}; expected all str or all int" + _decode(ids))
    if ids.ndim != 1:
        raise ValueError(f"id has shape {ids.shape}; expected one id per case, dims (case)")
    _check_length("id", len(ids), num_cases)
    names, counts = np.unique(ids, return_counts=True)
    if len(names) < len(ids):
        examples = ", ".join(map(repr, names[counts > 1][:5].tolist()))
        raise ValueError(
            f"id has {int((counts > 1).sum())} duplicate(s): {examples}; every case needs its own: "
            "append a running number, and keep the patient as metadata"
        )
    return ids


def as_metadata(name: str, values: Any, num_cases: int) -> Tensor | np.ndarray:
    """Return numbers as a tensor and strings as an array, first axis case."""
    array = values if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim == 0:
        raise ValueError(f"{name} is a single value; expected one entry per case")
    _check_length(name, len(array), num_cases)
    if isinstance(array, np.ndarray) and array.dtype.kind not in "biuf":
        if array.dtype == object and all(isinstance(one, str) for one in array.flat):
            array = array.astype(str)
        if array.dtype.kind != "U":
            raise TypeError(
                f"{name} is of dtype {array.dtype}; expected numbers or str" + _decode(array)
            )
        return array
    return _tensor(name, array)


def _tensor(name: str, values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"{name} holds arrays of different shapes; bring them to one size first"
        ) from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} has dtype {array.dtype}; expected numbers")
    if name != "image" and array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # torch has these dtypes, but cannot compare or index them
    if not array.dtype.isnative or not array.flags.writeable:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(np.ascontiguousarray(array))


def _check_length(name: str, length: int, num_cases: int) -> None:
    if length != num_cases:
        raise ValueError(
            f"{name} has {length} entries but image has {num_cases} cases; every array needs one "
            "entry per case"
        )


def _decode(array: np.ndarray) -> str:
    return ": decode the bytes with array.astype(str)" if array.dtype.kind == "S" else ""
