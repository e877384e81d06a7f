"""Probabilities of classes as logs in half precision, two bytes each.

Of a log x the type holds 11 bits: it is off by at most |x| / 2048, or by 3e-8 where that is more.
Logs end at -16, the log of 1.1e-7. What is read back sums to one again, so that a probability p of
a distribution of entropy H is off by a share of (|log p| + H) / 2048 at most, and H by
(E[log² p] + H²) / 2048 nats, both to first order. Each class below 1.1e-7 adds that to the error of
a probability, and 1.9e-6 nats to that of H: of 300 classes of which one is sure, H is 6e-4 in the
place of 0. A negative logarithm of a probability that is read back is 16 nats at most.
Probabilities in half precision would lose those below 6e-8, and with them the entropy of a class
that is nearly sure.
"""

from functools import partial

import numpy as np
import xarray as xr
from numpy.typing import NDArray

NAME = "log_probs"
LOWEST = -16.0
STORED = {
    "stored": "log_float16",
    "units": "nats",
    "long_name": "natural logarithms of class probabilities: take exp, then divide by the sums",
}
CLASSES = "num_classes"
_NUMBERS = 2**21  # of an array in memory that are read together
DIFFER = {"copies": "none"}  # draws that differed may be equal when rounded


def encoded(probs: NDArray, axis: int = -1) -> NDArray[np.float16]:
    """Logs of probabilities, -16 or more, whatever their axis of classes is; NaN stays."""
    with np.errstate(divide="ignore"):
        logs = np.log(probs)
    result: NDArray[np.float16] = np.maximum(logs, LOWEST).astype(np.float16)
    return result


def stored_in(group: xr.Dataset) -> bool:
    """Whether a group holds logs in the place of probabilities."""
    return NAME in group and is_stored(group[NAME]) and "probs" not in group


def is_stored(array: xr.DataArray) -> bool:
    """Whether an array is of such logs."""
    return array.attrs.get("stored") == STORED["stored"]


def attributes(num_classes: int) -> dict[str, str]:
    """Attributes that tell what the logs are, and of how many classes."""
    return {**STORED, CLASSES: str(num_classes)}


def decoded(logs: xr.DataArray) -> xr.DataArray:
    """Probabilities, float64, not yet computed, that sum to one over all classes.

    Of some of the classes they are what they were, which is no distribution.
    """
    if logs.chunks is None:
        some = max(1, _NUMBERS * logs.sizes.get("case", 1) // max(logs.size, 1))
        logs = logs.chunk({"case": some} if "case" in logs.dims else {})
    axis = None
    if int(logs.attrs.get(CLASSES, -1)) in (logs.sizes.get("class"), -1):
        logs = logs.chunk({"class": -1})
        axis = logs.get_axis_num("class")
    decode = partial(_decode, axis=axis)
    found = logs.copy(data=logs.data.map_blocks(decode, dtype=np.float64)).rename("probs")
    left = {*STORED, CLASSES}
    found.attrs = {name: value for name, value in logs.attrs.items() if name not in left}
    return found


def _decode(logs: NDArray[np.float16], axis: int | None) -> NDArray[np.float64]:
    values = np.exp(logs.astype(np.float64))
    if axis is not None:
        values /= values.sum(axis, keepdims=True)
    return values
