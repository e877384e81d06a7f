"""Clusters of every posterior draw, named as those of the mean map, and how often they agree."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from ppl_med.analysis.spray.graph import Partition
from ppl_med.analysis.statistics import monte_carlo
from ppl_med.axes import SAMPLES


def of_draws(cluster: NDArray[np.int64], parts: list[list[Partition]]) -> dict[str, Any]:
    """Variables over draws, and what they say of the clusters of the mean map.

    Args:
        cluster: By the mean map, (case,), 0 the largest.
        parts: Partitions of every draw, by chain, into as many clusters.
    """
    number = int(cluster.max()) + 1
    draw_cluster = np.array(
        [[_matched(one.cluster, cluster, number) for one in chain] for chain in parts]
    )
    flat = draw_cluster.reshape(-1, len(cluster))
    together = np.mean([one[:, None] == one for one in flat], axis=0)
    within, outside = [], []
    for own in (cluster == group for group in range(number)):
        within.append([[_same_pairs(one[own]) for one in chain] for chain in draw_cluster])
        outside.append(together[own][:, ~own].mean() if not own.all() else np.nan)
    shares = xr.DataArray(within, dims=("group", *SAMPLES))
    sample = (*SAMPLES, "case")
    return {
        "draw_eigenvalue": (
            (*SAMPLES, "number"),
            [[one.eigenvalue for one in chain] for chain in parts],
        ),
        "draw_num_clusters": (SAMPLES, [[one.own_number for one in chain] for chain in parts]),
        "draw_cluster": (sample, draw_cluster),
        "membership": ("case", (flat == cluster).mean(0)),
        "co_clustering": (("case", "case2"), together),
        "stability": monte_carlo.mean(shares),
        "stability_mcse": monte_carlo.standard_error(shares),
        "co_clustering_outside": ("group", outside),
    }


def _matched(
    other: NDArray[np.int64], cluster: NDArray[np.int64], number: int
) -> NDArray[np.int64]:
    """Name the clusters of a draw after those of the mean map, so that most cases agree."""
    shared = np.zeros((number, number), np.int64)
    np.add.at(shared, (other, cluster), 1)
    rows, columns = linear_sum_assignment(shared, maximize=True)
    name = np.empty(number, np.int64)
    name[rows] = columns
    return name[other]


def _same_pairs(cluster: NDArray[np.int64]) -> float:
    """Share of the pairs of cases that have one cluster."""
    counts = np.unique(cluster, return_counts=True)[1]
    pairs = len(cluster) * (len(cluster) - 1)
    return float((counts * (counts - 1)).sum() / pairs) if pairs else np.nan
