"""Uncertainty maps, their averages over regions, and sizes with intervals."""

import numpy as np
import pytest
import xarray as xr
from posterior_trees import random_probs
from scipy import ndimage, stats
from segmentation_trees import Z, certain_probs, graded, random_masks, sampled, tree_of

from ppl_med.analysis import segmentation, uncertainty
from ppl_med.analysis.segmentation.regions import boundary_band

MAPS = ("predictive_entropy", "expected_entropy", "mutual_information", "variance")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(6)


@pytest.mark.parametrize("space", [{"row": 5, "col": 4}, {"depth": 2, "row": 3, "col": 4}])
def test_maps_are_the_entropies_of_every_pixel(space: dict[str, int]) -> None:
    probs = random_probs(extra=space, cases=6, draws=5)
    result = segmentation.maps(probs)
    oracle = uncertainty.entropy(probs)
    variance = uncertainty.variance(probs)["epistemic"].sum("class")
    for name in MAPS:
        expected = variance if name == "variance" else oracle[name]
        assert result[name].dims == ("case", *space)
        np.testing.assert_allclose(result[name], expected, atol=1e-6)
        per_case = expected.mean(list(space))
        np.testing.assert_allclose(result[f"{name}_per_case"], per_case, atol=1e-12)
        assert float(result[f"{name}_mean"]) == pytest.approx(float(per_case.mean()), abs=1e-12)
        assert float(result[f"{name}_se"]) == pytest.approx(stats.sem(per_case), abs=1e-12)


def test_a_case_beside_a_smaller_one_has_the_mean_that_it_has_alone() -> None:
    """To the last digits of float64, though the maps are float32."""
    probs = random_probs(extra={"row": 5, "col": 4}, cases=3, draws=5)
    probs[{"case": 1, "row": slice(3, None)}] = np.nan
    result = segmentation.maps(probs)
    for name in MAPS:
        for case, rows in enumerate([5, 3, 5]):
            alone = segmentation.maps(probs.isel(case=[case], row=slice(rows)))
            figure = f"{name}_per_case"
            np.testing.assert_allclose(result[figure][case], alone[figure][0], rtol=1e-12)


def test_equal_draws_have_no_model_uncertainty() -> None:
    probs = random_probs(extra={"row": 3, "col": 3}, draws=1, chains=1).isel(draw=[0] * 6)
    result = segmentation.maps(probs)
    assert float(result["variance"].max()) == 0
    assert float(result["mutual_information"].max()) < 1e-6
    assert "by construction" in segmentation.maps(probs.isel(draw=[0])).attrs["note"]


def test_blocks_of_cases_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppl_med.analysis.tree import masks as draws

    probs = random_probs(extra={"row": 5, "col": 4}, cases=7, draws=3)
    whole = segmentation.maps(probs), segmentation.diversity(probs)
    monkeypatch.setattr(draws, "_BLOCK_BYTES", 1)
    single = segmentation.maps(probs), segmentation.diversity(probs)
    monkeypatch.setattr(draws, "_BLOCK_BYTES", 2 * 20 * (6 + 24 * 3) + 1)
    assert len(list(draws.open_draws(probs).blocks())) == 4
    pairs = segmentation.maps(probs), segmentation.diversity(probs)
    for other in (single, pairs):
        for ours, theirs in zip(whole, other, strict=True):
            xr.testing.assert_identical(ours, theirs)


