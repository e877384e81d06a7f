"""Synthetic lesions: masks follow the probabilities that come with them."""

from functools import partial

import numpy as np
import pytest
from scipy import stats

from ppl_med.data import Batches, FreshBatches, lesions

FALSE_ALARM = 1e-6


@pytest.fixture(scope="module")
def many():
    return lesions(3000, seed=1)


def test_names_shapes_and_types(many):
    assert many["image"].shape == (3000, 1, 64, 64) and many["image"].dtype == np.float32
    assert many["mask"].shape == (3000, 4, 64, 64) and many["mask"].dtype == np.int8
    assert many["mode_mask"].shape == (3000, 4, 64, 64)
    assert len(set(many["id"])) == 3000
    batch = next(iter(Batches(many, batch_size=8)))
    assert batch["mask"].shape == (8, 4, 64, 64) and batch["mode_probability"].shape == (8, 4)


def test_probabilities_are_those_of_the_formulas(many):
    p = 1 / (1 + np.exp(-6 * (many["contrast"] - 0.5)))
    np.testing.assert_allclose(many["presence_probability"], p, rtol=1e-12)
    chance, style = many["mode_probability"], many["style_probability"]
    np.testing.assert_allclose(chance.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(chance[:, 1:], p[:, None] * style, rtol=1e-12)
    # A softmax that is linear in the blurriness has log odds that are.
    odds = np.log(style[:, 1:] / style[:, :1])
    for column in odds.T:
        fit = stats.linregress(many["blurriness"], column)
        assert abs(fit.rvalue) == pytest.approx(1, abs=1e-9) and abs(fit.slope) > 0.5
    for name in ("contrast", "blurriness"):
        assert stats.kstest(many[name], "uniform").pvalue > FALSE_ALARM


@pytest.mark.parametrize("mode", range(4))
def test_modes_are_drawn_as_often_as_stated_in_every_range(many, mode):
    # Within five ranges of the probability: the count is a sum of unequal coins.
    p, drawn = many["mode_probability"][:, mode], (many["mode"] == mode).sum(1)
    for rows in np.array_split(np.argsort(p), 5):
        expected, variance = 4 * p[rows].sum(), 4 * (p[rows] * (1 - p[rows])).sum()
        z = (drawn[rows].sum() - expected) / np.sqrt(variance)
        assert 2 * stats.norm.sf(abs(z)) > FALSE_ALARM


def test_graders_decide_independently_given_the_image(many):
    present, p = many["mode"] > 0, many["presence_probability"]
    for first, second in [(0, 1), (1, 3)]:
        both = (present[:, first] & present[:, second]).sum()
        z = (both - (p**2).sum()) / np.sqrt((p**2 * (1 - p**2)).sum())
        assert 2 * stats.norm.sf(abs(z)) > FALSE_ALARM


def test_masks_are_the_modes_drawn(many):
    case, grader = np.indices((3000, 4))
    np.testing.assert_array_equal(many["mask"], many["mode_mask"][case, many["mode"]])
    del grader
    areas = many["mode_mask"].sum((2, 3), dtype=int)
    assert (areas[:, 0] == 0).all() and (areas[:, 1] >= 50).all()
    assert (np.diff(areas[:, 1:], axis=1) > 20).all(), "styles differ"
    nested = (many["mode_mask"][:, 1:-1] <= many["mode_mask"][:, 2:]).all()
    assert nested and not many["mode_mask"][:, 3, [0, -1]].any(), "whole within the image"
    assert not many["mode_mask"][:, 3, :, [0, -1]].any()


def test_the_image_tells_contrast_and_outline(many):
    # The blob's middle shows its height, 0.2 + 0.8 c, and the medium outline is at half of it.
    inner = many["mode_mask"][:, 1] > 0
    sharp = many["blurriness"] < 0.3
    height = np.array([np.median(i[m]) for i, m in zip(many["image"][:, 0], inner, strict=True)])
    assert np.corrcoef(height[sharp], many["contrast"][sharp])[0, 1] > 0.99
    half = many["image"][sharp, 0] > (0.1 + 0.4 * many["contrast"][sharp])[:, None, None]
    medium = many["mode_mask"][sharp, 2] > 0
    bright = many["contrast"][sharp] > 0.5
    agreement = (half & medium).sum((1, 2)) / (half | medium).sum((1, 2))
    assert agreement[bright].min() > 0.8


def test_the_seed_decides_everything():
    first, again, other = (lesions(40, seed=s) for s in (7, 7, 8))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert (first["image"] != other["image"]).any((1, 2, 3)).all()
    one = lesions(40, seed=7, num_graders=None)
    np.testing.assert_array_equal(one["image"], first["image"])
    assert one["mask"].shape == (40, 64, 64) and one["mode"].shape == (40,)


def test_fresh_lesions_for_training():
    batches = FreshBatches(
        partial(lesions, num_graders=None, size=32), batch_size=6, keep=("image", "mask")
    )
    first, second = next(batches.iterate(0)), next(batches.iterate(1))
    assert first["mask"].shape == (6, 32, 32) and set(first["mask"].unique().tolist()) <= {0, 1}
    assert (first["image"] != second["image"]).any()


@pytest.mark.parametrize("wrong", [{"num_cases": 0}, {"size": 16}, {"num_graders": 0}])
def test_bad_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        lesions(**({"num_cases": 3} | wrong))
