"""Where the pixels of a case lie: what data sets store of it as columns of constant_data.

affine           (case, 4, 4)   index of the predicted array along its image axes -> mm, RAS+
spacing          (case, axis)   size of a pixel along (depth,) row, col, mm
original_affine  (case, 4, 4)   the same of the file before it was resampled
spatial_shape    (case, axis)   its size, voxels
image_shape      (case, axis)   size of the predicted array without what it was filled up with
filename_or_obj  (case)         the file
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.tree.groups import find_group


def column(tree: object, name: str, *shape: int) -> np.ndarray | None:
    """Return a column of constant_data (case, *shape), float64; None where it is not there.

    Args:
        tree: The tree of `predict`.
        name: Of the column.
        shape: What it must hold per case; a column of another shape is taken as not there.
    """
    group = find_group(tree, "constant_data")
    if name not in group or group[name].dims[:1] != ("case",):
        return None
    if group[name].shape[1:] != shape or group[name].dtype.kind not in "fiu":
        return None
    return group[name].values.astype(np.float64)


def pixel_spacing(tree: object, num_axes: int) -> np.ndarray | None:
    """Return the size of a pixel along the image axes (case, axis), mm; None where not known.

    It is ``spacing`` where that has as many axes as the image, or else follows from ``affine``.
    """
    found = column(tree, "spacing", num_axes)
    if found is not None:
        return found
    affine = column(tree, "affine", 4, 4)
    return None if affine is None else np.linalg.norm(affine[:, :3, :num_axes], axis=1)


def case_shape(tree: object, probs: xr.DataArray, case: int) -> tuple[int, ...]:
    """Return the size of a map of a case, without what it is filled up with behind its end.

    Args:
        tree: The tree of `predict`.
        probs: Probabilities or numbers (chain, draw, case, class, ...), NaN in the fill.
        case: Position of the case.
    """
    space = [str(dim) for dim in probs.dims[4:]]
    known = column(tree, "image_shape", len(space))
    if known is not None:
        return tuple(int(size) for size in known[case])
    one = probs.isel(chain=0, draw=0, case=case).isel({"class": 0})
    inside = one.notnull().values
    return tuple(int(np.flatnonzero(inside.any(_others(axis, len(space)))).max()) + 1
                 for axis in range(len(space)))  # fmt: skip


def _others(axis: int, number: int) -> tuple[int, ...]:
    return tuple(other for other in range(number) if other != axis)
