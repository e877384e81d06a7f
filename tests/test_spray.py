"""SpRAy on planted clusters, graphs whose spectrum is known, and figures worked out by hand."""

from math import comb, cos
from typing import Any

import numpy as np
import pytest
import xarray as xr
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import kneighbors_graph

from ppl_med.analysis import spray

SIDE = 8


def as_maps(values: np.ndarray, *front: str) -> xr.DataArray:
    return xr.DataArray(values, dims=(*front, "case", "row", "col"))


def planted(groups: np.ndarray, noise: float = 0.05, seed: int = 0) -> np.ndarray:
    """Maps (case, row, col) with the heat of group g on row g, and noise."""
    rng = np.random.default_rng(seed)
    maps = noise * rng.normal(size=(len(groups), SIDE, SIDE))
    maps[np.arange(len(groups)), groups] += 1.0
    return maps * rng.uniform(0.1, 10, size=(len(groups), 1, 1))


def fast(maps: Any, label: Any = None, **options: Any) -> xr.Dataset:
    return spray.clusters(maps, label, embedding="spectral", **options)


@pytest.mark.parametrize("number", [2, 3, 5])
def test_planted_clusters_are_zero_eigenvalues(number: int) -> None:
    truth = np.random.default_rng(1).permutation(np.repeat(np.arange(number), 20))
    result = fast(as_maps(planted(truth)), neighbours=6)
    np.testing.assert_allclose(result.eigenvalue[:number], 0, atol=1e-10)
    assert result.eigenvalue[number] > 0.05
    assert int(result.num_clusters) == int(result.num_pieces) == number
    assert np.nanargmax(result.gap.values) == number - 1
    assert adjusted_rand_score(truth, result.cluster) == 1
    assert result.group.size == number and (result["size"] == 20).all()


def test_spectrum_of_a_ring() -> None:
    """On a circle two neighbours make the cycle graph: eigenvalues 1 - cos(2 pi j / n)."""
    angle = 2 * np.pi * np.arange(40) / 40 + 0.01
    ring = as_maps(np.stack([np.cos(angle), np.sin(angle)], 1)[:, None])
    result = fast(ring, neighbours=2, most_clusters=7)
    order = np.array([0, 1, 1, 2, 2, 3, 3, 4])
    np.testing.assert_allclose(result.eigenvalue, 1 - np.cos(2 * np.pi * order / 40), atol=1e-12)
    assert int(result.num_pieces) == 1


def test_clusters_are_those_of_scikit_learn() -> None:
    """Where the graph hangs together, which its solver needs."""
    truth = np.repeat([0, 1, 2], [25, 20, 15])
    maps = planted(truth, noise=1.0)
    result = fast(as_maps(maps), num_clusters=3)
    flat = maps.reshape(len(maps), -1)
    graph = kneighbors_graph(flat / np.linalg.norm(flat, axis=1, keepdims=True), 10)
    oracle = SpectralClustering(3, affinity="precomputed", random_state=0)
    assert int(result.num_pieces) == 1
    assert adjusted_rand_score(oracle.fit_predict(graph.maximum(graph.T)), result.cluster) == 1
    assert (np.diff(result["size"]) <= 0).all() and int(result["size"].sum()) == 60


def test_a_known_number_of_clusters_overrides_the_gap() -> None:
    maps = as_maps(planted(np.repeat([0, 1, 2], 20)))
    result = fast(maps, num_clusters=4)
    assert result.group.size == 4 and result.attrs["num_clusters_by"] == "argument"
    one = fast(as_maps(planted(np.zeros(30, int))), num_clusters=1)
    assert (one.cluster == 0).all() and np.isnan(one.fisher_score).all()


def test_order_of_the_cases_does_not_matter() -> None:
    truth = np.repeat([0, 1, 2], [20, 17, 14])
    maps = as_maps(planted(truth)).assign_coords(case=[f"c{i}" for i in range(51)])
    order = np.random.default_rng(0).permutation(51)
    first, second = fast(maps), fast(maps.isel(case=order))
    np.testing.assert_array_equal(first.cluster[order], second.cluster)
    np.testing.assert_array_equal(first.case[order], second.case)
    np.testing.assert_array_equal(first.cluster, truth)


def test_pooling_hides_what_is_finer_than_its_grid() -> None:
    truth = np.repeat([0, 1], 20)
    board = np.indices((SIDE, SIDE)).sum(0) % 2 * 2.0 - 1
    noise = 1e-3 * np.random.default_rng(0).normal(size=(40, SIDE, SIDE))
    maps = as_maps(1 + noise + np.where(truth == 0, 0.5, -0.5)[:, None, None] * board)
    assert adjusted_rand_score(truth, fast(maps).cluster) == 1
    assert int(fast(maps).num_pieces) == 2
    assert int(fast(maps, size=4).num_pieces) == 1
    assert fast(maps, size=4).mean_map.shape[1:] == (SIDE, SIDE)


