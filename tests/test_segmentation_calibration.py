"""Calibration of pixels and of presence, on generators that are calibrated by construction."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from segmentation_trees import Z, case_ids, graded, random_masks, sampled, tree_of

from ppl_med.analysis import segmentation
from ppl_med.analysis.segmentation import presence
from ppl_med.analysis.statistics import binning


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def calibrated(rng: np.random.Generator, cases: int, size: int = 8) -> tuple:
    """Pixels with probabilities of their own, and three graders drawn from them."""
    chance = rng.random((cases, size, size))
    graders = (rng.random((cases, 3, size, size)) < chance[:, None]).astype(int)
    probs = xr.DataArray(
        np.stack([1 - chance, chance], axis=1)[None, None],
        {"case": case_ids(cases), "class": ["background", "lesion"]},
        ("chain", "draw", "case", "class", "row", "col"),
    )
    return probs, graded(graders)


def test_pixel_reliability_is_its_definition(rng: np.random.Generator) -> None:
    masks, graders = random_masks(rng, (6, 8, 5, 5), 3), random_masks(rng, (6, 3, 5, 5), 3)
    graders[1, 0] = -1
    graders[2, 1, 2:] = -1
    tree = tree_of(sampled(masks), graded(graders), 3)
    result = segmentation.pixel_reliability(tree, bins=5, samples="mode")
    given, truth = [], []
    for case in range(6):
        present = [mask for mask in graders[case] if (mask >= 0).any()]
        known = np.all([mask >= 0 for mask in present], axis=0)
        given.append((masks[case] > 0).mean(0)[known])
        truth.append(np.mean([mask > 0 for mask in present], axis=0)[known])
    p, g = np.concatenate(given), np.concatenate(truth)
    bins = binning.equal_width(p, 5)
    for index in range(5):
        inside = bins == index
        assert int(result["count"][index]) == inside.sum()
        if inside.any():
            assert float(result["probability"][index]) == pytest.approx(float(p[inside].mean()))
            assert float(result["fraction"][index]) == pytest.approx(g[inside].mean())
    gap = abs(result["probability"] - result["fraction"]).fillna(0)
    expected = float((gap * result["count"]).sum() / result["count"].sum())
    assert float(result["ece"]) == pytest.approx(expected)


def test_calibrated_pixels_lie_on_the_diagonal(rng: np.random.Generator) -> None:
    result = segmentation.pixel_reliability(*calibrated(rng, 200))
    gap = np.abs(result["fraction"] - result["probability"])
    assert bool((gap < Z * result["fraction_se"]).all())
    assert float(result["ece"]) < 0.01
    assert int(result["count"].sum()) == 200 * 64


def test_errors_count_cases_not_pixels(rng: np.random.Generator) -> None:
    """All pixels of a case share one outcome: the error is that of a mean over cases."""
    outcome = (rng.random(100) < 0.85).astype(int)
    graders = graded(np.broadcast_to(outcome[:, None, None, None], (100, 1, 6, 6)).copy())
    probs, _ = calibrated(rng, 100, 6)
    probs = xr.full_like(probs, 0.5)
    result = segmentation.pixel_reliability(probs, graders)
    assert float(result["fraction_se"][4]) == pytest.approx(stats.sem(outcome))
    assert float(result["ece"]) == pytest.approx(abs(outcome.mean() - 0.5))
    assert float(result["ece_se"]) == pytest.approx(stats.sem(outcome))


def test_background_dilutes_the_error() -> None:
    """Certain background lowers the ECE of all pixels, not that of the disputed ones."""
    chance = np.zeros((1, 10, 10))
    chance[..., 0] = 0.8
    probs = xr.DataArray(
        np.stack([1 - chance, chance], axis=1)[None, None],
        dims=("chain", "draw", "case", "class", "row", "col"),
    )
    graders = xr.DataArray(np.zeros((1, 2, 10, 10), int), dims=("case", "grader", "row", "col"))
    result = segmentation.pixel_reliability(probs, graders)
    assert float(result["ece_inside"]) == pytest.approx(0.8)
    assert float(result["ece"]) == pytest.approx(0.08)


def present_masks(rng: np.random.Generator, chance: np.ndarray, number: int) -> np.ndarray:
    """Masks that are empty but with the given probability per case."""
    present = rng.random((len(chance), number)) < chance[:, None]
    return present[..., None, None] * np.eye(3, dtype=int)


def truths(chance: np.ndarray) -> xr.DataArray:
    return xr.DataArray(chance, {"case": case_ids(len(chance))}, ("case",))


def test_presence_of_a_perfect_model_has_slope_one(rng: np.random.Generator) -> None:
    chance = 1 / (1 + np.exp(-6 * (rng.random(1000) - 0.5)))
    masks = present_masks(rng, chance, 64)
    result = segmentation.presence_reliability(sampled(masks), truths(chance), classes=[1])
    np.testing.assert_allclose(result["frequency"], masks.any((2, 3)).mean(1))
    assert abs(float(result["slope"]) - 1) < Z * float(result["slope_se"])
    assert abs(float(result["intercept"])) < Z * float(result["intercept_se"])
    assert 0.85 < float(result["slope"]) < 1.15
    assert float(result["ece"]) < 0.03
    assert float(result["slope_perfect"]) == pytest.approx(1, abs=0.01)
    assert float(result["ece_perfect"]) == pytest.approx(float(result["ece"]), abs=0.01)


def test_specks_are_no_lesion_where_a_least_size_is_asked_for(rng: np.random.Generator) -> None:
    """Half of the draws without the structure, and one grader, have a stray pixel."""
    chance = rng.uniform(0.2, 0.8, 40)
    present = rng.random((40, 60)) < chance[:, None]
    masks = np.repeat(present[:, :, None], 9, 2).reshape(40, 60, 3, 3).astype(int)
    specks = masks.copy()
    specks[:, ::2, 0, 0] = 1
    graders = masks[:, :4].copy()
    graders[:, 0, 0, 0] = 1
    given: dict[str, Any] = {"classes": [1], "min_pixels": 2}
    clean = segmentation.presence_reliability(sampled(masks), truths(chance), **given)
    found = segmentation.presence_reliability(sampled(specks), truths(chance), **given)
    xr.testing.assert_identical(found, clean)
    assert found.attrs["min_pixels"] == 2
    loose = segmentation.presence_reliability(sampled(specks), truths(chance), classes=[1])
    assert float(loose["frequency"].mean()) > float(found["frequency"].mean()) + 0.2
    seen = segmentation.presence_reliability(tree_of(sampled(masks), graded(graders), 2), **given)
    np.testing.assert_allclose(seen["truth"], present[:, :4].mean(1))
    with pytest.raises(ValueError, match="min_pixels"):
        segmentation.presence_reliability(sampled(masks), truths(chance), classes=[1], min_pixels=0)


def test_presence_that_ignores_the_image_has_slope_zero(rng: np.random.Generator) -> None:
    chance = rng.random(400)
    masks = present_masks(rng, np.full(400, 0.5), 64)
    result = segmentation.presence_reliability(sampled(masks), truths(chance), classes=[1])
    assert abs(float(result["slope"])) < Z * float(result["slope_se"])
    assert float(result["ece"]) < 0.1  # calibration in the mean is blind to it: read the slope


def test_overconfident_presence_is_steep(rng: np.random.Generator) -> None:
    chance = rng.uniform(0.1, 0.9, 400)
    sharper = chance**3 / (chance**3 + (1 - chance) ** 3)
    masks = present_masks(rng, sharper, 64)
    result = segmentation.presence_reliability(sampled(masks), truths(chance), classes=[1])
    assert float(result["slope"]) - 1 > Z * float(result["slope_se"])
    assert float(result["ece"]) > float(result["ece_perfect"]) + 0.05


def test_presence_against_graders_knows_its_noise(rng: np.random.Generator) -> None:
    chance = rng.random(1500)
    masks, graders = present_masks(rng, chance, 64), present_masks(rng, chance, 4)
    graders[0, 0, 0, 0] = -1
    tree = tree_of(sampled(masks), graded(graders), 2)
    result = segmentation.presence_reliability(tree)
    expected = graders[1:].any((2, 3)).mean(1)
    np.testing.assert_allclose(result["truth"][1:], expected)
    assert float(result["truth"][0]) == pytest.approx(graders[0, 1:].any((1, 2)).mean())
    slope, error = float(result["slope"]), float(result["slope_se"])
    attenuation = np.var(chance) / (np.var(chance) + np.mean(chance * (1 - chance)) / 64)
    assert abs(slope - attenuation) < Z * error + 0.02
    assert result.attrs["regression"] == "grader frequency on frequency"


def test_the_line_is_weighted_least_squares(rng: np.random.Generator) -> None:
    """Weights as repeated rows: the closed form of scipy on the repeated data."""
    chance = np.repeat([0.2, 0.5, 0.8], 3)
    response = rng.random(9)
    beta, error = presence._least_squares(chance, response, 10)
    weight = 1 / (chance * (1 - chance))
    np.testing.assert_allclose(
        beta, np.polyfit(chance, response, 1, w=np.sqrt(weight))[::-1], atol=1e-12
    )
    repeated = stats.linregress(np.repeat(chance, np.round(weight * 16).astype(int)),
                                np.repeat(response, np.round(weight * 16).astype(int)))  # fmt: skip
    np.testing.assert_allclose(beta, [repeated.intercept, repeated.slope], atol=1e-12)
    assert (error > 0).all()


def test_standard_error_of_the_slope_is_its_spread(rng: np.random.Generator) -> None:
    chance = rng.uniform(0.05, 0.95, 150)
    found = [
        presence._least_squares(chance, rng.binomial(16, chance) / 16, 16) for _ in range(1500)
    ]
    slopes = np.array([beta[1] for beta, _ in found])
    errors = np.array([error[1] for _, error in found])
    # the sd of 1500 replications is known to 1.8 %
    assert slopes.std(ddof=1) == pytest.approx(errors.mean(), rel=0.12)
    assert abs(slopes.mean() - 1) < Z * slopes.std(ddof=1) / 1500**0.5


def test_presence_leaves_out_cases_without_a_truth(rng: np.random.Generator) -> None:
    chance = truths(rng.random(40))
    masks = sampled(present_masks(rng, chance.values, 8))
    missing = rng.random(40) < 0.3
    found = segmentation.presence_reliability(masks, chance.where(~missing), classes=[1])
    kept = np.flatnonzero(~missing)
    expected = segmentation.presence_reliability(
        masks.isel(case=kept), chance.isel(case=kept), classes=[1]
    )
    xr.testing.assert_equal(found.isel(case=kept), expected)
    assert found.attrs["left_out"] == found.attrs["left_out_cases"] == missing.sum()
    assert found.attrs["num_cases"] == len(kept)


def test_malformed_presence_is_refused(rng: np.random.Generator) -> None:
    masks = sampled(present_masks(rng, np.full(5, 0.5), 4))
    graders = graded(present_masks(rng, np.full(5, 0.5), 4))
    chance = truths(rng.random(5))
    for truth, annotations, message in (
        (chance, graders, "not both"),
        (chance.isel(case=slice(3)), None, "same cases"),
        (chance + 1, None, "probabilities"),
        (chance.expand_dims("grader"), None, "one probability per case"),
        (xr.full_like(chance, 0.5), None, "no line can be fitted"),
    ):
        with pytest.raises(ValueError, match=message):
            segmentation.presence_reliability(masks, truth, annotations, classes=[1])
    with pytest.raises(ValueError, match="three cases"):
        segmentation.presence_reliability(
            masks.isel(case=[0, 1]), chance.isel(case=[0, 1]), classes=[1]
        )
    with pytest.raises(ValueError, match="bins must be"):
        segmentation.presence_reliability(masks, chance, classes=[1], bins=0)
    with pytest.raises(ValueError, match="simulations must be"):
        segmentation.presence_reliability(masks, chance, classes=[1], simulations=0)


def test_the_sandwich_error_of_a_line_has_the_divisor_of_its_degrees_of_freedom() -> None:
    """HC1 of weighted least squares, written out: the sum of squares over n - 2, not n - 1."""
    x, y = np.array([0.1, 0.3, 0.5, 0.9]), np.array([0.2, 0.1, 0.7, 0.8])
    weight = 1 / (x * (1 - x))
    root = np.sqrt(weight)[:, None] * np.stack([np.ones(4), x], 1)
    solve = np.linalg.pinv(root)
    beta = solve @ (np.sqrt(weight) * y)
    residual = np.sqrt(weight) * (y - beta[0] - beta[1] * x)
    expected = np.sqrt(np.diagonal(solve * residual**2 @ solve.T) * 4 / 2)
    found = presence._least_squares(x, y, 1000)
    np.testing.assert_allclose(found[0], beta)
    np.testing.assert_allclose(found[1], expected)
