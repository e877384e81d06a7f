"""Spectral relevance analysis (SpRAy): in how many ways does a model look at its cases?

A model that reads a source tag, a ruler or a pacemaker looks at some cases in another way than at
the rest. Their attribution maps form a cluster, which shows without looking at every map:

    v_i       map of case i, average-pooled to a coarse grid, of unit length
    W_ij      1 if i is among the k nearest neighbours of j, or j among those of i; else 0
    L         I - D^-1/2 W D^-1/2, D the degrees: as many eigenvalues 0 as the graph has pieces
    number    of clusters: the m with the largest gap between the m-th and the next eigenvalue
    clusters  k-means of the rows of D^-1/2 U, U the eigenvectors of the m smallest eigenvalues

One decomposition gives the eigenvalues, the clusters and the spectral coordinates. The last two are
those of scikit-learn's ``SpectralClustering``, whose own solver can miss eigenvectors of a multiple
eigenvalue, which 0 is wherever clusters are far apart.

Every posterior draw has maps and so clusters of its own: how often two cases share a cluster says
whether the grouping belongs to the posterior or to one net.

A cluster is no proof. What makes it worth a look: it holds one class more than chance gives
(``enrichment_p``), its maps are far from all others (``fisher_score``), and all the same, wherever
the object lies (``consistency``).

Sources: Lapuschkin et al., "Unmasking Clever Hans predictors and assessing what machines really
learn", Nature Communications 10:1096, 2019 (SpRAy); von Luxburg, "A tutorial on spectral
clustering", Statistics and Computing 17, 2007 (eigengap); Anders et al., "Finding and removing
Clever Hans", Information Fusion 77, 2022 (Fisher score to rank clusters).
"""

from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components, laplacian
from scipy.stats import hypergeom
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE
from sklearn.neighbors import kneighbors_graph

from ppl_med.analysis import monte_carlo

Part = Literal["signed", "positive", "absolute"]
Embedding = Literal["tsne", "spectral"]
SPACE = ("depth", "row", "col")
_SAMPLES = ("chain", "draw")
_ATTRS = {
    "eigenvalue": ("1", "eigenvalue of the normalised graph Laplacian, in rising order"),
    "gap": ("1", "next eigenvalue minus this one"),
    "num_clusters": ("1", "number of clusters"),
    "num_pieces": ("1", "connected pieces of the neighbour graph, as many as eigenvalues 0"),
    "cluster": ("1", "cluster of the case, 0 the largest"),
    "coordinate": ("1", "place of the case in the plane"),
    "draw_eigenvalue": ("1", "eigenvalue of the draw's graph Laplacian, in rising order"),
    "draw_num_clusters": ("1", "number of clusters by the draw's own eigengap"),
    "draw_cluster": (
        "1",
        "cluster of the case by the draw's maps, named as those of the mean",
    ),
    "membership": ("1", "share of draws in which the case is in its cluster"),
    "co_clustering": ("1", "share of draws in which two cases share a cluster"),
    "stability": ("1", "mean co-clustering of two cases of the cluster"),
    "stability_mcse": ("1", "Monte Carlo standard error of the stability"),
    "co_clustering_outside": ("1", "mean co-clustering of a case of the cluster and another case"),
    "size": ("1", "cases of the cluster"),
    "mean_map": ("1", "mean of the cluster's maps, each of unit length"),
    "consistency": ("1", "length of the mean of the cluster's pooled maps of unit length"),
    "fisher_map": ("1", "squared difference to the other cases' mean, over the sum of variances"),
    "fisher_score": ("1", "squared distance to the other cases' mean, over the sum of variances"),
    "class_count": ("1", "cases of the class in the cluster"),
    "purity": ("1", "share of the cluster's most frequent class"),
    "enrichment_p": ("1", "probability of so many cases of a class in so many drawn at random"),
}


