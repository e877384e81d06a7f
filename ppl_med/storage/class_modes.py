"""Maps of the most probable class of every draw, in the place of their probabilities.

-1 stands behind the end of a case that is smaller than others. Names of the classes, which have no
axis any more, are an attribute.
"""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

NAME = "mode"
STORED = "argmax"
DTYPE = np.int8
MOST = 127  # classes


def encoded(probs: NDArray, axis: int) -> NDArray[np.int8]:
    """The first of the most probable classes along an axis."""
    outside = np.isnan(probs).all(axis)
    return np.where(outside, -1, probs.argmax(axis)).astype(DTYPE)


def attributes(names: Iterable[Any]) -> dict[str, str]:
    """Attributes that tell the names of the classes."""
    return {"stored": STORED, "classes": json.dumps([str(name) for name in names])}


def stored_in(group: xr.Dataset) -> bool:
    """Whether a group holds modes in the place of probabilities."""
    return NAME in group and group[NAME].attrs.get("stored") == STORED and "probs" not in group


def class_names(modes: xr.DataArray) -> tuple[str, ...]:
    """Names of the classes of a map."""
    return tuple(json.loads(modes.attrs["classes"]))
