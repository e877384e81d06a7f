"""Maps, labels and settings of the clustering, checked before any work starts."""

from typing import Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ppl_med import checks
from ppl_med.analysis.tree.attributions import SPACE, select_maps
from ppl_med.analysis.tree.distinct_draws import drop_copies
from ppl_med.axes import SAMPLES

Part = Literal["signed", "positive", "absolute"]
Embedding = Literal["tsne", "spectral"]


def as_maps(maps: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """Maps (chain, draw, case, [channel,] [depth,] row, col)."""
    maps = select_maps(maps, "maps")
    missing = {"case", "row", "col"} - set(maps.dims)
    unknown = set(maps.dims) - {*SAMPLES, "case", "channel", *SPACE}
    if missing or unknown:
        raise ValueError(
            f"maps has the axes {maps.dims}; it needs case, row and col, and may have chain, draw, "
            "channel and depth"
        )
    maps = maps.expand_dims([dim for dim in SAMPLES if dim not in maps.dims])
    order = (*SAMPLES, "case", "channel", *SPACE)
    return drop_copies(maps.transpose(*[dim for dim in order if dim in maps.dims]))


def as_label(label: ArrayLike | None, num_cases: int) -> tuple[NDArray, NDArray[np.int64]]:
    """Names of the classes, and the class of every case."""
    if label is None:
        return np.array([]), np.zeros(num_cases, np.int64)
    values = np.asarray(label)
    if values.shape != (num_cases,):
        raise ValueError(f"label has shape {values.shape}; the maps have {num_cases} cases")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("label holds NaN or infinite values; leave those cases out")
    names, classes = np.unique(values, return_inverse=True)
    return names, classes.astype(np.int64)


def check(
    num_cases: int,
    num_clusters: int | None,
    most_clusters: int,
    neighbours: int,
    size: int,
    part: str,
    embedding: str,
) -> None:
    """Raise unless settings are in range and fit together; arguments as in ``clusters``."""
    counts = {"most_clusters": most_clusters, "neighbours": neighbours, "size": size}
    if num_clusters is not None:
        counts["num_clusters"] = num_clusters
    for name, value in counts.items():
        checks.whole(name, value)
    checks.choice("part", part, get_args(Part))
    checks.choice("embedding", embedding, get_args(Embedding))
    least = max(neighbours, most_clusters, num_clusters or 1) + 2
    if num_cases < least:
        raise ValueError(
            f"{num_cases} cases are too few; neighbours={neighbours}, "
            f"most_clusters={most_clusters} and num_clusters={num_clusters} need {least}"
        )
