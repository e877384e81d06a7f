"""What is said of a cluster: its mean map, its distance to the others, its classes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from ppl_med.analysis.spray.pooled_maps import of_unit_length


def of_groups(
    cluster: NDArray[np.int64],
    mean: NDArray[np.float64],
    pooled: NDArray[np.float64],
    space: list[str],
) -> dict[str, Any]:
    """Size, maps and distances of every cluster.

    Args:
        cluster: Cluster of every case, (case,), 0 the largest.
        mean: Mean maps over draws, (case, *space).
        pooled: The mean maps, pooled and of unit length, (case, place).
        space: Names of the spatial axes.
    """
    groups = [cluster == group for group in range(cluster.max() + 1)]
    unit = of_unit_length(mean)
    maps = ("group", *space)
    return {
        "size": ("group", [int(own.sum()) for own in groups]),
        "consistency": ("group", [np.linalg.norm(pooled[own].mean(0)) for own in groups]),
        "mean_map": (maps, np.stack([unit[own].mean(0) for own in groups])),
        "fisher_map": (maps, np.stack([_fisher(unit, own, each=True) for own in groups])),
        "fisher_score": ("group", [float(_fisher(pooled, own)) for own in groups]),
    }


def _fisher(
    values: NDArray[np.float64], own: NDArray[np.bool_], each: bool = False
) -> NDArray[np.float64]:
    """Between over within variance, of every pixel or summed over them; 0 where both are 0."""
    if own.all():
        return np.full(values.shape[1:] if each else (), np.nan)
    inside, outside = values[own], values[~own]
    between = np.square(inside.mean(0) - outside.mean(0))
    within = inside.var(0) + outside.var(0)
    if not each:
        between, within = between.sum(), within.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(between == 0, 0.0, between / within)


def of_classes(
    cluster: NDArray[np.int64], classes: NDArray[np.int64], num_classes: int
) -> dict[str, Any]:
    """Whether a cluster holds one class more than chance gives.

    Args:
        cluster: Cluster of every case, (case,), 0 the largest.
        classes: Class of every case, (case,), integers.
        num_classes: How many there are.
    """
    number = int(cluster.max()) + 1
    count = np.zeros((number, num_classes), np.int64)
    np.add.at(count, (cluster, classes), 1)
    size, total = count.sum(1), count.sum(0)
    tail = hypergeom.sf(count - 1, len(cluster), total, size[:, None]).min(1)
    return {
        "class_count": (("group", "class"), count),
        "purity": ("group", count.max(1) / size),
        "enrichment_p": ("group", np.minimum(1.0, tail * num_classes * number)),
    }
