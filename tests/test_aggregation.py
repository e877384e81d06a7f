"""Scores a case against sums over pixels written out, and maps whose best window is planted."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from posterior_trees import random_probs

from ppl_med.analysis import aggregation
from ppl_med.analysis.aggregation import aggregate

SPACE = {2: ("row", "col"), 3: ("depth", "row", "col")}


def maps(*shape: int, seed: int = 0) -> xr.DataArray:
    values = np.random.default_rng(seed).gamma(2, size=shape)
    dims = ("case", *SPACE[len(shape) - 1])
    ids = [f"patient-{index}" for index in range(shape[0])]
    return xr.DataArray(values, {"case": ids}, dims, "entropy", {"units": "nats"})


def mask_of(array: xr.DataArray, classes: int = 3) -> xr.DataArray:
    values = np.random.default_rng(1).integers(0, classes, array.shape)
    return array.copy(data=values).astype(np.int64)


@pytest.mark.parametrize("shape", [(3, 8, 9), (2, 5, 6, 7)])
def test_simple_reductions_are_those_of_numpy(shape: tuple[int, ...]) -> None:
    array = maps(*shape)
    flat = array.values.reshape(len(array), -1)
    np.testing.assert_allclose(aggregate(array, "mean"), flat.mean(1))
    np.testing.assert_allclose(aggregate(array, "max"), flat.max(1))
    expected = np.quantile(flat, 0.9, axis=1)
    found = aggregate(array, "quantile", level=0.9)
    np.testing.assert_allclose(found, expected)
    settings = {"units": "nats", "aggregation": "quantile, level 0.9"}
    assert found.attrs.items() >= settings.items()
    assert list(found["case"].values) == list(array["case"].values)
    mask = mask_of(array)
    inside = mask.values.reshape(len(array), -1)
    expected = [row[kind != 0].mean() for row, kind in zip(flat, inside, strict=True)]
    np.testing.assert_allclose(aggregate(array, "foreground", mask=mask), expected)
    expected = [row[kind == 2].mean() for row, kind in zip(flat, inside, strict=True)]
    found = aggregate(array, "foreground", mask=mask, classes=[2])
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("shape", [(2, 8, 9), (2, 5, 6, 7)])
@pytest.mark.parametrize("patch", [1, 2, 3, 4, 20])
def test_the_patch_is_the_best_of_all_windows(shape: tuple[int, ...], patch: int) -> None:
    array = maps(*shape)
    side = [min(patch, size) for size in shape[1:]]
    expected = []
    for image in array.values:
        windows = np.lib.stride_tricks.sliding_window_view(image, side)
        expected.append(windows.mean(tuple(range(-len(side), 0))).max())
    np.testing.assert_allclose(aggregate(array, "patch_max", patch=patch), expected)


def test_a_planted_focus_is_found_by_the_patch_and_lost_in_the_mean() -> None:
    array = maps(2, 30, 30) * 0 + 0.1
    array[1, 20:25, 3:8] = 0.9
    mean, focus = aggregate(array, "mean"), aggregate(array, "patch_max", patch=5)
    np.testing.assert_allclose(focus, [0.1, 0.9])
    np.testing.assert_allclose(mean, [0.1, 0.1 + 0.8 * 25 / 900])


def test_the_boundary_weighs_by_distance_written_out() -> None:
    array = maps(2, 7, 8)
    mask = mask_of(array)
    mask[0] = 0
    mask[0, 2:5, 3:6] = 1
    for spacing in ((1.0, 1.0), (2.0, 0.5)):
        found = aggregate(array, "boundary", mask=mask, width=1.5, spacing=spacing)
        for case in range(2):
            kind = mask.values[case]
            places = np.argwhere(kind >= 0)
            total = weights = 0.0
            for place in places:
                others = places[kind[tuple(places.T)] != kind[tuple(place)]]
                away = np.sqrt((((others - place) * spacing) ** 2).sum(1)).min()
                weight = np.exp(-away / 1.5)
                total += weight * array.values[(case, *place)]
                weights += weight
            assert float(found[case]) == pytest.approx(total / weights)


def test_pixels_left_out_and_cases_without_a_score() -> None:
    array = maps(3, 6, 6)
    array[0, :, :3] = np.nan
    array[2] = np.nan
    kept = array.values[0][:, 3:]
    for how, expected in (("mean", kept.mean()), ("max", kept.max())):
        found = aggregate(array, how)
        assert float(found[0]) == pytest.approx(expected)
        assert np.isnan(found[2])
    patch = aggregate(array, "patch_max", patch=3)
    windows = np.lib.stride_tricks.sliding_window_view(array.values[0], (3, 3))
    half = np.isnan(windows).mean((2, 3)) <= 0.5
    assert float(patch[0]) == pytest.approx(np.nanmean(windows[half], (1, 2)).max())
    assert np.isnan(patch[2])
    mask = xr.zeros_like(array, dtype=np.int64)
    mask[1, 2, 2] = 1
    found = aggregate(array, "foreground", mask=mask)
    np.testing.assert_array_equal(np.isnan(found), [True, False, True])
    assert float(found[1]) == array.values[1, 2, 2]
    np.testing.assert_array_equal(
        np.isnan(aggregate(array, "boundary", mask=mask)), [True, False, True]
    )


def test_draws_are_kept_datasets_go_through_and_lazy_maps_stay_lazy() -> None:
    array = maps(4, 5, 6)
    drawn = xr.concat([array, 2 * array], "draw")
    found = aggregate(drawn, "max")
    assert found.dims == ("draw", "case")
    np.testing.assert_allclose(found[1], 2 * aggregate(array, "max"))
    dataset = xr.Dataset({"entropy": array, "entropy_per_case": array.mean(("row", "col"))})
    both = aggregate(dataset, "patch_max", patch=2)
    assert list(both) == ["entropy"]
    mask = mask_of(array)
    choices: dict[str, dict[str, Any]] = {
        "patch_max": {"patch": 2},
        "foreground": {"mask": mask.chunk({"row": 2})},
    }
    for how, options in choices.items():
        lazy = aggregate(array.chunk({"case": 1, "row": 2}), how, **options)
        assert lazy.chunks is not None
        np.testing.assert_allclose(lazy, aggregate(array, how, **options))


def test_errors_of_single_pixels_are_not_passed_off_as_those_of_the_mean() -> None:
    array = maps(2, 4, 5)
    whole = xr.Dataset({"entropy": array, "entropy_mcse": 0.1 * array, "entropy_se": 0.1 * array})
    assert list(aggregate(whole, "mean")) == ["entropy"]


def test_the_predicted_mask_is_the_mode_of_the_mean() -> None:
    probs = random_probs(extra={"row": 4, "col": 5}, cases=3, draws=3)
    found = aggregation.predicted_mask(probs)
    expected = probs.mean(("chain", "draw")).values.argmax(1)
    np.testing.assert_array_equal(found, expected)
    assert found.dims == ("case", "row", "col")
    assert list(found["case"].values) == list(probs["case"].values)


def test_bad_input_is_named() -> None:
    array = maps(2, 5, 5)
    with pytest.raises(ValueError, match="how must be 'mean'"):
        aggregate(array, "median")
    with pytest.raises(ValueError, match="needs mask"):
        aggregate(array, "foreground")
    with pytest.raises(ValueError, match="mask must hold class indices"):
        aggregate(array, "boundary", mask=mask_of(array)[:, :3])
    with pytest.raises(ValueError, match="same cases"):
        aggregate(array, "foreground", mask=mask_of(array).assign_coords(case=["a", "b"]))
    with pytest.raises(ValueError, match="needs case and row, col"):
        aggregate(array.mean(("row", "col")), "mean")
    with pytest.raises(ValueError, match="no variable with axes of an image"):
        aggregate(xr.Dataset({"a": array.mean(("row", "col"))}), "mean")
    with pytest.raises(ValueError, match="level must be"):
        aggregate(array, "quantile", level=1.5)
    with pytest.raises(ValueError, match="patch must be"):
        aggregate(array, "patch_max", patch=0)
    with pytest.raises(ValueError, match="width must be"):
        aggregate(array, "boundary", mask=mask_of(array), width=0)
    with pytest.raises(ValueError, match="spacing must be one positive"):
        aggregate(array, "boundary", mask=mask_of(array), spacing=[1.0])
