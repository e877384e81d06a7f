"""What the segmentation analyses refuse, and what they say; and how masks are read."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from posterior_trees import classification_tree, random_probs
from segmentation_trees import certain_probs, graded, random_masks, sampled, tree_of

from ppl_med.analysis import segmentation
from ppl_med.analysis.tree import graders as graders_side
from ppl_med.analysis.tree import masks as samples_side

PAIRED: list[Callable[..., xr.Dataset]] = [
    segmentation.ged,
    segmentation.hungarian,
    segmentation.dice_max,
    segmentation.d_max,
    segmentation.collective_insight,
    segmentation.soft_dice,
    segmentation.ncc,
    segmentation.pixel_reliability,
    segmentation.sizes,
]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(8)


@pytest.fixture
def tree(rng: np.random.Generator) -> xr.DataTree:
    masks, graders = random_masks(rng, (4, 6, 5, 5), 3), random_masks(rng, (4, 3, 5, 5), 3)
    return tree_of(sampled(masks, chains=2), graded(graders), 3)


def probs_of(tree: xr.DataTree) -> xr.DataArray:
    found = tree["posterior/probs"]
    assert isinstance(found, xr.DataArray)
    return found


def truth_of(tree: xr.DataTree) -> xr.DataArray:
    found = tree["observed_data/mask"]
    assert isinstance(found, xr.DataArray)
    return found


@pytest.mark.parametrize("analysis", PAIRED, ids=lambda analysis: analysis.__name__)
def test_tree_and_arrays_agree(analysis: Callable[..., xr.Dataset], tree: xr.DataTree) -> None:
    expected = analysis(tree)
    probs, truth = probs_of(tree), truth_of(tree)
    xr.testing.assert_identical(analysis(probs, truth), expected)
    xr.testing.assert_identical(analysis(tree["posterior"].to_dataset(), truth), expected)
    shuffled = probs.transpose("row", "class", "case", "draw", "col", "chain")
    xr.testing.assert_identical(analysis(shuffled, truth), expected)
    xr.testing.assert_identical(analysis(tree, truth.transpose("row", "case", ...)), expected)
    single = analysis(probs.astype(np.float32), truth.astype(np.int8))
    xr.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("analysis", PAIRED, ids=lambda analysis: analysis.__name__)
def test_one_annotation_is_one_grader(
    analysis: Callable[..., xr.Dataset], tree: xr.DataTree
) -> None:
    probs, truth = probs_of(tree), truth_of(tree)
    alone = analysis(probs, truth.isel(grader=0, drop=True))
    xr.testing.assert_identical(alone, analysis(probs, truth.isel(grader=[0])))


@pytest.mark.parametrize("analysis", PAIRED, ids=lambda analysis: analysis.__name__)
def test_results_name_cases_and_carry_units(
    analysis: Callable[..., xr.Dataset], tree: xr.DataTree
) -> None:
    result = analysis(tree)
    for name, array in result.data_vars.items():
        assert "units" in array.attrs, name
        if "case" in array.dims:
            assert array["case"].values[0] == "patient-0"
    assert result.attrs["num_samples"] == 6
    assert result.to_netcdf() is not None  # attributes that netCDF can hold


@pytest.mark.parametrize("analysis", PAIRED, ids=lambda analysis: analysis.__name__)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, t: (p, t.isel(case=slice(3))), "same cases"),
        (lambda p, t: (p, t.isel(case=[1, 0, 2, 3])), "same cases in the same order"),
        (lambda p, t: (p, t.isel(row=slice(4))), "images of size"),
        (lambda p, t: (p, t.rename(row="depth")), "expected .'case', 'grader', 'row', 'col'"),
        (lambda p, t: (p, t.where(t < 2, 3)), "runs from 0 to 3"),
        (lambda p, t: (p, t - 2), "runs from -2"),
        (lambda p, t: (p, t.isel(grader=[])), "is empty"),
        (lambda p, t: (p.isel(chain=0), t), "lack the dimension.*chain"),
        (lambda p, t: (p.isel(draw=[]), t), "empty along draw"),
        (lambda p, t: (p.where(p["case"] != "patient-2"), t), "NaN or infinite"),
        (lambda p, t: (np.log(p), t), "negative"),
        (lambda p, t: (2 * p, t), "sum to one"),
        (lambda p, t: (p.isel(row=0, col=0), t), "none of an image"),
    ],
)
def test_malformed_arrays_are_refused(
    analysis: Callable[..., xr.Dataset], change: Any, message: str, tree: xr.DataTree
) -> None:
    probs, truth = change(probs_of(tree), truth_of(tree))
    with pytest.raises(ValueError, match=message):
        analysis(probs, truth)


def test_annotations_must_be_there(tree: xr.DataTree) -> None:
    probs, truth = probs_of(tree), truth_of(tree)
    with pytest.raises(TypeError, match="annotations must be given with a DataArray"):
        segmentation.ged(probs)
    with pytest.raises(ValueError, match="no observed_data/mask"):
        segmentation.ged(tree.filter(lambda node: node.name != "observed_data"))
    with pytest.raises(TypeError, match="must hold integers"):
        segmentation.ged(probs, truth.astype(float))
    with pytest.raises(ValueError, match="no posterior group"):
        segmentation.ged(xr.DataTree.from_dict({"/prior": xr.Dataset({"probs": probs})}))
    with pytest.raises(ValueError, match="none of an image"):
        segmentation.ged(classification_tree())
    with pytest.raises(ValueError, match="holds no probs"):
        segmentation.maps(xr.Dataset({"loc": probs}))


def test_samples_are_named_and_found(tree: xr.DataTree) -> None:
    probs, truth = probs_of(tree), truth_of(tree)
    with pytest.raises(ValueError, match="samples must be 'mode' or 'draw'"):
        segmentation.ged(tree, samples="mean")
    with pytest.raises(ValueError, match="samples must be 'probs', 'mode' or 'draw'"):
        segmentation.soft_dice(tree, samples="mean")
    with pytest.raises(ValueError, match="needs drawn masks"):
        segmentation.ged(probs, truth, samples="draw")
    undrawn = tree.filter(lambda node: node.name != "posterior_predictive")
    with pytest.raises(ValueError, match="no posterior_predictive group"):
        segmentation.ged(undrawn, samples="draw")
    with pytest.raises(TypeError, match="Masks must hold integers"):
        segmentation.ged(probs.isel({"class": 1}), truth)
    with pytest.raises(ValueError, match="needs class probabilities"):
        segmentation.maps(sampled(np.zeros((2, 3, 4, 4), int)))
    masks = sampled(np.full((4, 3, 5, 5), -1))
    with pytest.raises(ValueError, match="the sampled mask runs from -1"):
        segmentation.ged(masks, truth, classes=[1])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "non-empty list"),
        ([1, 1], "names a class twice"),
        ([1, "class 1"], "names a class twice"),
        ([3], "whole number from 0 to 2"),
        ([-1], "whole number from 0 to 2"),
        (["liver"], "none of"),
    ],
)
def test_malformed_classes_are_refused(
    classes: list[int | str], message: str, tree: xr.DataTree
) -> None:
    for analysis in PAIRED:
        if analysis is not segmentation.ncc:
            with pytest.raises(ValueError, match=message):
                analysis(tree, classes=classes)


def test_masks_alone_need_a_class_list(tree: xr.DataTree) -> None:
    masks = probs_of(tree).argmax("class")
    with pytest.raises(ValueError, match="classes must be given"):
        segmentation.ged(masks, truth_of(tree))
    named = segmentation.ged(masks, truth_of(tree), classes=[1, 2])
    xr.testing.assert_equal(named, segmentation.ged(tree))
    binary = segmentation.ged(masks > 0, (truth_of(tree) > 0).astype(int))
    xr.testing.assert_equal(
        binary, segmentation.ged((masks > 0).astype(int), truth_of(tree).clip(max=1), classes=[1])
    )


@pytest.mark.parametrize("empty", [-0.1, 1.5, np.inf, True])
def test_malformed_empty_is_refused(empty: float, tree: xr.DataTree) -> None:
    for analysis in PAIRED[:6]:
        with pytest.raises(ValueError, match="empty must be a number"):
            analysis(tree, empty=empty)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.5], "expected"),
        ([0.5, 0.2, 0.2], "sum to one"),
        ([1.5, -0.5, 0.0], "negative"),
        ([np.nan, 0.5, 0.5], "NaN"),
        (xr.DataArray([1 / 3] * 3, dims="mode"), "expected"),
    ],
)
def test_malformed_weights_are_refused(weights: Any, message: str, tree: xr.DataTree) -> None:
    for analysis in (segmentation.ged, segmentation.hungarian):
        with pytest.raises(ValueError, match=message):
            analysis(tree, grader_weights=weights)
    with pytest.raises(TypeError, match="must be a DataArray over chain and draw"):
        segmentation.ged(tree, sample_weights=[1 / 6] * 6)
    with pytest.raises(ValueError, match="expected"):
        segmentation.ged(tree, sample_weights=xr.DataArray([1 / 6] * 6, dims="draw"))


def test_weights_need_every_grader(tree: xr.DataTree) -> None:
    truth = truth_of(tree).copy()
    truth[2, 1] = -1
    probs, uniform = probs_of(tree), np.full((4, 3), 1 / 3)
    with pytest.raises(ValueError, match=r"did not annotate 1 case\(s\)"):
        segmentation.ged(probs, truth, grader_weights=uniform[0])
    uniform[2] = [0.5, 0, 0.5]
    known = xr.DataArray(uniform, {"case": truth["case"]}, ("case", "grader"))
    result = segmentation.ged(probs, truth, grader_weights=known)
    xr.testing.assert_allclose(
        result["biased"], segmentation.ged(probs, truth)["biased"], atol=1e-12
    )


def test_the_mode_of_a_draw_is_its_argmax() -> None:
    probs = random_probs(classes=5, extra={"row": 7, "col": 3}, cases=4, draws=3)
    tied = xr.full_like(probs.isel(case=[0]), 0.2).assign_coords(case=["tied"])
    probs = xr.concat([probs, tied], dim="case")
    masks = samples_side.open_draws(probs).masks(slice(0, 5))
    expected = probs.stack(sample=("chain", "draw")).argmax("class")
    expected = expected.transpose("case", "sample", "row", "col")
    np.testing.assert_array_equal(masks, expected.values.reshape(5, 6, 21))


def test_more_classes_than_a_byte_holds() -> None:
    masks = sampled(np.array([[[[0, 299]], [[299, 299]]]]))
    draws = samples_side.open_draws(certain_probs(masks, 300))
    assert draws.masks(slice(0, 1)).tolist() == [[[0, 299], [299, 299]]]
    result = segmentation.ged(certain_probs(masks, 300), graded(np.array([[[[299, 0]]]])))
    assert float(result["sample_grader"][0]) == pytest.approx(1 / 299 * (1 + 0.5) / 2)


def test_comparable_pixels_are_those_of_every_present_grader() -> None:
    samples = np.arange(10).reshape(2, 5)
    graders = np.array([[0, 1, -1, 1, 0], [1, -1, 0, 1, 1], [-1, -1, -1, -1, -1]])
    case = graders_side.compare(samples, graders)
    assert case.present.tolist() == [True, True, False]
    assert case.domain.tolist() == [True, False, False, True, True]
    assert case.samples.tolist() == [[0, 3, 4], [5, 8, 9]]
    assert case.graders.tolist() == [[0, 1, 0], [1, 1, 1]]
    assert case.comparable
    assert not graders_side.compare(samples, graders[2:]).comparable
    halves = np.array([[0, -1, 0, -1, -1], [-1, 0, -1, 0, 0]])
    assert not graders_side.compare(samples, halves).comparable
