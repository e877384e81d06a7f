"""Batches that cover the pool by its features; no uncertainty, so also of a point estimate.

    core_set    farthest first: each purchase is the case farthest from all that were bought
    typiclust   the most typical case of the largest cluster without a label

Features are the means over draws, chains side by side, of one kept layer (``predict(...,
keep=("feature:<layer>",))``). Core-set picks outliers. Typical clusters are for a cold start, of a
few labels a class, and rest on features that tell kinds apart, best from self-supervision; they are
divided by their lengths first. There are as many clusters as cases bought and to buy, at most 500;
a case is typical by the inverse of its mean distance to its 20 nearest neighbours in the cluster.

Sources: Sener and Savarese, ICLR 2018, arXiv:1708.00489, algorithm 1; Hacohen, Dekel and
Weinshall, ICML 2022, arXiv:2202.02794, algorithm 1 and appendix F.
"""

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import pairwise_distances

MOST_CLUSTERS, NEIGHBOURS, _SMALL = 500, 20, 5
_MANY = 50  # clusters from which they are found by parts of the cases


def farthest_first(
    feature: np.ndarray, labelled: np.ndarray, noise: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the case farthest from all that were bought, and so on.

    Args:
        feature: Of the cases that can be bought (case, unit).
        labelled: Of those that have a label (case, unit); without any the first is random.
        noise: Breaks ties (case,).
        size: How many.

    Returns:
        Positions, and the distance of each at its purchase (the first of all: NaN).
    """
    chosen, distance = [], []
    if len(labelled):
        nearest = pairwise_distances(feature, labelled).min(1)
    else:
        chosen, distance = [int(np.argmax(noise))], [np.nan]
        nearest = np.linalg.norm(feature - feature[chosen[0]], axis=1)
    while len(chosen) < size:
        open_distance = np.round(nearest, 12)
        open_distance[chosen] = -1.0
        ties = np.flatnonzero(open_distance == open_distance.max())
        place = int(ties[np.argmax(noise[ties])])
        chosen.append(place)
        distance.append(float(nearest[place]))
        nearest = np.minimum(nearest, np.linalg.norm(feature - feature[place], axis=1))
    return np.array(chosen), np.array(distance)


def typical_cases(
    feature: np.ndarray, num_labelled: int, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the most typical case of the largest clusters without a label.

    Args:
        feature: Of all cases, the labelled ones first (case, unit).
        num_labelled: How many these are.
        size: How many to choose.
        seed: Of the clustering.

    Returns:
        Positions among the unlabelled, and the typicality of each.
    """
    length = np.linalg.norm(feature, axis=1, keepdims=True)
    feature = feature / np.where(length > 0, length, 1.0)
    number = min(num_labelled + size, MOST_CLUSTERS, len(np.unique(feature, axis=0)))
    cluster = _clusters(feature, number, seed)
    is_free = np.arange(len(feature)) >= num_labelled
    labels = np.bincount(cluster[~is_free], minlength=number)
    sizes = np.bincount(cluster, minlength=number)
    chosen: list[int] = []
    typicality = []
    while len(chosen) < size:
        free = np.bincount(cluster[is_free], minlength=number)
        small = (free == 0) | (sizes <= _SMALL) & ((sizes > _SMALL) & (free > 0)).any()
        name = int(np.lexsort((-sizes, labels, small))[0])
        members = np.flatnonzero(cluster == name)
        density = _typicality(feature[members])
        place = int(np.argmax(np.where(is_free[members], density, -np.inf)))
        chosen.append(int(members[place]))
        typicality.append(float(density[place]))
        is_free[members[place]] = False
        labels[name] += 1
    return np.array(chosen) - num_labelled, np.array(typicality)


def _clusters(feature: np.ndarray, number: int, seed: int) -> np.ndarray:
    if number <= _MANY:
        kind = KMeans(number, n_init=5, random_state=seed)
    else:
        kind = MiniBatchKMeans(number, n_init=3, batch_size=5000, random_state=seed)
    found: np.ndarray = kind.fit_predict(feature)
    return found


def _typicality(feature: np.ndarray) -> np.ndarray:
    """Inverse mean distance to the nearest neighbours among these cases; 0 of a lone one."""
    number = min(NEIGHBOURS, len(feature) - 1)
    if number < 1:
        return np.zeros(len(feature))
    nearest = np.partition(pairwise_distances(feature), number, axis=1)[:, : number + 1]
    mean = nearest.sum(1) / number
    return np.asarray(1 / np.maximum(mean, 1e-12))