def test_memory_is_that_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty megabytes of probabilities; the analyses hold a few cases at a time."""
    import tracemalloc

    from ppl_med.analysis.tree import masks as draws

    monkeypatch.setattr(draws, "_BLOCK_BYTES", 2**20)
    probs = np.full((1, 8, 60, 2, 64, 64), 0.5)
    tree = xr.DataArray(probs, dims=("chain", "draw", "case", "class", "row", "col"))
    truth = xr.DataArray(np.ones((60, 2, 64, 64), int), dims=("case", "grader", "row", "col"))
    for analysis in (segmentation.ged, segmentation.ncc, segmentation.pixel_reliability):
        tracemalloc.start()
        analysis(tree, truth)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6e6, analysis.__name__


def test_lazy_arrays_give_the_same_figures(rng: np.random.Generator) -> None:
    masks, graders = random_masks(rng, (5, 4, 6, 6), 3), random_masks(rng, (5, 3, 6, 6), 3)
    tree = tree_of(sampled(masks), graded(graders), 3)
    lazy = tree.chunk({"case": 2, "draw": 1})
    for analysis in (segmentation.ged, segmentation.ncc, segmentation.soft_dice):
        xr.testing.assert_allclose(analysis(lazy), analysis(tree))


@pytest.mark.parametrize("band", [1, 2, 3])
def test_boundary_band_is_a_distance_to_the_border(band: int, rng: np.random.Generator) -> None:
    """Steps along the axes: the city-block distance to the other side is at most `band`."""
    for shape in ((15, 17), (7, 8, 9)):
        mask = ndimage.gaussian_filter(rng.normal(size=shape), 2) > 0
        if not mask.any() or mask.all():
            continue
        outside = ndimage.distance_transform_cdt(~mask, "taxicab")
        inside = ndimage.distance_transform_cdt(mask, "taxicab")
        expected = ((outside > 0) & (outside <= band)) | ((inside > 0) & (inside <= band))
        np.testing.assert_array_equal(boundary_band(mask, band), expected)


def test_regions_average_the_map_they_are_asked_for() -> None:
    probs = random_probs(extra={"row": 9, "col": 8}, cases=5, draws=4)
    mean = probs.mean(("chain", "draw"))
    prediction = mean.argmax("class").transpose("case", "row", "col").values
    for quantity in MAPS:
        image = segmentation.maps(probs)[quantity].values
        result = segmentation.region_uncertainty(probs, quantity=quantity, band=1)
        for case in range(5):
            foreground = prediction[case] > 0
            band = boundary_band(foreground, 1)
            for name, mask in (
                ("predicted", foreground), ("background", ~foreground), ("boundary", band)
            ):  # fmt: skip
                expected = image[case][mask].mean()
                assert float(result[name][case]) == pytest.approx(expected, abs=1e-6), name
        unit = "probability^2" if quantity == "variance" else "nats"
        assert result["boundary"].attrs["units"] == result["part_mean"].attrs["units"] == unit


def test_parts_are_the_connected_regions_of_each_class() -> None:
    picture = [
        [1, 1, 0, 0, 0, 2],
        [0, 0, 1, 0, 0, 2],
        [0, 0, 0, 0, 1, 0],
    ]
    masks = np.array([picture, np.zeros((3, 6), int)])[:, None]
    probs = certain_probs(sampled(masks), 3, peak=0.8)
    probs = probs.where(probs["case"] == "patient-0", certain_probs(sampled(masks), 3, peak=0.6))
    result = segmentation.region_uncertainty(probs)
    order = list(zip(result["part_class"].values, result["part_size"].values, strict=True))
    assert order == [("class 1", 3), ("class 1", 1), ("class 2", 2)]
    np.testing.assert_allclose(result["part_probability"], 0.8)
    np.testing.assert_allclose(result["part_mean"], stats.entropy([0.8, 0.1, 0.1]))
    assert set(result["part_case"].values) == {"patient-0"}
    assert np.isnan(result["predicted"][1])
    assert np.isnan(result["boundary"][1])
    assert result["predicted_mean"].attrs["num_undefined"] == 1
    straight = segmentation.region_uncertainty(probs, diagonal=False)
    assert straight["part_size"].values.tolist() == [2, 1, 1, 2]
    only = segmentation.region_uncertainty(probs, classes=["class 2"])
    assert only["part_size"].values.tolist() == [2]
    empty = segmentation.region_uncertainty(probs.isel(case=[1]))
    assert empty.sizes["part"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantity": "entropy"}, "quantity must be"),
        ({"band": 0}, "band must be a whole number"),
        ({"classes": []}, "non-empty list"),
    ],
)
def test_malformed_regions_are_refused(change: dict, message: str) -> None:
    probs = random_probs(extra={"row": 3, "col": 3}, cases=2, draws=2)
    with pytest.raises(ValueError, match=message):
        segmentation.region_uncertainty(probs, **change)


def test_sizes_are_counts_of_coherent_masks(rng: np.random.Generator) -> None:
    masks, graders = random_masks(rng, (6, 40, 5, 4), 3), random_masks(rng, (6, 4, 5, 4), 3)
    graders[1, 2, 0, 0] = -1
    graders[2] = -1
    tree = tree_of(sampled(masks, chains=2), graded(graders), 3)
    result = segmentation.sizes(tree, level=0.8)
    for case, number in np.ndindex(6, 2):
        areas = (masks[case] == number + 1).sum((1, 2))
        found = result.isel({"case": case, "class": number})
        np.testing.assert_array_equal(found["size"].values.ravel(), areas)
        assert float(found["mean"]) == pytest.approx(areas.mean())
        low, middle, high = np.quantile(areas, [0.1, 0.5, 0.9], method="weibull")
        assert (found["lower"], found["median"], found["upper"]) == (low, middle, high)
        complete = [mask for mask in graders[case] if (mask >= 0).all()]
        truth = np.array([(mask == number + 1).sum() for mask in complete])
        if len(complete):
            inside = ((truth >= low) & (truth <= high)).mean()
            assert float(found["covered"]) == pytest.approx(inside)
    assert np.isnan(result["covered"][2]).all()
    assert result["grader_size"].isel({"class": 0}).isnull().sum() == 5
    assert result["size"].attrs["units"] == "pixels"
    assert result["class"].values.tolist() == ["class 1", "class 2"]


def test_sizes_carry_units(rng: np.random.Generator) -> None:
    masks = random_masks(rng, (3, 5, 2, 4, 4), 2)
    counted = segmentation.sizes(sampled(masks), classes=[1])
    volume = segmentation.sizes(sampled(masks), classes=[1], spacing=(2.5, 0.5, 0.4))
    np.testing.assert_allclose(volume["size"], 0.5 * counted["size"])
    assert volume["upper"].attrs["units"] == "mm^3"
    own = xr.DataArray(
        [[1, 1, 1], [2, 1, 1], [1, 3, 1]], counted["size"]["case"].coords, ("case", "axis")
    )
    result = segmentation.sizes(sampled(masks), classes=[1], spacing=own, unit="cm")
    np.testing.assert_allclose(result["mean"][:, 0], counted["mean"][:, 0] * [1, 2, 3])
    assert result["mean"].attrs["units"] == "cm^3"
    area = segmentation.sizes(sampled(masks[:, :, 0]), classes=[1], spacing=(1, 2))
    assert area["mean"].attrs["units"] == "mm^2"
    assert "covered" not in area


@pytest.mark.parametrize(("number", "covers"), [(39, 0.9), (19, 0.9), (9, 0.8)])
def test_intervals_cover_graders_of_the_same_law(
    number: int, covers: float, rng: np.random.Generator
) -> None:
    """Widths of a bar: draws and graders exchangeable, so coverage follows from the ranks.

    Below the smallest of n draws lies 1 of n + 1 such widths on average: 9 draws reach 80 %.
    """
    cases = 4000
    width = 1 + 2 * np.arange(number + 1)
    ranks = np.array([rng.permutation(width) for _ in range(cases)])
    bars = (np.arange(90) < ranks[..., None]).astype(int)[:, :, None]
    result = segmentation.sizes(
        sampled(bars[:, :number]), graded(bars[:, number:]), classes=[1], level=0.9
    )
    error = float(result["covered_se"][0])
    assert abs(float(result["covered_mean"][0]) - covers) < Z * error
    assert result.attrs["level"] == 0.9
    assert result.attrs["attained_level"] == pytest.approx(covers)


def test_summed_probabilities_hide_the_spread() -> None:
    """A mask that is all or nothing has an interval as wide as the image."""
    masks = np.zeros((1, 40, 10, 10), int)
    masks[:, ::2] = 1
    result = segmentation.sizes(sampled(masks), classes=[1])
    assert (float(result["lower"][0, 0]), float(result["upper"][0, 0])) == (0, 100)
    assert float(result["mean"][0, 0]) == 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": 1.0}, "level must be"),
        ({"spacing": (1.0,)}, "image axes"),
        ({"spacing": (1.0, -1.0)}, "positive"),
        ({"spacing": xr.DataArray([1.0, 1.0], dims="axis")}, "expected .case, axis."),
    ],
)
def test_malformed_sizes_are_refused(change: dict, message: str, rng: np.random.Generator) -> None:
    masks = sampled(random_masks(rng, (2, 3, 4, 4), 2))
    with pytest.raises(ValueError, match=message):
        segmentation.sizes(masks, classes=[1], **change)
