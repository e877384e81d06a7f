"""The synthetic cases of known law through the analyses: what a perfect model would score."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from segmentation_trees import Z

from ppl_med.analysis import segmentation
from ppl_med.data.synthetic.lesion_generator import lesions
from ppl_med.data.synthetic.scene_generator import SCENE_FLIPS, scenes


def named(values: np.ndarray, arrays: dict[str, Any], *dims: str) -> xr.DataArray:
    return xr.DataArray(values, {"case": arrays["id"]}, dims)


def as_samples(masks: np.ndarray, arrays: dict[str, Any]) -> xr.DataArray:
    return named(masks, arrays, "case", "draw", "row", "col").expand_dims("chain")


def test_scenes_number_their_modes_alike() -> None:
    """Flips read off the masks, modes found by distance and the numbers that were drawn agree."""
    arrays = scenes(40, num_graders=16, seed=3)
    masks, law = as_samples(arrays["mask"], arrays), SCENE_FLIPS.mode_probabilities()
    drawn = np.bincount(arrays["mode"].ravel(), minlength=32) / arrays["mode"].size
    known = np.stack([SCENE_FLIPS.mode_masks(mask) for mask in arrays["unflipped_mask"]])
    classes = list(range(10))
    found = segmentation.modes(
        masks,
        named(known, arrays, "case", "mode", "row", "col"),
        law,
        classes=classes,
        empty=np.nan,
    )
    np.testing.assert_allclose(found["frequency"], drawn, atol=1e-12)
    switched = segmentation.flips(
        masks,
        named(arrays["unflipped_mask"], arrays, "case", "row", "col"),
        dict(zip(SCENE_FLIPS.classes, SCENE_FLIPS.new_classes, strict=True)),
        SCENE_FLIPS.probabilities,
    )
    np.testing.assert_allclose(switched["frequency"], drawn, atol=1e-12)
    np.testing.assert_allclose(switched["probability"], law, atol=1e-12)
    assert float(switched["kl_empirical_true"]) == pytest.approx(float(found["kl_empirical_true"]))
    energy = segmentation.ged(
        masks,
        named(known, arrays, "case", "grader", "row", "col"),
        classes=classes,
        empty=np.nan,
        grader_weights=law,
    )
    gap = energy["biased"] - energy["floor"]
    assert abs(float(gap.mean())) < Z * float(gap.std(ddof=1)) / 40**0.5
    assert float(energy["floor_mean"]) == pytest.approx(0.5798176 / 16, rel=1e-6)


def test_a_perfect_model_of_the_lesions_scores_at_the_floor() -> None:
    """Sixteen more graders as samples: empty masks, presence and styles given the image."""
    arrays = lesions(400, size=32, num_graders=20, seed=5)
    samples = as_samples(arrays["mask"][:, :16], arrays)
    graders = named(arrays["mask"][:, 16:], arrays, "case", "grader", "row", "col")
    energy = segmentation.ged(samples, graders, classes=[1])
    gap = energy["biased"] - energy["floor"]
    assert abs(float(gap.mean())) < Z * float(gap.std(ddof=1)) / 400**0.5
    assert abs(float(energy["unbiased_mean"])) < Z * float(energy["unbiased_se"])
    presence = segmentation.presence_reliability(
        samples, named(arrays["presence_probability"], arrays, "case"), classes=[1]
    )
    assert abs(float(presence["slope"]) - 1) < Z * float(presence["slope_se"])
    styles = segmentation.modes(
        samples,
        named(arrays["mode_mask"], arrays, "case", "mode", "row", "col"),
        named(arrays["mode_probability"], arrays, "case", "mode"),
        classes=[1],
    )
    gap = styles["kl_per_case"] - styles["kl_per_case_perfect"]
    assert abs(float(gap.mean())) < Z * float(gap.std(ddof=1)) / 400**0.5
    assert float(styles["distance"].max()) == 0
    pixels = segmentation.pixel_reliability(samples, graders, samples="mode", classes=[1])
    assert float(pixels["ece_inside"]) < 0.1


def test_a_model_that_ignores_the_lesion_fails() -> None:
    """Presence of another case: right on average, wrong in every case."""
    arrays = lesions(400, size=32, num_graders=16, seed=6)
    mode = np.roll(arrays["mode"], 1, axis=0)
    masks = np.take_along_axis(arrays["mode_mask"], mode[:, :, None, None], 1)
    samples = as_samples(masks, arrays)
    truth = named(arrays["presence_probability"], arrays, "case")
    presence = segmentation.presence_reliability(samples, truth, classes=[1])
    assert float(presence["slope"]) < 0.5
    styles = segmentation.modes(
        samples,
        named(arrays["mode_mask"], arrays, "case", "mode", "row", "col"),
        named(arrays["mode_probability"], arrays, "case", "mode"),
        classes=[1],
    )
    assert float(styles["total_variation"]) < 0.05
    assert float(styles["kl_per_case_mean"]) > 2 * float(styles["kl_per_case_perfect_mean"])
