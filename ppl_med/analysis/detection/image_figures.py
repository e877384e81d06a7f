"""Figures of sets of images that are put together from what was found in each image.

Objects are paired with true boxes once; a figure of a resample of the images is then the same sum
with other weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from ppl_med.analysis.detection.open_objects import FoundObjects

Figures: TypeAlias = dict[str, np.ndarray]


@dataclass(frozen=True)
class ImageFigures:
    """How the figures follow from the weights of the images.

    Args:
        found: The objects.
        compute: From weights (case,) to every figure.
        dims: Of every figure.
        units: Of every figure that is no share or count.
        coords: Of the result.
        attrs: Of the result, with the counts.
    """

    found: FoundObjects
    compute: Callable[[np.ndarray], Figures]
    dims: Mapping[str, tuple[str, ...]]
    coords: Mapping[str, Any]
    attrs: Mapping[str, Any]
    units: Mapping[str, str]
    sums: Mapping[str, np.ndarray] = field(default_factory=dict)

    def of_units(self, unit: np.ndarray) -> Figures:
        """Add the sums up over what is independent, such as patients (unit, ...).

        Args:
            unit: Number of the unit of every image (case,).
        """
        member = (np.arange(unit.max(initial=-1) + 1)[:, None] == unit).astype(np.float64)
        return {name: np.tensordot(member, one, 1) for name, one in self.sums.items()}

    def dataset(self) -> xr.Dataset:
        """The figures of all images."""
        found = self.compute(np.ones(self.found.num_cases))
        result = xr.Dataset(coords=dict(self.coords))
        for name, values in found.items():
            result[name] = (self.dims[name], values, {"units": self.units.get(name, "1")})
        return result.assign_attrs({**self.found.counts(), **self.attrs})


def mean_of_known(values: np.ndarray, axis: int | tuple[int, ...] | None = None) -> np.ndarray:
    """Return the mean of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    number = known.sum(axis)
    total = np.where(known, values, 0).sum(axis)
    return ratio(total, number)


def ratio(part: Any, whole: Any) -> np.ndarray:
    """Return part / whole, NaN where the whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def by_falling_score(score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of falling score, and where in it every run of equal scores ends."""
    order = np.argsort(-score, kind="stable")
    falling = score[order]
    return order, np.flatnonzero(np.append(falling[1:] != falling[:-1], True))[: len(score)]
