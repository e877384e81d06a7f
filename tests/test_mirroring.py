"""Prediction of mirrored images: each draw its own way, maps turned back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from posterior_trees import array
from test_sliding_window import (
    CLASSES,
    QUIET,
    TwoInputs,
    batches,
    of,
    regressor,
    segmenter,
)
from torch import Tensor, nn

from ppl_med.axes import SPACE
from ppl_med.inference import FromPrior, MeanFieldNormal, PointEstimate, predict
from ppl_med.models import BayesianClassifier, ProbabilisticUNet

SETTINGS: dict[str, Any] = {**QUIET, "draws": 9}


def probs_of(tree: xr.DataTree) -> xr.DataArray:
    return array(tree, "posterior/probs")


def turned(data: list[dict[str, Tensor]], axes: list[str], space: int) -> list[dict[str, Tensor]]:
    """The images turned over by hand, without observations."""
    places = [2 + SPACE[space].index(axis) for axis in axes]
    return [{"image": batch["image"].flip(places)} for batch in data]


@pytest.mark.parametrize("along", [True, ("col",), ("col", "row")])
@pytest.mark.parametrize("space", [2, 3])
@pytest.mark.parametrize("make", [segmenter, regressor])
def test_every_draw_is_that_of_images_turned_by_hand(make: Any, space: int, along: Any) -> None:
    """Draw s turns over the axes of its binary digits; its weights are those of draw s."""
    model = make(space)
    guide, data = MeanFieldNormal(model, init_scale=0.3), of(model, batches(space))
    found = predict(model, guide, data, mirror=along, **SETTINGS)
    names = SPACE[space] if along is True else along
    variable = "probs" if make is segmenter else "loc"
    plain: dict[tuple[str, ...], Any] = {}
    for draw in range(SETTINGS["draws"]):
        axes = tuple(name for bit, name in enumerate(names) if draw >> bit & 1)
        if axes not in plain:
            tree = predict(model, guide, turned(data, [*axes], space), **SETTINGS)
            plain[axes] = array(tree, f"posterior/{variable}")
        back = plain[axes].isel({axis: slice(None, None, -1) for axis in axes}).sel(draw=draw)
        own = array(found, f"posterior/{variable}").sel(draw=draw)
        np.testing.assert_allclose(own.values, back.values, rtol=1e-5, atol=1e-6)
    assert len(plain) == 2 ** len(names)
    assert found.attrs["mirror"] == ("all axes" if along is True else ", ".join(along))


def test_masks_are_scored_where_they_lie() -> None:
    model = segmenter(2)
    data = of(model, batches(2))
    found = predict(model, MeanFieldNormal(model, init_scale=0.3), data, mirror=True, **SETTINGS)
    mask = array(found, "observed_data/mask")
    probs = probs_of(found).transpose(..., "class")
    own = np.take_along_axis(probs.values, mask.values[None, None, ..., None].clip(0), -1)[..., 0]
    expected = np.where(mask.values >= 0, np.log(own), 0).sum((-2, -1))
    scores = array(found, "log_likelihood/mask")
    if scores.ndim > 3:
        scores = scores.sum(["row", "col"])
    np.testing.assert_allclose(scores.values, expected, rtol=1e-5)


def test_patches_are_those_of_the_mirrored_image() -> None:
    """A patch of the whole image changes nothing; smaller ones lie mirrored too."""
    model = segmenter(2)
    guide, data = MeanFieldNormal(model, init_scale=0.3), of(model, batches(2))
    whole = probs_of(predict(model, guide, data, mirror=True, **SETTINGS))
    once = probs_of(predict(model, guide, data, mirror=True, window=(24, 20), **SETTINGS))
    np.testing.assert_allclose(once.values, whole.values, atol=1e-6)
    parts = probs_of(predict(model, guide, data, mirror=True, window=(12, 8), **SETTINGS))
    by_hand = turned(data, ["row", "col"], 2)
    plain = probs_of(predict(model, guide, by_hand, window=(12, 8), **SETTINGS))
    back = plain.isel(row=slice(None, None, -1), col=slice(None, None, -1)).sel(draw=3)
    np.testing.assert_allclose(parts.sel(draw=3).values, back.values, atol=1e-6)


def test_classes_of_an_image_are_not_turned() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(24 * 20, 3))
    model = BayesianClassifier(net, CLASSES)
    guide, data = (
        MeanFieldNormal(model, init_scale=0.05),
        [{"image": b["image"]} for b in batches(2)],
    )
    found = probs_of(predict(model, guide, data, mirror=["col"], **SETTINGS))
    plain = probs_of(predict(model, guide, turned(data, ["col"], 2), **SETTINGS))
    np.testing.assert_allclose(found.sel(draw=1).values, plain.sel(draw=1).values, rtol=1e-5)
    assert not np.allclose(found.sel(draw=2).values, plain.sel(draw=2).values, rtol=1e-3)


def test_a_store_remembers_how_it_was_mirrored(tmp_path: Path) -> None:
    model = segmenter(2)
    guide, data, store = PointEstimate(model), of(model, batches(2)), tmp_path / "run.zarr"
    predict(model, guide, data, store=store, mirror=True, **QUIET)
    for options in ({}, {"mirror": ("row",)}):
        settings: dict[str, Any] = options
        with pytest.raises(ValueError, match="made with another mirror"):
            predict(model, guide, data, store=store, resume=True, **settings, **QUIET)
    predict(model, guide, data, store=store, resume=True, mirror=True, **QUIET)


@pytest.mark.parametrize("along", ["col", (), ("slice",), ("row", "row"), 1, None])
@pytest.mark.usefixtures("types_unchecked")
def test_wrong_axes_are_named(along: Any) -> None:
    model = segmenter(2)
    with pytest.raises(ValueError, match="mirror must be True, or different names of"):
        predict(model, PointEstimate(model), of(model, batches(2)), mirror=along, **QUIET)


def test_an_axis_that_images_lack_is_named() -> None:
    model = segmenter(2)
    with pytest.raises(ValueError, match="there is no spatial axis depth"):
        predict(model, PointEstimate(model), of(model, batches(2)), mirror=("depth",), **QUIET)


def test_models_whose_net_cannot_be_mirrored_say_so() -> None:
    images = [{"image": batch["image"], "mask": batch["mask"]} for batch in batches(2)]
    code = ProbabilisticUNet(1, CLASSES, (4, 8), 1, latent_dim=2)
    with pytest.raises(ValueError, match=r"mirror: .*ProbabilisticUNet runs no network with"):
        predict(code, FromPrior("z"), images, mirror=True, **QUIET)
    model = TwoInputs()
    with pytest.raises(ValueError, match="mirror: only networks of one image run mirrored"):
        predict(model, PointEstimate(model), batches(2), mirror=True, **QUIET)
