"""Probabilities of classes as logs in half precision, two bytes each.

Of a log x the type holds 11 bits: it is off by at most |x| / 2048, or by 3e-8 where that is more. A
probability p is off by a share of |log p| / 2048, or where it was below e^-16 = 1.1e-7, at which
logs end, by that. With the sum of what is read back at one again, an entropy H is off by at most
(E[log² p] + H²) / 2048 nats, to first order. Probabilities in half precision would lose those
below 6e-8, and with them the entropy of a class that is nearly sure.
"""

from functools import partial

import numpy as np
import xarray as xr
from numpy.typing import NDArray

NAME = "log_probs"
LOWEST = -16.0
STORED = {"stored": "log_float16", "units": "nats"}
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


def decoded(logs: xr.DataArray) -> xr.DataArray:
    """Probabilities that sum to one over class, float64, not yet computed."""
    if logs.chunks is None:
        some = max(1, _NUMBERS * logs.sizes.get("case", 1) // max(logs.size, 1))
        logs = logs.chunk({"case": some} if "case" in logs.dims else {})
    whole = logs.chunk({"class": -1})
    decode = partial(_decode, axis=whole.get_axis_num("class"))
    found = whole.copy(data=whole.data.map_blocks(decode, dtype=np.float64)).rename("probs")
    found.attrs = {name: value for name, value in logs.attrs.items() if name not in STORED}
    return found


def _decode(logs: NDArray[np.float16], axis: int) -> NDArray[np.float64]:
    values = logs.astype(np.float64)
    np.exp(values, out=values)
    values /= values.sum(axis, keepdims=True)
    return values