def clusters(
    maps: xr.DataArray | xr.Dataset,
    label: ArrayLike | None = None,
    *,
    num_clusters: int | None = None,
    most_clusters: int = 10,
    neighbours: int = 10,
    size: int = 16,
    part: Part = "signed",
    embedding: Embedding = "tsne",
    seed: int = 0,
) -> xr.Dataset:
    """Group cases by where the model looked, under the mean map and under every draw.

    Time grows with the cube of the number of cases and memory with its square: give thousands.

    Args:
        maps: Attributions (case, [channel,] [depth,] row, col), with draw, or chain and draw, if
            every draw was kept; or the Dataset of ``ppl_med.explain.attribution.attribute``, of
            which ``attribution`` is taken if it is there, else ``mean``. Lazy maps are read draw
            by draw.
        label: What may explain a cluster, (case,), numbers or text: the class, the scanner.
        num_clusters: Overrides the eigengap.
        most_clusters: Most that the eigengap may choose.
        neighbours: k. A group of fewer than k + 1 cases can not come apart from the rest, and with
            a small k one group may fall into pieces by chance.
        size: Most places along each axis after pooling.
        part: "signed" keeps the maps as they are; "positive" what speaks for the output;
            "absolute" what mattered at all.
        embedding: Plane of ``coordinate``: t-SNE of the pooled maps, or the eigenvectors of the
            second and third eigenvalue, where pieces of the graph fall onto one point each.
        seed: Of k-means and t-SNE.

    Returns:
        Of the mean map: ``eigenvalue`` and ``gap`` (number), ``num_clusters`` and ``num_pieces``;
        ``cluster`` (case), 0 the largest, and ``coordinate`` (case, axis). Of every cluster, along
        ``group``: ``size``, ``mean_map`` and ``fisher_map`` (group, [depth,] row, col),
        ``fisher_score``, NaN for a single cluster, and ``consistency``, 1 where all maps are the
        same.

        With draws: ``draw_eigenvalue``, ``draw_num_clusters``, ``draw_cluster`` (chain, draw,
        case), found with the ``num_clusters`` of the mean map and matched to its clusters;
        ``membership`` (case), ``co_clustering`` (case, case2), ``stability`` (group) with
        ``stability_mcse``, NaN for a cluster of one case, and ``co_clustering_outside`` (group),
        NaN for a single cluster.

        With labels: ``class_count`` (group, class), ``purity`` and ``enrichment_p`` (group): the
        smallest hypergeometric tail over the classes, times their number and that of the clusters
        (Bonferroni).

    Raises:
        TypeError: If the maps are no DataArray or Dataset.
        ValueError: If an axis is missing or unknown, a value not finite, a setting out of range, a
            label missing, there are too few cases for so many neighbours, or the graph falls into
            more pieces than ``most_clusters``.
    """
    maps = _as_maps(maps)
    _check(maps.sizes["case"], num_clusters, most_clusters, neighbours, size, part, embedding)
    names, classes = _as_label(label, maps.sizes["case"])
    settings = _Settings(num_clusters, most_clusters, neighbours, seed)
    pooled, mean, draw_pooled = _features(maps, size, part)
    whole = _partition(pooled, settings)
    number = len(np.unique(whole.cluster))
    variables: dict[str, Any] = {
        "eigenvalue": ("number", whole.eigenvalue),
        "gap": ("number", np.append(np.diff(whole.eigenvalue), np.nan)),
        "num_clusters": number,
        "num_pieces": whole.num_pieces,
        "cluster": ("case", whole.cluster),
        "coordinate": (("case", "axis"), _plane(pooled, whole, embedding, seed)),
        **_of_groups(whole.cluster, mean, pooled, [d for d in SPACE if d in maps.dims]),
    }
    if draw_pooled is not None:
        fixed = settings._replace(num_clusters=number)
        parts = [[_partition(one, fixed) for one in chain] for chain in draw_pooled]
        variables |= _of_draws(whole.cluster, parts)
    if label is not None:
        variables |= _of_classes(whole.cluster, classes, len(names))
    ids = maps["case"].values
    coords: dict[str, Any] = {"number": np.arange(1, len(whole.eigenvalue) + 1), "case": ids}
    coords |= {name: maps[name].values for name in (*_SAMPLES, *SPACE) if name in maps.coords}
    coords |= {"group": np.arange(number)}
    if draw_pooled is not None:
        coords["case2"] = ids
    if label is not None:
        coords["class"] = names
    result = xr.Dataset(variables, coords)
    for name, variable in result.data_vars.items():
        units, long_name = _ATTRS[str(name)]
        variable.attrs = {"units": units, "long_name": long_name}
    return result.assign_attrs(
        neighbours=neighbours,
        part=part,
        embedding=embedding,
        num_clusters_by="argument" if num_clusters else "eigengap",
    )