def test_uneven_pooling_takes_means() -> None:
    """Seven pixels on two places, three of them twice: means are equal, so lengths say the rest."""
    maps = np.ones((20, 1, 7))
    maps[:, :, 4:] *= np.where(np.arange(20) < 10, 1.0, -1.0)[:, None, None]
    result = fast(as_maps(maps), size=2, neighbours=3, num_clusters=2, most_clusters=2)
    # unit vectors (1, 1)/sqrt2 and (1, -1)/sqrt2: their means have length 1, their distance sqrt2
    np.testing.assert_allclose(result.consistency, 1)
    np.testing.assert_array_equal(result.cluster, np.repeat([0, 1], 10))


def test_part_of_the_map_that_counts() -> None:
    truth = np.repeat([0, 1], 20)
    maps = planted(np.zeros(40, int), noise=0.0)
    maps += 1e-3 * np.random.default_rng(0).uniform(size=maps.shape)
    maps[truth == 1, 5] -= maps[truth == 1].max((1, 2))[:, None]
    assert int(fast(as_maps(maps), part="signed").num_pieces) == 2
    assert int(fast(as_maps(maps), part="absolute").num_pieces) == 2
    assert int(fast(as_maps(maps), part="positive").num_pieces) == 1


def test_channels_are_summed_and_volumes_pooled() -> None:
    truth = np.repeat([0, 1], 15)
    maps = as_maps(planted(truth))
    split = xr.concat([maps * 3, maps * -2], "channel")
    np.testing.assert_allclose(fast(split).mean_map, fast(maps).mean_map)
    volume = maps.expand_dims(depth=7) * xr.DataArray(np.arange(7.0), dims="depth")
    result = fast(volume, size=6)
    assert result.mean_map.dims == ("group", "depth", "row", "col")
    assert adjusted_rand_score(truth, result.cluster) == 1


# --- what is said of a cluster


def test_consistency_and_fisher_score_by_hand() -> None:
    """Half of the first cluster at an angle a to the other half, the second at right angles."""
    angle = 0.4
    rows = np.zeros((25, 1, 3))
    rows[:8, 0, 0] = 1
    rows[8:16, 0, :2] = cos(angle), np.sin(angle)
    rows[16:, 0, 2] = 1
    result = fast(as_maps(rows * 7), neighbours=8, num_clusters=2, most_clusters=3)
    np.testing.assert_array_equal(result.cluster, np.repeat([0, 1], [16, 9]))
    squared = cos(angle / 2) ** 2
    np.testing.assert_allclose(result.consistency, [squared**0.5, 1])
    np.testing.assert_allclose(result.fisher_score, (squared + 1) / (1 - squared))
    mean = np.array([(1 + cos(angle)) / 2, np.sin(angle) / 2, 0])
    np.testing.assert_allclose(result.mean_map[0, 0], mean, atol=1e-12)
    spread = np.array([(1 - cos(angle)) / 2, np.sin(angle) / 2]) ** 2
    np.testing.assert_allclose(result.fisher_map[0, 0, :2], mean[:2] ** 2 / spread)
    assert np.isinf(result.fisher_map[0, 0, 2])


def test_enrichment_is_the_chance_of_so_many_of_a_class() -> None:
    truth = np.repeat([0, 1], [24, 12])
    label = np.array(["ill"] * 6 + ["well"] * 18 + ["ill"] * 10 + ["well"] * 2)
    result = fast(as_maps(planted(truth)), label)
    np.testing.assert_array_equal(result.class_count, [[6, 18], [10, 2]])
    np.testing.assert_allclose(result.purity, [18 / 24, 10 / 12])
    ways = [comb(16, ill) * comb(20, 12 - ill) for ill in range(10, 13)]
    expected = 4 * sum(ways) / comb(36, 12)  # 2 classes, 2 clusters
    np.testing.assert_allclose(result.enrichment_p, expected)  # 18 of 20 well: the same event
    one_class = fast(as_maps(planted(truth)), np.ones(36))
    np.testing.assert_array_equal(one_class.enrichment_p, 1)


def test_a_planted_tag_is_found_among_wandering_objects() -> None:
    """A fifth of class 1 is decided by the corner, all else by an object that lies anywhere."""
    rng = np.random.default_rng(3)
    label = np.repeat([0, 1], 60)
    tagged = np.isin(np.arange(120), 60 + np.arange(20))
    maps = 0.02 * rng.normal(size=(120, 24, 24))
    for case in range(120):
        row, col = (0, 0) if tagged[case] else rng.integers(6, 16, 2)
        maps[case, row : row + 6, col : col + 6] += 1
    result = fast(as_maps(maps), label, size=12)
    found = result.cluster[tagged].values
    assert (found == found[0]).all() and (result.cluster[~tagged] != found[0]).all()
    own = result.sel(group=found[0])
    assert float(own.purity) == 1 and float(own.enrichment_p) < 1e-3
    for name in ("fisher_score", "consistency"):
        assert result[name].values.argmax() == found[0]
    assert float(own.consistency) > 0.95
    assert float(own.mean_map[:6, :6].sum() / own.mean_map.sum()) > 0.9


