"""Metadata of the cases: entries of batches that become ``constant_data``."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def find_columns(batch: Mapping[str, Any], taken: set[str], size: int) -> list[str]:
    """Entries of a batch that hold a number, a text or an array of one shape for every case."""
    names = sorted(name for name in batch.keys() - taken if batch[name] is not None)
    fitting = [name for name in names if as_column(batch[name], size) is not None]
    left_out = [name for name in names if name not in fitting]
    if left_out:
        warnings.warn(
            f"{left_out} are left out of constant_data: they are no number, text or array of one "
            "shape for every case",
            stacklevel=5,
        )
    return fitting


def as_column(values: Any, size: int) -> np.ndarray | None:
    """Values with the case on the first axis; None where they are no such thing."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        array = values.float().numpy() if values.dtype == torch.bfloat16 else values.numpy()
    elif isinstance(values, np.ndarray | list | tuple):
        try:
            array = np.asarray(values)
        except ValueError:  # rows of different lengths
            return None
    else:
        return None
    if array.dtype == object and all(isinstance(one, str) for one in array.flat):
        array = array.astype(str)
    fits = array.ndim > 0 and len(array) == size and array.dtype.kind in "biufUM"
    return array if fits else None


def column_dims(name: str, column: np.ndarray, image: Any) -> tuple[str, ...]:
    """Dims of metadata: those of the image where shapes agree, ``<name>_dim_<axis>`` elsewhere."""
    rest = column.shape[1:]
    dims = [f"{name}_dim_{axis}" for axis in range(len(rest))]
    if isinstance(image, Tensor) and image.dim() in (4, 5):
        spatial = ["row", "col"] if image.dim() == 4 else ["depth", "row", "col"]
        if len(rest) >= len(spatial) and rest[-len(spatial) :] == image.shape[2:]:
            dims[-len(spatial) :] = spatial
        if tuple(rest) == tuple(image.shape[1:]):
            dims[0] = "channel"
    return ("case", *dims)
