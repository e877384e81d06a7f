"""Depth maps as measured: in metres, with NaN where there is no number to learn from."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import positive
from ppl_med.data.readers.image_files import nearest


def measured(
    depth: NDArray[Any], size: tuple[int, int] | None = None, max_depth: float | None = None
) -> tuple[NDArray[np.float32], int]:
    """The map as float32, NaN where nothing was measured, and how many pixels these are.

    Depths are metres, dims (row, col); those that are not finite, 0 or less, or from ``max_depth``
    on count as not measured. At another size no average is taken, lest a pixel at an edge get a
    depth that is nowhere in the scene.
    """
    values = nearest(np.asarray(depth), size).astype(np.float32)
    with np.errstate(invalid="ignore"):
        kept = np.isfinite(values) & (values > 0)
        if max_depth is not None:
            kept &= values < max_depth
    return np.where(kept, values, np.float32(np.nan)), int((~kept).sum())


def check_max_depth(max_depth: float | None) -> None:
    """Raise unless the limit is a number of metres above 0, or None."""
    if max_depth is not None:
        positive("max_depth", max_depth, "give metres, or None for no limit")
