"""The energy distance: definitions by loops, floors and biases by theory and by simulation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from segmentation_trees import (
    RATES,
    Z,
    brute_iou,
    graded,
    hamming_distance,
    mode_bits,
    mode_law,
    mode_masks,
    random_masks,
    sampled,
    switch,
    switch_regions,
    tree_of,
)

from ppl_med.analysis import segmentation

ALL = range(1, 11)


def loops(
    masks: np.ndarray, graders: np.ndarray, classes: list[int], empty: float
) -> dict[str, float]:
    """Every figure of one case by the definition, one pair at a time."""

    def mean(first: np.ndarray, second: np.ndarray, *, different: bool = False) -> float:
        pairs = [
            1 - brute_iou(a, b, classes, empty)
            for i, a in enumerate(first)
            for j, b in enumerate(second)
            if not (different and i == j)
        ]
        return float(np.mean(pairs)) if pairs else np.nan

    cross = mean(masks, graders)
    own, own_u = mean(masks, masks), mean(masks, masks, different=True)
    grader, grader_u = mean(graders, graders), mean(graders, graders, different=True)
    return {
        "biased": 2 * cross - own - grader,
        "unbiased": 2 * cross - own_u - grader_u,
        "floor": grader_u * (1 / len(masks) + 1 / len(graders)),
        "sample_grader": cross,
        "sample_sample": own,
        "grader_grader": grader,
        "sample_sample_unbiased": own_u,
        "grader_grader_unbiased": grader_u,
    }


@pytest.mark.parametrize("empty", [1.0, np.nan])
@pytest.mark.parametrize("classes", [[1], [1, 2, 3], [0, 2]])
@pytest.mark.parametrize("space", [(6, 5), (3, 4, 2)])
def test_ged_is_its_definition(
    space: tuple[int, ...], classes: list[int], empty: float, rng: np.random.Generator
) -> None:
    masks = random_masks(rng, (7, 6, *space), 4, empty=0.0 if np.isnan(empty) else 0.3)
    graders = random_masks(rng, (7, 3, *space), 4, empty=0.0 if np.isnan(empty) else 0.3)
    result = segmentation.ged(
        sampled(masks, chains=2), graded(graders), classes=classes, empty=empty
    )
    for case in range(7):
        for name, value in loops(masks[case], graders[case], classes, empty).items():
            assert float(result[name][case]) == pytest.approx(value, abs=1e-12), name
    mean, error = result["biased"].mean(), result["biased"].std(ddof=1) / 7**0.5
    assert float(result["biased_mean"]) == pytest.approx(float(mean), rel=1e-12)
    assert float(result["biased_se"]) == pytest.approx(float(error), rel=1e-12)


def test_pixels_in_chunks_count_once(rng: np.random.Generator) -> None:
    """A volume of more pixels than one matrix product takes."""
    masks, graders = random_masks(rng, (1, 2, 300, 1000), 3), rng.integers(0, 3, (1, 2, 300, 1000))
    result = segmentation.ged(sampled(masks), graded(graders), classes=[1, 2])
    value = loops(masks[0], graders[0], [1, 2], 1.0)["biased"]
    assert float(result["biased"][0]) == pytest.approx(value, abs=1e-12)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def draw_modes(
    rng: np.random.Generator, regions: np.ndarray, number: int, law: np.ndarray
) -> np.ndarray:
    picked = rng.choice(32, (len(regions), number), p=law)
    return switch(regions, mode_bits()[picked])


def weights(law: np.ndarray, dim: str) -> xr.DataArray:
    array = xr.DataArray(law, dims=dim)
    return array.expand_dims("chain") if dim == "draw" else array


def predictors() -> dict[str, np.ndarray]:
    unlikely = np.zeros(32)
    unlikely[0] = 1  # no switch is the most probable mode: all rates are below 1/2
    return {"perfect": mode_law(), "uniform": np.full(32, 1 / 32), "deterministic": unlikely}


@pytest.mark.parametrize("name", ["perfect", "uniform", "deterministic"])
def test_ged_of_predictors_with_a_known_law(name: str, rng: np.random.Generator) -> None:
    """All 32 modes on both sides with their probabilities: every term is exact."""
    law, truth, distance = predictors()[name], mode_law(), hamming_distance()
    masks = mode_masks(switch_regions(rng, 3))
    result = segmentation.ged(
        sampled(masks),
        graded(masks),
        classes=list(ALL),
        empty=np.nan,
        grader_weights=weights(truth, "grader"),
        sample_weights=weights(law, "draw"),
    )
    own, grader, cross = law @ distance @ law, truth @ distance @ truth, law @ distance @ truth
    np.testing.assert_allclose(result["sample_sample"], own, atol=1e-12)
    np.testing.assert_allclose(result["grader_grader"], grader, atol=1e-12)
    np.testing.assert_allclose(result["biased"], 2 * cross - own - grader, atol=1e-12)
    np.testing.assert_allclose(result["unbiased"], result["biased"], atol=1e-12)
    np.testing.assert_allclose(result["floor"], 0, atol=1e-12)


@pytest.mark.parametrize("number", [1, 4, 16])
@pytest.mark.parametrize("name", ["perfect", "uniform", "deterministic"])
def test_finite_samples_add_their_diversity_over_n(
    name: str, number: int, rng: np.random.Generator
) -> None:
    """E biased = 2 E d(S, Y) - (1 - 1/n) E d(S, S') - D: D / n for a perfect sampler."""
    law, truth, distance = predictors()[name], mode_law(), hamming_distance()
    regions = switch_regions(rng, 400)
    result = segmentation.ged(
        sampled(draw_modes(rng, regions, number, law)),
        graded(mode_masks(regions)),
        classes=list(ALL),
        empty=np.nan,
        grader_weights=truth,
    )
    own, grader, cross = law @ distance @ law, truth @ distance @ truth, law @ distance @ truth
    expected = 2 * cross - (1 - 1 / number) * own - grader
    if name == "perfect":
        assert expected == pytest.approx(grader / number)
    spread = float(result["biased_se"])
    assert abs(float(result["biased_mean"]) - expected) <= Z * spread + 1e-12
    np.testing.assert_allclose(result["floor"], grader / number, atol=1e-12)
    if number > 1:
        unbiased = 2 * cross - own - grader
        error = float(result["unbiased_se"])
        assert abs(float(result["unbiased_mean"]) - unbiased) <= Z * error + 1e-12


def test_pixel_wise_flips_pay_for_incoherence(rng: np.random.Generator) -> None:
    """Samples that switch every pixel on its own: each region shows both classes.

    With r the switching rate, class c has IoU 1 - r or 0 with a grader, its alternative 0 or r,
    and two samples have IoU (1 - r) / (1 + r) and r / (2 - r): limits for large regions.
    """
    truth, distance, number = mode_law(), hamming_distance(), 8
    regions = switch_regions(rng, 40, size=100)
    own = 1 - ((1 - RATES) / (1 + RATES) + RATES / (2 - RATES)).sum() / 10
    expected_iou = ((1 - RATES) ** 2 + RATES**2).sum() / 10
    grader = truth @ distance @ truth
    noise = rng.random((40, number, 100, 100)) < np.concatenate([[0], RATES])[regions][:, None]
    result = segmentation.ged(
        sampled(regions[:, None] + 5 * noise),
        graded(mode_masks(regions)),
        classes=list(ALL),
        empty=np.nan,
        grader_weights=truth,
    )
    expected = 2 * (1 - expected_iou) - (1 - 1 / number) * own - grader
    # The narrowest band has 100 pixels: ratios are off by a share of order 1 / 100.
    assert float(result["biased_mean"]) == pytest.approx(expected, abs=0.01)
    assert expected > 4 * grader / number


def test_four_graders_have_a_floor_no_model_beats(rng: np.random.Generator) -> None:
    """n samples and 4 graders of one law: biased D (1/4 + 1/n), unbiased 0, floor D_V / 3 at least.

    Sampling the four test masks themselves scores far below it: a leak, not a better model.
    """
    cases, number, law, distance = 600, 25, mode_law(), hamming_distance()
    regions = switch_regions(rng, cases)
    graders = draw_modes(rng, regions, 4, law)
    options: dict[str, Any] = {"classes": list(ALL), "empty": np.nan}
    result = segmentation.ged(
        sampled(draw_modes(rng, regions, number, law)), graded(graders), **options
    )
    floor = (law @ distance @ law) * (1 / 4 + 1 / number)
    for name, expected in (("biased", floor), ("floor", floor), ("unbiased", 0.0)):
        off = abs(float(result[f"{name}_mean"]) - expected)
        assert off < Z * float(result[f"{name}_se"]), name
    gap = result["biased"] - result["floor"]
    assert abs(float(gap.mean())) < Z * float(gap.std(ddof=1)) / cases**0.5
    np.testing.assert_allclose(
        result["grader_grader"] * 4 / 3, result["grader_grader_unbiased"], atol=1e-12
    )
    least = result["grader_grader"] / 3
    np.testing.assert_allclose(least, result["floor"] / (1 / 4 + 1 / number) / 4, atol=1e-12)
    picked = rng.integers(0, 4, (cases, number))
    leaked = segmentation.ged(
        sampled(graders[np.arange(cases)[:, None], picked]), graded(graders), **options
    )
    assert float(leaked["biased_mean"]) < 0.25 * float(least.mean())


def test_exact_samples_leave_only_the_graders_share(rng: np.random.Generator) -> None:
    law, distance = mode_law(), hamming_distance()
    regions = switch_regions(rng, 400)
    result = segmentation.ged(
        sampled(mode_masks(regions)),
        graded(draw_modes(rng, regions, 4, law)),
        classes=list(ALL),
        empty=np.nan,
        sample_weights=weights(law, "draw"),
    )
    floor = law @ distance @ law / 4
    for name, expected in (("biased", floor), ("floor", floor), ("unbiased", 0.0)):
        assert abs(float(result[f"{name}_mean"]) - expected) < Z * float(result[f"{name}_se"])


def smoothed(small: float, *, above: bool) -> Callable[[int, int], float]:
    return lambda both, union: (both + small * above) / (union + small)


PUBLISHED: dict[str, tuple[Callable[[int, int], float], float]] = {
    # code: (its IoU of a class from intersection and union, the value of `empty` that matches)
    "PHiSeg": (lambda both, union: both / union if union else 1.0, 1.0),
    "SSN, CCDM": (lambda both, union: 1.0 if union == 0 else both / union, 1.0),
    "MoSE on LIDC": (smoothed(1e-8, above=True), 1.0),
    "D-Persona, smoothed": (smoothed(1e-6, above=True), 1.0),
    "D-Persona, energy distance": (smoothed(1e-8, above=False), 0.0),
    "Kohl, MoSE on Cityscapes": (lambda both, union: both / union if union else np.nan, np.nan),
}


@pytest.mark.parametrize("code", PUBLISHED)
def test_conventions_of_published_code(code: str) -> None:
    """Class 1 is absent from both masks, class 2 overlaps by a half, class 3 is absent too."""
    iou, empty = PUBLISHED[code]
    first, second = np.zeros((2, 4, 4), int)
    first[0, :2], second[0, 1] = 2, 2
    expected = 1 - np.nanmean([iou(0, 0), iou(1, 2), iou(0, 0)])
    result = segmentation.ged(
        sampled(first[None, None]), graded(second[None, None]), classes=[1, 2, 3], empty=empty
    )
    assert float(result["sample_grader"][0]) == pytest.approx(expected, abs=1e-5)


def test_both_masks_empty() -> None:
    """Agreement on absence is distance 0, or no distance at all, or (a known fault) distance 1."""
    nothing = np.zeros((2, 3, 4, 4), int)
    nothing[1, :, 0, 0] = 1
    arrays = sampled(nothing), graded(nothing)
    agreed = segmentation.ged(*arrays, classes=[1])
    np.testing.assert_array_equal(agreed["biased"], [0, 0])
    left_out = segmentation.ged(*arrays, classes=[1], empty=np.nan)
    np.testing.assert_array_equal(left_out["biased"], [np.nan, 0])
    assert left_out["biased_mean"].attrs["num_undefined"] == 1
    assert float(left_out["biased_mean"]) == 0
    faulty = segmentation.ged(*arrays, classes=[1], empty=0.0)
    np.testing.assert_array_equal(faulty["sample_grader"], [1, 0])


def test_floor_holds_also_where_a_mask_is_apart_from_itself(rng: np.random.Generator) -> None:
    """empty=0 gives d(empty, empty) = 1, and the diagonal no longer vanishes."""
    masks = random_masks(rng, (4000, 3, 1, 2), 2, empty=0.5)
    graders = random_masks(rng, (4000, 4, 1, 2), 2, empty=0.5)
    result = segmentation.ged(sampled(masks), graded(graders), classes=[1], empty=0.0)
    gap = result["biased"] - result["floor"]
    assert abs(float(gap.mean())) < Z * float(gap.std(ddof=1)) / 4000**0.5


def test_one_grader_or_one_sample_has_no_unbiased_figure(rng: np.random.Generator) -> None:
    masks, graders = random_masks(rng, (2, 3, 4, 4), 2), random_masks(rng, (2, 3, 4, 4), 2)
    graders[0, 1:] = -1
    result = segmentation.ged(sampled(masks), graded(graders), classes=[1])
    for name in ("unbiased", "floor", "grader_grader_unbiased"):
        assert np.isnan(float(result[name][0])), name
        assert np.isfinite(float(result[name][1])), name
    alone = loops(masks[0], graders[0, :1], [1], 1.0)
    assert float(result["biased"][0]) == pytest.approx(alone["biased"], abs=1e-12)
    assert result["num_graders"].values.tolist() == [1, 3]
    assert "one grader" in result.attrs["undefined"]
    single = segmentation.ged(sampled(masks[:, :1]), graded(graders), classes=[1])
    assert np.isnan(single["unbiased"]).all()
    assert np.isfinite(single["floor"][1])


def test_pixels_without_annotation_do_not_count(rng: np.random.Generator) -> None:
    masks, graders = random_masks(rng, (5, 4, 5, 6), 3), random_masks(rng, (5, 3, 5, 6), 3)
    kept = segmentation.ged(sampled(masks[..., :4]), graded(graders[:, :, :, :4]), classes=[1, 2])
    graders[:, 0, :, 4] = -1
    graders[:, 2, :, 5] = -1
    missing = np.full((5, 1, 5, 6), -1)
    result = segmentation.ged(
        sampled(masks), graded(np.concatenate([graders, missing], axis=1)), classes=[1, 2]
    )
    xr.testing.assert_allclose(result, kept)
    graders[1] = -1
    graders[2, 0], graders[2, 1] = np.eye(5, 6, dtype=int) - 1, -np.eye(5, 6, dtype=int)
    result = segmentation.ged(sampled(masks), graded(graders), classes=[1, 2])
    assert result["biased"].isnull().values.tolist() == [False, True, True, False, False]
    assert result["num_graders"].values.tolist() == [3, 0, 3, 3, 3]


def test_invariances(rng: np.random.Generator) -> None:
    """Order of samples, graders and pixels, chains against draws, names and relabelling."""
    masks, graders = random_masks(rng, (3, 6, 4, 5), 3), random_masks(rng, (3, 4, 4, 5), 3)
    base = segmentation.ged(sampled(masks), graded(graders), classes=[1, 2])
    order = rng.permutation(20)
    pixels = [m.reshape(*m.shape[:2], 20)[:, :, order].reshape(m.shape) for m in (masks, graders)]
    relabel = np.array([0, 2, 1])
    for other in (
        segmentation.ged(sampled(masks[:, ::-1]), graded(graders[:, ::-1]), classes=[1, 2]),
        segmentation.ged(sampled(masks, chains=3), graded(graders), classes=[2, 1]),
        segmentation.ged(sampled(pixels[0]), graded(pixels[1]), classes=[1, 2]),
        segmentation.ged(sampled(relabel[masks]), graded(relabel[graders]), classes=[1, 2]),
        segmentation.ged(tree_of(sampled(masks), graded(graders), 3)),
        segmentation.ged(tree_of(sampled(masks), graded(graders), 3), classes=["class 1", 2]),
    ):
        xr.testing.assert_allclose(other, base)
    twice = segmentation.ged(
        sampled(masks[:, [0, 0, 1, 2, 3, 4, 5]]),
        graded(graders),
        classes=[1, 2],
        sample_weights=weights(np.array([1, 1, 2, 2, 2, 2, 2]) / 12, "draw"),
        grader_weights=np.full(4, 0.25),
    )
    np.testing.assert_allclose(twice["biased"], base["biased"], atol=1e-12)
    swapped = segmentation.ged(sampled(graders), graded(masks), classes=[1, 2])
    np.testing.assert_allclose(swapped["biased"], base["biased"], atol=1e-12)
    np.testing.assert_allclose(swapped["unbiased"], base["unbiased"], atol=1e-12)
    equal = segmentation.ged(sampled(masks), graded(masks), classes=[1, 2])
    np.testing.assert_allclose(equal["biased"], 0, atol=1e-12)


def test_weights_per_case_are_those_of_the_case(rng: np.random.Generator) -> None:
    masks, graders = random_masks(rng, (4, 3, 4, 4), 2), random_masks(rng, (4, 5, 4, 4), 2)
    p, q = rng.dirichlet(np.ones(3), 4), rng.dirichlet(np.ones(5), 4)
    q[1, 2] = 0
    q[1] /= q[1].sum()
    graders[1, 2] = -1
    result = segmentation.ged(
        sampled(masks),
        graded(graders),
        classes=[1],
        sample_weights=xr.DataArray(p[:, None], dims=("case", "chain", "draw")),
        grader_weights=xr.DataArray(q.T, dims=("grader", "case")),
    )
    for case in range(4):
        both = [*masks[case], *graders[case]]
        distance = 1 - np.array([[brute_iou(a, b, [1], 1.0) for a in both] for b in both])
        signed = np.concatenate([p[case], -q[case]])
        expected = -signed @ distance @ signed
        assert float(result["biased"][case]) == pytest.approx(expected, abs=1e-12)


def test_a_mode_without_weight_is_not_part_of_the_law(rng: np.random.Generator) -> None:
    masks, graders = np.ones((1, 2, 3, 3), int), np.ones((1, 3, 3, 3), int)
    graders[0, 2] = 0
    graders[0, 1] = -1
    law = np.array([1.0, 0, 0])
    result = segmentation.ged(
        sampled(masks), graded(graders), classes=[1], empty=np.nan, grader_weights=law
    )
    assert float(result["biased"][0]) == float(result["floor"][0]) == 0


def test_draws_and_modes_are_told_apart(rng: np.random.Generator) -> None:
    masks = random_masks(rng, (3, 4, 4, 4), 2, empty=0)
    tree = tree_of(sampled(masks), graded(masks), 2, other=1)
    drawn = segmentation.ged(tree, samples="draw")
    assert float(drawn["sample_sample"].max()) == 0
    assert float(segmentation.ged(tree)["biased_mean"]) == pytest.approx(0, abs=1e-12)
    expected = 1 - (masks == 1).mean((2, 3))
    np.testing.assert_allclose(drawn["sample_grader"], expected.mean(1), atol=1e-12)


def test_diversity_is_the_sample_term(rng: np.random.Generator) -> None:
    masks = random_masks(rng, (4, 6, 5, 5), 3)
    result = segmentation.diversity(sampled(masks, chains=3), classes=[1, 2])
    energy = segmentation.ged(sampled(masks), graded(masks), classes=[1, 2])
    np.testing.assert_allclose(result["biased"], energy["sample_sample"], atol=1e-12)
    np.testing.assert_allclose(result["unbiased"], energy["sample_sample_unbiased"], atol=1e-12)
    assert float(segmentation.diversity(sampled(masks[:, [0] * 4]), classes=[1])["biased"][0]) == 0
