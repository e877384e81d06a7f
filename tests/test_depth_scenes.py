"""Depth scenes: the law, recomputed by scipy; the noise, by its known distribution; the shifts."""

from typing import Any

import numpy as np
import pytest
from scipy import ndimage, stats

from ppl_med.data import Batches, depth_scenes

FALSE_ALARM = 1e-4


def blurred(maps):
    weights = np.array([1, 4, 6, 4, 1]) / 16
    for axis in (1, 2):
        maps = ndimage.convolve1d(np.asarray(maps, np.float64), weights, axis, mode="nearest")
    return maps


@pytest.mark.parametrize("shift", ["none", "colour", "texture"])
def test_mean_and_noise_follow_from_the_image(shift):
    made = depth_scenes(5, size=20, shift=shift, seed=3)
    red, green, blue = made["image"].transpose(1, 0, 2, 3)
    mean = 3 + 8 * blurred(blue) ** 2
    sd = 0.05 * 20 ** (1 - blurred((red + green) / 2))
    np.testing.assert_allclose(made["mean_depth"], mean, rtol=1e-5)
    np.testing.assert_allclose(made["noise_sd"], sd, rtol=1e-5)
    assert 0 <= made["image"].min() and made["image"].max() <= 1
    assert not made["outlier"].any()


@pytest.mark.parametrize(
    ("noise", "standard"),
    [("gaussian", stats.norm()), ("laplace", stats.laplace(scale=1 / np.sqrt(2)))],
)
def test_the_noise_has_its_distribution(noise, standard):
    made = depth_scenes(40, size=32, noise=noise)
    z = ((made["depth"] - made["mean_depth"]) / made["noise_sd"]).ravel()
    assert stats.kstest(z, standard.cdf).pvalue > FALSE_ALARM
    assert standard.std() == pytest.approx(1)
    # Neighbours are independent: a correlation of n pairs has a standard error of 1 / sqrt(n).
    left, right = z.reshape(40, 32, 32)[:, :, ::2], z.reshape(40, 32, 32)[:, :, 1::2]
    score = np.corrcoef(left.ravel(), right.ravel())[0, 1] * np.sqrt(left.size)
    assert abs(score) < stats.norm.isf(FALSE_ALARM / 2)


def test_outliers_are_as_many_as_asked_and_touch_nothing_else():
    plain, spoilt = (depth_scenes(20, size=32, outlier_fraction=rate) for rate in (0.0, 0.1))
    outlier = spoilt["outlier"]
    assert stats.binomtest(int(outlier.sum()), outlier.size, 0.1).pvalue > FALSE_ALARM
    for name in ("image", "mean_depth", "noise_sd"):
        np.testing.assert_array_equal(plain[name], spoilt[name])
    np.testing.assert_array_equal(plain["depth"][~outlier], spoilt["depth"][~outlier])
    place = (spoilt["depth"][outlier] - 12) / 8
    assert stats.kstest(place, "uniform").pvalue > FALSE_ALARM
    assert spoilt["mean_depth"].max() < 12


def test_the_noise_cannot_be_read_from_the_depth():
    """Over scenes, the mean correlation of the two maps is zero by symmetry of the brightness."""
    made = depth_scenes(400, size=16)
    pairs = zip(made["mean_depth"], np.log(made["noise_sd"]), strict=True)
    each = [np.corrcoef(mean.ravel(), noise.ravel())[0, 1] for mean, noise in pairs]
    assert stats.ttest_1samp(each, 0).pvalue > FALSE_ALARM
    assert made["noise_sd"].min() > 0.05 and np.ptp(made["noise_sd"]) > 0.3


def test_shifted_scenes_have_unseen_pixels_and_the_same_law():
    plain, colour, texture = (
        depth_scenes(30, size=32, shift=shift) for shift in ("none", "colour", "texture")
    )

    def hue(made):
        return np.abs(made["image"][:, 0] - made["image"][:, 1])

    def roughness(made):
        return (
            np.abs(np.diff(made["image"], axis=-1)).mean()
            + np.abs(np.diff(made["image"], axis=-2)).mean()
        )

    assert hue(plain).max() < 0.051 and hue(texture).max() < 0.051
    assert 0.299 < hue(colour).min() and hue(colour).max() < 0.401
    assert roughness(texture) > 5 * roughness(plain)
    inside = (slice(None), slice(2, -2), slice(2, -2))
    for shifted in (colour, texture):
        assert not set(plain["id"]) & set(shifted["id"])
        for name in ("mean_depth", "noise_sd", "depth"):
            np.testing.assert_allclose(shifted[name][inside], plain[name][inside], rtol=1e-4)


def test_a_seed_determines_everything_and_batches_take_it():
    first, again, other = (depth_scenes(3, size=16, seed=seed) for seed in (1, 1, 2))
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
    assert not np.array_equal(first["image"], other["image"])
    batch = next(iter(Batches(first)))
    assert batch["depth"].shape == batch["noise_sd"].shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_cases": 0}, "num_cases must be"),
        ({"size": 15}, "size must be"),
        ({"outlier_fraction": 1.0}, "outlier_fraction must be"),
        ({"outlier_fraction": -0.1}, "outlier_fraction must be"),
    ],
)
def test_bad_arguments_are_named(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        depth_scenes(**({"num_cases": 2} | settings))
