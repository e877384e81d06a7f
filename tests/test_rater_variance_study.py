"""What the study of raters and weights knows beforehand, and its figures of a run."""

import importlib
from typing import Any

import numpy as np
import pytest
import xarray as xr
from example_runs import ROOT
from scipy.special import expit
from segmentation_trees import certain_probs

from ppl_med.axes import SAMPLES
from ppl_med.testing import assert_mean


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of the study, as attributes."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    for name in ("discs", "scores"):
        importlib.import_module(f"rater_variance.{name}")
    return importlib.import_module("rater_variance")


def test_raters_draw_either_outline_as_often_as_the_contrast_tells(study: Any) -> None:
    one = study.discs.discs(4000, 0, "train")
    areas = one["mask"].sum((1, 2))
    assert (areas == np.array(study.discs.areas())[one["wide"]]).all()
    mean, variance = study.discs.true_area(one["contrast"])
    assert_mean(areas - mean, 0.0)
    assert_mean((areas - mean) ** 2 - variance, 0.0)
    with pytest.raises(AssertionError):  # of one probability for all images
        assert_mean((areas - areas.mean()) ** 2 - variance, 0.0)


def test_fewer_images_are_the_first_of_more_and_parts_share_none(study: Any) -> None:
    few, many = (study.discs.discs(number, 3, "train") for number in (5, 9))
    for name in ("image", "mask", "contrast"):
        np.testing.assert_array_equal(few[name], many[name][:5])
    seen = [study.discs.discs(5, 3, part)["contrast"] for part in ("train", "val", "test")]
    assert len(np.unique(seen)) == 15


def test_the_regression_leaves_what_the_information_says(study: Any) -> None:
    """With 4000 outlines the posterior is normal: the gradient's variance, by inverse information.

    The estimate differs from the true values by sqrt(2 / 4000) or so, and so does the information.
    """
    one = study.discs.discs(4000, 1, "train")
    at = np.linspace(0.1, 0.9, 5)
    found = study.discs.area_variance_of_regression(one["contrast"], one["wide"], at)
    design = np.stack([np.ones(4000), one["contrast"] - 0.5])
    spread = expit(6 * (one["contrast"] - 0.5))
    covariance = np.linalg.inv((design * spread * (1 - spread)) @ design.T)
    gradient = np.stack([np.ones(5), at - 0.5]) * expit(6 * (at - 0.5)) * expit(-6 * (at - 0.5))
    narrow, wide = study.discs.areas()
    expected = (gradient * (covariance @ gradient)).sum(0) * (wide - narrow) ** 2
    np.testing.assert_allclose(found, expected, rtol=0.15)


def test_figures_of_a_run_are_without_bias(study: Any) -> None:
    """Three networks of known spread around the true probability, six masks with each.

    Mean area right on average over networks: the squared error of its mean is zero on average.
    """
    rng, number = np.random.default_rng(0), 1500
    images = study.discs.discs(number, 0, "val")
    chance = study.discs.wide_probability(images["contrast"])
    room = np.minimum(chance, 1 - chance)
    level = chance + room * rng.choice([-1, 1], (3, 1, number))
    wide = rng.random((3, 6, number)) < level
    narrow, large = study.discs.areas()
    flat = np.arange(100) < np.where(wide, large, narrow)[..., None]
    coords = {"case": images["id"], "weights": ("draw", np.zeros(6, int))}
    mask = xr.DataArray(
        flat.reshape(3, 6, number, 10, 10).astype(np.int64),
        coords,
        (*SAMPLES, "case", "row", "col"),
    )
    tree = xr.DataTree.from_dict(
        {
            "/posterior": xr.Dataset({"probs": certain_probs(mask, 2)}),
            "/posterior_predictive": xr.Dataset({"mask": mask}),
        }
    )
    train = study.discs.discs(4, 0, "train")
    found = study.scores.score(tree, images, train)
    scale = (large - narrow) ** 2
    assert_mean(found["between_weights"].values - scale * room**2, 0.0)
    assert_mean(found["between_raters"].values - scale * (chance - chance**2 - room**2), 0.0)
    assert_mean(found["squared_error"].values, 0.0)
    with pytest.raises(AssertionError):  # with the chance of 18 masks of 3 networks left in
        assert_mean(found["squared_error"].values + found["between_weights"].values / 3, 0.0)
    assert (found["of_outlines"] == 1).all()
