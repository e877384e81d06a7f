"""Clusters of one set of maps: the spectrum of their neighbour graph, and k-means in it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse.csgraph import connected_components, laplacian
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE
from sklearn.neighbors import kneighbors_graph

from ppl_med.analysis.spray.arguments import Embedding


class Settings(NamedTuple):
    """Of one partition; see ``clusters``."""

    num_clusters: int | None
    most_clusters: int
    neighbours: int
    seed: int


class Partition(NamedTuple):
    """Clusters of one set of maps, and the spectrum that they come from."""

    eigenvalue: NDArray[np.float64]  # (number,)
    vectors: NDArray[np.float64]  # (case, number), rows of D^-1/2 U
    num_pieces: int
    own_number: int  # of clusters, by the eigengap
    cluster: NDArray[np.int64]  # (case,), 0 the largest


def partition(pooled: NDArray[np.float64], settings: Settings) -> Partition:
    """Clusters of maps of unit length (case, place)."""
    graph = kneighbors_graph(pooled, settings.neighbours, mode="connectivity")
    graph = graph.maximum(graph.T)
    num_pieces = int(connected_components(graph, directed=False)[0])
    most, wanted = settings.most_clusters, settings.num_clusters
    if wanted is None and num_pieces > most:
        raise ValueError(
            f"the graph of {settings.neighbours} neighbours falls into {num_pieces} pieces, more "
            f"than most_clusters={most}; raise neighbours or most_clusters"
        )
    matrix, root_degree = laplacian(graph, normed=True, return_diag=True)
    last = min(len(pooled), max(most + 1, num_pieces, wanted or 1))
    values, vectors = eigh(matrix.toarray(), subset_by_index=[0, last - 1])
    vectors = vectors / root_degree[:, None]
    own = max(num_pieces, 1 + int(np.diff(values[: most + 1]).argmax()))
    number = wanted or own
    # A part of the null space would depend on its arbitrary basis, so all of it is taken.
    rows = vectors[:, : max(number, num_pieces)]
    means = KMeans(number, n_init=10, random_state=settings.seed)
    found = _by_size(means.fit_predict(rows))
    return Partition(values[: most + 1].clip(min=0), vectors, num_pieces, own, found)


def _by_size(cluster: NDArray[np.integer]) -> NDArray[np.int64]:
    """Number the clusters by their size, the largest first; of equals the one of the first case."""
    names, first, counts = np.unique(cluster, return_index=True, return_counts=True)
    rank = np.empty(names.max() + 1, np.int64)
    rank[names[np.lexsort((first, -counts))]] = np.arange(len(names))
    return rank[cluster]


def plane(
    pooled: NDArray[np.float64], whole: Partition, embedding: Embedding, seed: int
) -> NDArray[np.float64]:
    """Place of every case in the plane, (case, 2)."""
    if embedding == "spectral":
        return whole.vectors[:, 1:3]
    perplexity = min(30.0, (len(pooled) - 1) / 3)
    plane = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(pooled)
    return plane.astype(np.float64)
