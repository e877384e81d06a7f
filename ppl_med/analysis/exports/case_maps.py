"""Maps of one case on a grid of one's choice: mask, probabilities, entropy, spread over draws.

Probabilities are brought to the grid draw by draw, by linear interpolation, and everything else is
computed there: the mean, the most probable class of it, the entropy of it, the standard deviation.
A map of an entropy that was interpolated, or a mask that was, would be those of no prediction.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy import ndimage
from scipy.special import xlogy

from ppl_med.analysis.tree import Classes
from ppl_med.analysis.tree.geometry import case_shape
from ppl_med.analysis.tree.simplex import check_simplex

MAPS = ("mask", "probability", "sd", "entropy", "mutual_information")


class Grid(NamedTuple):
    """Voxels in space: 4 x 4 matrix from the index of a voxel to mm (RAS+), and their number."""

    affine: np.ndarray
    shape: tuple[int, ...]


class CaseMaps(NamedTuple):
    """Maps of one case, each of the shape of its grid.

    Args:
        mask: Most probable class of the mean, index; 0 where nothing was predicted.
        probability: Mean over draws (class, ...), NaN where nothing was predicted.
        sd: Standard deviation over draws (class, ...), NaN there and of one network.
        entropy: Of the mean, nats, NaN there.
        mutual_information: Its part from the differences between draws, nats, as ``sd``.
        outside: Which voxels of the grid were not predicted.
    """

    mask: np.ndarray
    probability: np.ndarray
    sd: np.ndarray
    entropy: np.ndarray
    mutual_information: np.ndarray
    outside: np.ndarray


def case_maps(
    source: Classes, case: int, own: Grid | None = None, grid: Grid | None = None
) -> CaseMaps:
    """Compute the maps of a case.

    Args:
        source: The tree's classes, with axes of an image.
        case: Position of the case.
        own: Where its pixels lie; needed with ``grid``.
        grid: Where the maps are wanted; by default where the pixels are.

    Raises:
        ValueError: Probabilities are malformed.
    """
    shape = case_shape(source.tree, source.array, case)
    place = None if grid is None or own is None else _Place(own, grid, shape)
    outside = np.zeros(shape, bool) if place is None else place.outside
    number = int(np.prod(source.num_samples))
    first = total = square = expected = np.zeros(1)
    for index, draw in enumerate(_draws(source, case, shape)):
        values = draw if place is None else np.stack([place.resample(one) for one in draw])
        first = values if index == 0 else first
        shifted = values - first  # equal draws have a spread of exactly 0
        total, square = total + shifted, square + shifted**2
        expected = expected - xlogy(values, values).sum(0)
    mean = first + total / number
    spread = np.sqrt((square - total**2 / number).clip(min=0) / max(number - 1, 1))
    entropy = -xlogy(mean, mean).sum(0)
    shared = (entropy - expected / number).clip(min=0)
    if number == 1:
        spread, shared = np.full_like(spread, np.nan), np.full_like(shared, np.nan)
    mask = np.where(outside, 0, mean.argmax(0)).astype(np.uint8 if len(mean) <= 256 else np.int32)
    probability, sd, total_entropy, mutual = (
        np.where(outside, np.nan, one).astype(np.float32) for one in (mean, spread, entropy, shared)
    )
    return CaseMaps(mask, probability, sd, total_entropy, mutual, outside)


def _draws(source: Classes, case: int, shape: Sequence[int]) -> Iterator[np.ndarray]:
    """Probabilities (class, ...) of every draw, without what the case is filled up with."""
    inside = dict(zip(source.array.dims[4:], map(slice, shape), strict=True))
    one: xr.DataArray = source.array.isel({"case": case, **inside})
    for chain in range(one.sizes["chain"]):
        for draw in range(one.sizes["draw"]):
            values = one.isel(chain=chain, draw=draw).values.astype(np.float64)
            check_simplex(values, 0)
            yield values


class _Place:
    """From the pixels of a case to a grid."""

    def __init__(self, own: Grid, grid: Grid, shape: Sequence[int]) -> None:
        self.shape = grid.shape
        matrix = np.linalg.solve(own.affine, grid.affine)
        self.matrix, self.offset = matrix[:3, :3], matrix[:3, 3]
        size = (*shape, 1, 1)[:3]
        wide = (*grid.shape, 1, 1)[:3]
        self.same = size == wide and np.allclose(matrix, np.eye(4), atol=1e-4)
        self.wide = wide
        axes = np.ogrid[tuple(slice(length) for length in wide)]
        outside = np.zeros(wide, bool)
        for row, offset, length, count in zip(
            self.matrix, self.offset, size, range(3), strict=True
        ):
            where = sum(factor * axis for factor, axis in zip(row, axes, strict=True)) + offset
            if count < len(shape):  # a picture has no thickness that is known
                outside |= (where < -0.5 - 1e-4) | (where > length - 0.5 + 1e-4)
        self.outside = np.zeros(grid.shape, bool) if self.same else outside.reshape(grid.shape)

    def resample(self, values: np.ndarray) -> np.ndarray:
        """A map of the case on the grid; behind its border the nearest pixel."""
        if self.same:
            return values.reshape(self.shape)
        found = ndimage.affine_transform(
            values.reshape((*values.shape, 1, 1)[:3]),
            self.matrix, self.offset, self.wide, order=1, mode="nearest",
        )  # fmt: skip
        return found.reshape(self.shape)