def unit_maps(maps: xr.DataArray | xr.Dataset, part: Part = "signed") -> xr.DataArray:
    """Return what is clustered before it is pooled: one map of unit length a case.

    Args:
        maps: As in `clusters`.
        part: As in `clusters`.

    Returns:
        Mean over draws of the maps summed over channels, (case, [depth,] row, col), over its
        Euclidean length; 0 where the map is.

    Raises:
        TypeError: As in `clusters`.
        ValueError: As in `clusters`.
    """
    maps = _as_maps(maps)
    space = [dim for dim in SPACE if dim in maps.dims]
    mean = _features(maps, 1, part)[1]
    coords = {name: maps[name].values for name in ("case", *space) if name in maps.coords}
    attrs = {"units": "1", "long_name": "map of unit length"}
    return xr.DataArray(_of_unit_length(mean), coords, ["case", *space], attrs=attrs)


class _Settings(NamedTuple):
    num_clusters: int | None
    most_clusters: int
    neighbours: int
    seed: int


class _Partition(NamedTuple):
    """Clusters of one set of maps, and the spectrum that they come from."""

    eigenvalue: NDArray[np.float64]  # (number,)
    vectors: NDArray[np.float64]  # (case, number), rows of D^-1/2 U
    num_pieces: int
    own_number: int  # of clusters, by the eigengap
    cluster: NDArray[np.int64]  # (case,), 0 the largest


def _partition(pooled: NDArray[np.float64], settings: _Settings) -> _Partition:
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
    return _Partition(values[: most + 1].clip(min=0), vectors, num_pieces, own, found)


def _by_size(cluster: NDArray[np.integer]) -> NDArray[np.int64]:
    """Number the clusters by their size, the largest first; of equals the one of the first case."""
    names, first, counts = np.unique(cluster, return_index=True, return_counts=True)
    rank = np.empty(names.max() + 1, np.int64)
    rank[names[np.lexsort((first, -counts))]] = np.arange(len(names))
    return rank[cluster]


def _plane(
    pooled: NDArray[np.float64], whole: _Partition, embedding: Embedding, seed: int
) -> NDArray[np.float64]:
    if embedding == "spectral":
        return whole.vectors[:, 1:3]
    perplexity = min(30.0, (len(pooled) - 1) / 3)
    plane = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(pooled)
    return plane.astype(np.float64)


# --- what is said of a cluster


def _of_groups(
    cluster: NDArray[np.int64],
    mean: NDArray[np.float64],
    pooled: NDArray[np.float64],
    space: list[str],
) -> dict[str, Any]:
    groups = [cluster == group for group in range(cluster.max() + 1)]
    unit = _of_unit_length(mean)
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


def _of_classes(
    cluster: NDArray[np.int64], classes: NDArray[np.int64], num_classes: int
) -> dict[str, Any]:
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


# --- what the draws say


