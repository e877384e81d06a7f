"""Slices of volumes as images that keep their patient, so that no split can part them.

Slices of one brain are as good as copies. Where they are dealt out to training and test one by one,
a net that knows the brain by heart knows the label: with labels drawn at random by patient it still
scores far above chance (Yagis et al., Scientific Reports 11, 2021: 96 %). So volumes are split by
patient first, and cut into slices after.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import choice, finite, reject
from ppl_med.data.splits import check_splits

_AXES = ("depth", "row", "col")


def slices_of(
    data: Mapping[str, Any],
    axis: str = "depth",
    at: Sequence[float] = (0.4, 0.45, 0.5, 0.55, 0.6),
) -> dict[str, Any]:
    """Cut volumes into slices.

    Args:
        data: Arrays of volumes, "image" (case, channel, depth, row, col) and whatever has one entry
            a case; or such arrays for every split.
        axis: Which axis the slices are cut across.
        at: Where, as shares of the axis: 0.5 is its middle.

    Returns:
        The same for slices, those of a case one after the other: "image" (case, channel, and the
        two other axes), masks and other arrays of the volume's shape likewise; "id" is that of the
        volume and the number of the slice, "scan-07/012"; "slice" int64 (case); "patient" and all
        else are repeated. "spacing" loses the axis; "affine" is left out, for a picture has none.

    Raises:
        ValueError: No volumes, an argument is out of range, arrays name no "patient", or splits
            share one: a slice-level split. Slices of what has no patients are cut from arrays whose
            "patient" is their "id".
    """
    choice("axis", axis, _AXES)
    shares = [finite("at", one, 0, 1) for one in at]
    if not shares:
        reject("at", "one or more shares of the axis", at)
    if "image" in data:
        return _cut(data, _AXES.index(axis), shares)
    splits = {name: _cut(arrays, _AXES.index(axis), shares) for name, arrays in data.items()}
    check_splits(splits, "patient")
    return splits


def _cut(arrays: Mapping[str, Any], axis: int, shares: Sequence[float]) -> dict[str, NDArray[Any]]:
    if "image" not in arrays:
        raise ValueError(f'data has no "image"; its keys are {sorted(arrays)}')
    shape = np.shape(arrays["image"])
    if len(shape) != 5:
        reject("image", "volumes (case, channel, depth, row, col)", f"shape {shape}")
    if "patient" not in arrays:
        raise ValueError(
            'data has no "patient", so that splits could part the slices of a volume; give one '
            'entry a case, or "id" under that name where each case is another person'
        )
    number = np.unique([min(int(share * shape[2 + axis]), shape[2 + axis] - 1) for share in shares])
    found: dict[str, NDArray[Any]] = {}
    for name, given in arrays.items():
        values = np.asarray(given)
        if name == "affine":
            continue
        if name == "spacing":
            values = np.delete(values, axis, 1)
        if values.ndim >= 4 and values.shape[-3:] == shape[2:]:
            place = values.ndim - 3 + axis
            parts = np.moveaxis(values.take(number, place), place, 1)
            found[name] = parts.reshape(-1, *parts.shape[2:])
        else:
            found[name] = values.repeat(len(number), 0)
    found["slice"] = np.tile(number, shape[0])
    if "id" in found:
        ids = zip(found["id"].tolist(), found["slice"].tolist(), strict=True)
        found["id"] = np.array([f"{one}/{at:03d}" for one, at in ids])
    return found
