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

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from ppl_med.analysis.spray.arguments import Embedding, Part, as_label, as_maps, check
from ppl_med.analysis.spray.cluster_summary import of_classes, of_groups
from ppl_med.analysis.spray.draw_agreement import of_draws
from ppl_med.analysis.spray.graph import Settings, partition, plane
from ppl_med.analysis.spray.pooled_maps import features, of_unit_length
from ppl_med.analysis.tree import case_coords
from ppl_med.analysis.tree.attributions import SPACE
from ppl_med.axes import SAMPLES

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
        num_clusters: Number of clusters; None chooses it by the eigengap.
        most_clusters: Largest number that the eigengap may choose.
        neighbours: Number k of neighbours. A group of fewer than k + 1 cases cannot separate from
            the rest, and with a small k one group may fall into pieces by chance.
        size: Largest number of places along each axis after pooling.
        part: "signed" keeps the maps as they are; "positive" what speaks for the output;
            "absolute" what mattered at all.
        embedding: Plane of ``coordinate``: t-SNE of the pooled maps, or the eigenvectors of the
            second and third eigenvalue, where pieces of the graph fall onto one point each.
        seed: Seed of k-means and t-SNE.

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
    maps = as_maps(maps)
    check(maps.sizes["case"], num_clusters, most_clusters, neighbours, size, part, embedding)
    names, classes = as_label(label, maps.sizes["case"])
    settings = Settings(num_clusters, most_clusters, neighbours, seed)
    pooled, mean, draw_pooled = features(maps, size, part)
    whole = partition(pooled, settings)
    number = len(np.unique(whole.cluster))
    variables: dict[str, Any] = {
        "eigenvalue": ("number", whole.eigenvalue),
        "gap": ("number", np.append(np.diff(whole.eigenvalue), np.nan)),
        "num_clusters": number,
        "num_pieces": whole.num_pieces,
        "cluster": ("case", whole.cluster),
        "coordinate": (("case", "axis"), plane(pooled, whole, embedding, seed)),
        **of_groups(whole.cluster, mean, pooled, [d for d in SPACE if d in maps.dims]),
    }
    if draw_pooled is not None:
        fixed = settings._replace(num_clusters=number)
        parts = [[partition(one, fixed) for one in chain] for chain in draw_pooled]
        variables |= of_draws(whole.cluster, parts)
    if label is not None:
        variables |= of_classes(whole.cluster, classes, len(names))
    ids = maps["case"].values
    coords: dict[str, Any] = {"case": ids, "number": np.arange(1, len(whole.eigenvalue) + 1)}
    coords |= case_coords(maps, *SPACE)
    coords |= {name: maps[name].values for name in SAMPLES if name in maps.coords}
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
    """Return what is clustered, before pooling: one map of unit length per case.

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
    maps = as_maps(maps)
    space = [dim for dim in SPACE if dim in maps.dims]
    mean = features(maps, 1, part)[1]
    coords = case_coords(maps, *space)
    attrs = {"units": "1", "long_name": "map of unit length"}
    return xr.DataArray(of_unit_length(mean), coords, ["case", *space], attrs=attrs)