def _of_draws(cluster: NDArray[np.int64], parts: list[list[_Partition]]) -> dict[str, Any]:
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
    shares = xr.DataArray(within, dims=("group", *_SAMPLES))
    sample = (*_SAMPLES, "case")
    return {
        "draw_eigenvalue": (
            (*_SAMPLES, "number"),
            [[one.eigenvalue for one in chain] for chain in parts],
        ),
        "draw_num_clusters": (_SAMPLES, [[one.own_number for one in chain] for chain in parts]),
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


# --- maps as vectors


def _features(
    maps: xr.DataArray, size: int, part: Part
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[list[NDArray[np.float64]]] | None]:
    """Pooled mean maps (case, place), whole mean maps (case, ...), pooled maps of every draw.

    The last is None where there are fewer than two draws.
    """
    num_chains, num_draws = (maps.sizes[dim] for dim in _SAMPLES)
    total = np.zeros([maps.sizes[dim] for dim in maps.dims if dim not in (*_SAMPLES, "channel")])
    pooled: list[list[NDArray[np.float64]]] = []
    for chain in range(num_chains):
        pooled.append([])
        for draw in range(num_draws):
            one = maps.isel(chain=chain, draw=draw).to_numpy().astype(np.float64)
            if not np.isfinite(one).all():
                raise ValueError("maps hold NaN or infinite values; leave those cases out")
            one = one.sum(1) if "channel" in maps.dims else one
            total += one
            pooled[-1].append(_pooled(one, size, part))
    mean = _chosen(total / (num_chains * num_draws), part)
    several = num_chains * num_draws > 1
    return _pooled(mean, size, part), mean, pooled if several else None


def _pooled(maps: NDArray[np.float64], size: int, part: Part) -> NDArray[np.float64]:
    maps = _chosen(maps, part)
    for axis in range(1, maps.ndim):
        length = maps.shape[axis]
        if length > size:
            edges = np.linspace(0, length, size + 1).round().astype(int)
            sums = np.add.reduceat(maps, edges[:-1], axis=axis)
            shape = [-1 if each == axis else 1 for each in range(maps.ndim)]
            maps = sums / np.diff(edges).reshape(shape)
    return _of_unit_length(maps).reshape(len(maps), -1)


def _chosen(maps: NDArray[np.float64], part: Part) -> NDArray[np.float64]:
    if part == "signed":
        return maps
    return maps.clip(min=0) if part == "positive" else np.abs(maps)


def _of_unit_length(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide every map by its length; a map that is 0 stays 0."""
    length = np.sqrt(np.square(maps).sum(tuple(range(1, maps.ndim)), keepdims=True))
    return maps / np.where(length > 0, length, 1.0)


# --- arguments


def _as_maps(maps: xr.DataArray | xr.Dataset) -> xr.DataArray:
    if isinstance(maps, xr.Dataset):
        names = [name for name in ("attribution", "mean") if name in maps]
        if not names:
            raise ValueError(
                "maps is a Dataset without 'attribution' or 'mean'; give what attribute returned"
            )
        maps = maps[names[0]]
    if not isinstance(maps, xr.DataArray):
        raise TypeError(f"maps is {type(maps).__name__}; give a DataArray or Dataset")
    missing = {"case", "row", "col"} - set(maps.dims)
    unknown = set(maps.dims) - {*_SAMPLES, "case", "channel", *SPACE}
    if missing or unknown:
        raise ValueError(
            f"maps has the axes {maps.dims}; it needs case, row and col, and may have chain, draw, "
            "channel and depth"
        )
    maps = maps.expand_dims([dim for dim in _SAMPLES if dim not in maps.dims])
    order = (*_SAMPLES, "case", "channel", *SPACE)
    return maps.transpose(*[dim for dim in order if dim in maps.dims])


def _as_label(label: ArrayLike | None, num_cases: int) -> tuple[NDArray, NDArray[np.int64]]:
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


def _check(
    num_cases: int,
    num_clusters: int | None,
    most_clusters: int,
    neighbours: int,
    size: int,
    part: str,
    embedding: str,
) -> None:
    counts = {"most_clusters": most_clusters, "neighbours": neighbours, "size": size}
    if num_clusters is not None:
        counts["num_clusters"] = num_clusters
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number from 1")
    least = max(neighbours, most_clusters, num_clusters or 1) + 2
    if num_cases < least:
        raise ValueError(
            f"{num_cases} cases are too few; neighbours={neighbours}, "
            f"most_clusters={most_clusters} and num_clusters={num_clusters} need {least}"
        )
    for name, text, choices in (("part", part, Part), ("embedding", embedding, Embedding)):
        if text not in get_args(choices):
            raise ValueError(f"{name} is {text!r}; it is one of {get_args(choices)}")