# --- draws


def test_co_clustering_is_the_share_of_draws() -> None:
    """Case 0 lies in the other group in one of four draws."""
    truth = np.repeat([0, 1], [15, 12])
    other = np.where(np.arange(27) == 0, 1, truth)
    values = np.stack([planted(other if s == 3 else truth, seed=s) for s in range(4)])
    maps = as_maps(values.reshape(2, 2, 27, SIDE, SIDE), "chain", "draw")
    result = fast(maps)
    np.testing.assert_array_equal(result.draw_cluster[0, 0], truth)
    np.testing.assert_array_equal(result.draw_cluster[1, 1], other)
    np.testing.assert_array_equal(result.draw_num_clusters, 2)
    np.testing.assert_allclose(result.draw_eigenvalue[..., :2], 0, atol=1e-10)
    expected = np.equal.outer(truth, truth).astype(float)
    expected[0, 1:] = expected[1:, 0] = np.where(truth[1:] == 0, 0.75, 0.25)
    np.testing.assert_allclose(result.co_clustering, expected)
    np.testing.assert_allclose(result.membership, np.where(np.arange(27) == 0, 0.75, 1))
    # of the 105 pairs of the first cluster, the 14 with case 0 count three quarters
    np.testing.assert_allclose(result.stability, [1 - 14 / 105 / 4, 1])
    np.testing.assert_allclose(result.stability_mcse, [14 / 105 / 4, 0])  # one of two chains
    np.testing.assert_allclose(result.co_clustering_outside, 0.25 / 15)


def test_noise_has_no_stable_clusters() -> None:
    """Independent noise in every draw: a pair shares a cluster as often as any other pair."""
    noise = np.random.default_rng(0).normal(size=(30, 60, SIDE, SIDE))
    result = fast(as_maps(noise, "draw"), num_clusters=3)
    pairs = result.co_clustering.values[np.triu_indices(60, 1)]
    inside = float(result.stability @ (result["size"] * (result["size"] - 1)))
    inside /= float((result["size"] * (result["size"] - 1)).sum())
    assert abs(inside - pairs.mean()) < 0.05
    assert float(result.stability.max()) < 0.7


def test_input_of_other_shapes_gives_the_same() -> None:
    truth = np.repeat([0, 1], 15)
    values = np.stack([planted(truth, seed=s) for s in range(3)])
    draws = as_maps(values, "draw")
    plain = fast(draws)
    xr.testing.assert_identical(fast(xr.Dataset({"attribution": draws, "mean": -draws})), plain)
    xr.testing.assert_identical(fast(draws.chunk(case=7)), plain)
    np.testing.assert_array_equal(plain.cluster, fast(draws.mean("draw")).cluster)
    single = fast(draws.isel(draw=[0]))
    assert "co_clustering" not in single and "label" not in single
    assert all({"units", "long_name"} <= set(v.attrs) for v in plain.data_vars.values())


def test_t_sne_keeps_groups_together() -> None:
    truth = np.repeat([0, 1], 20)
    plane = spray.clusters(as_maps(planted(truth))).coordinate
    assert plane.shape == (40, 2)
    centres = plane.groupby(xr.DataArray(truth, dims="case", name="truth")).mean()
    distance = np.sqrt(((plane - centres) ** 2).sum("axis")).transpose("case", "truth")
    np.testing.assert_array_equal(distance.argmin("truth"), truth)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": as_maps(np.zeros((5, 4, 4)))}, "5 cases are too few"),
        (
            {"maps": xr.DataArray(np.zeros((20, 4)), dims=("case", "row"))},
            "needs case, row and col",
        ),
        ({"maps": as_maps(np.zeros((2, 20, 4, 4)), "time")}, "needs case, row and col"),
        ({"maps": as_maps(np.full((20, 4, 4), np.nan))}, "NaN or infinite"),
        ({"maps": xr.Dataset({"sd": as_maps(np.zeros((20, 4, 4)))})}, "without 'attribution'"),
        ({"label": [1, 2]}, "label has shape"),
        ({"label": [np.nan] * 60}, "label holds NaN"),
        ({"num_clusters": 0}, "num_clusters must be a whole number"),
        ({"neighbours": True}, "neighbours must be a whole number"),
        ({"part": "negative"}, "part must be"),
        ({"embedding": "umap"}, "embedding must be"),
        ({"most_clusters": 2}, "3 pieces, more than most_clusters=2"),
    ],
)
@pytest.mark.usefixtures("types_unchecked")
def test_bad_input_says_what_is_wrong(change: dict, message: str) -> None:
    arguments: dict[str, Any] = {"maps": as_maps(planted(np.repeat([0, 1, 2], 20)))} | change
    with pytest.raises(ValueError, match=message):
        spray.clusters(**arguments)


@pytest.mark.usefixtures("types_unchecked")
def test_maps_must_be_named_arrays() -> None:
    with pytest.raises(TypeError, match="maps is ndarray"):
        spray.clusters(np.zeros((20, 4, 4)))  # type: ignore[arg-type]
