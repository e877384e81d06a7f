"""Matched and best overlaps, collective insight and NCC, against loops over the definitions."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from scipy.special import softmax
from segmentation_trees import (
    Z,
    brute_dice,
    brute_iou,
    certain_probs,
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
from ppl_med.analysis.segmentation import matching


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


def every_matching(pairs: np.ndarray) -> float:
    """The best mean over all permutations of the sets repeated to their common multiple."""
    copies = math.lcm(*pairs.shape)
    square = pairs.repeat(copies // len(pairs), 0).repeat(copies // pairs.shape[1], 1)
    rows = np.arange(copies)
    return max(square[rows, list(order)].mean() for order in itertools.permutations(rows))


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (2, 2), (2, 3), (3, 2), (2, 6), (4, 2), (3, 3)])
def test_matching_tries_every_permutation(shape: tuple[int, int], rng: np.random.Generator) -> None:
    for _ in range(5):
        pairs = rng.random(shape)
        assert matching.matched_mean(pairs) == pytest.approx(every_matching(pairs), abs=1e-12)


@pytest.mark.parametrize("shape", [(5, 3), (7, 4), (16, 4), (4, 4)])
def test_matching_is_optimal_transport(shape: tuple[int, int], rng: np.random.Generator) -> None:
    """Equal weights as weights, and weights as repeated masks, give the same value."""
    pairs = rng.random(shape)
    p, q = (np.full(size, 1 / size) for size in shape)
    assert matching.matched_mean(pairs) == pytest.approx(
        matching.matched_mean(pairs, p, q), abs=1e-9
    )
    copies = rng.integers(0, 4, shape[0]) + (np.arange(shape[0]) == 0)
    repeated = pairs.repeat(copies, 0)
    assert matching.matched_mean(repeated) == pytest.approx(
        matching.matched_mean(pairs, copies / copies.sum(), None), abs=1e-9
    )


def test_large_sets_need_no_large_matrix(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    pairs = rng.random((31, 7))
    square = matching.matched_mean(pairs)
    monkeypatch.setattr(matching, "_LARGEST_SQUARE", 10)
    assert matching.matched_mean(pairs) == pytest.approx(square, abs=1e-9)
    assert matching.matched_mean(rng.random((97, 89))) > 0.9  # 8633 copies: 600 MB if squared


def test_a_pair_without_overlap_leaves_the_case_undefined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    masks = np.ones((2, 3, 4, 4), int)
    masks[0, 0] = 0
    result = segmentation.hungarian(sampled(masks), graded(masks), classes=[1], empty=np.nan)
    np.testing.assert_array_equal(result["iou"], [np.nan, 1])
    assert result["iou_mean"].attrs["num_undefined"] == 1
    assert float(segmentation.hungarian(sampled(masks), graded(masks), classes=[1])["iou"][0]) == 1
    monkeypatch.setattr(matching, "_LARGEST_SQUARE", 1)
    assert np.isnan(matching.matched_mean(np.array([[1.0, np.nan], [0.5, 1.0]])))


@pytest.mark.parametrize("overlap", ["iou", "dice"])
def test_hungarian_matches_by_overlap(overlap: str, rng: np.random.Generator) -> None:
    brute = {"iou": brute_iou, "dice": brute_dice}[overlap]
    masks, graders = random_masks(rng, (4, 3, 4, 4), 3), random_masks(rng, (4, 2, 4, 4), 3)
    result = segmentation.hungarian(
        sampled(masks),
        graded(graders),
        classes=[1, 2],
        overlap=overlap,
    )
    for case in range(4):
        pairs = np.array([[brute(a, b, [1, 2], 1.0) for b in graders[case]] for a in masks[case]])
        assert float(result[overlap][case]) == pytest.approx(every_matching(pairs), abs=1e-12)
    assert float(result[f"{overlap}_mean"]) == pytest.approx(float(result[overlap].mean()))


def test_matching_rises_slowly_for_a_perfect_sampler_and_a_rectangle_fast(
    rng: np.random.Generator,
) -> None:
    """The two metrics of one name: all samples count, or only the best m of n."""
    distance, law = hamming_distance(), mode_law()
    means = {}
    for number in (4, 16, 100):
        values = []
        for _ in range(150):
            samples, graders = rng.choice(32, number, p=law), rng.choice(32, 4, p=law)
            pairs = 1 - distance[np.ix_(samples, graders)]
            rows, columns = matching.linear_sum_assignment(pairs, maximize=True)
            values.append((matching.matched_mean(pairs), pairs[rows, columns].mean()))
        means[number] = np.mean(values, axis=0)
    assert means[4][0] == pytest.approx(means[4][1], abs=1e-12)
    assert means[4][0] < means[16][0] < means[100][0] < 0.85
    assert means[100][1] > 0.95
    regions = switch_regions(rng, 150)
    picked, truth = rng.choice(32, (150, 16), p=law), rng.choice(32, (150, 4), p=law)
    result = segmentation.hungarian(
        sampled(switch(regions, mode_bits()[picked])),
        graded(switch(regions, mode_bits()[truth])),
        classes=list(range(1, 11)),
        empty=np.nan,
    )
    error = float(result["iou_se"]) * 2**0.5
    assert abs(float(result["iou_mean"]) - means[16][0]) < Z * error


def test_weighted_matching_with_exact_modes(rng: np.random.Generator) -> None:
    """The law of the modes on both sides matches itself; one sample matches by expectation."""
    masks, law = mode_masks(switch_regions(rng, 2)), mode_law()
    options: dict[str, Any] = {"classes": list(range(1, 11)), "empty": np.nan}
    exact = xr.DataArray(law, dims="draw").expand_dims("chain")
    both = segmentation.hungarian(
        sampled(masks), graded(masks), grader_weights=law, sample_weights=exact, **options
    )
    np.testing.assert_allclose(both["iou"], 1, atol=1e-9)
    single = segmentation.hungarian(
        sampled(masks[:, :1]), graded(masks), grader_weights=law, **options
    )
    np.testing.assert_allclose(single["iou"], 1 - law @ hamming_distance()[0], atol=1e-9)


def test_best_matches_are_their_definitions(rng: np.random.Generator) -> None:
    masks, graders = random_masks(rng, (5, 6, 5, 4), 3), random_masks(rng, (5, 3, 5, 4), 3)
    graders[2, 1] = -1
    precise = segmentation.dice_max(sampled(masks, chains=2), graded(graders), classes=[1, 2])
    complete = segmentation.d_max(sampled(masks, chains=2), graded(graders), classes=[1, 2])
    for case in range(5):
        present = [mask for mask in graders[case] if (mask >= 0).all()]
        pairs = np.array([[brute_dice(a, b, [1, 2], 1.0) for b in present] for a in masks[case]])
        assert float(precise["dice_max"][case]) == pytest.approx(pairs.max(1).mean(), abs=1e-12)
        assert float(complete["d_max"][case]) == pytest.approx(pairs.max(0).mean(), abs=1e-12)
    fewer = segmentation.d_max(sampled(masks[:, :3]), graded(graders), classes=[1, 2])
    assert bool((fewer["d_max"] <= complete["d_max"]).all())


def test_oracle_iou_compares_grader_by_grader(rng: np.random.Generator) -> None:
    graders = random_masks(rng, (4, 3, 5, 4), 3)
    rebuilt = random_masks(rng, (4, 3, 5, 4), 3)
    rebuilt[0] = graders[0]
    graders[1, 2, 0], graders[2, 1] = -1, -1
    tree = tree_of(sampled(graders.clip(0)), graded(graders), 3)
    result = segmentation.oracle_iou(tree, graded(rebuilt))
    assert result["iou_per_grader"][0].values.tolist() == [1, 1, 1]
    partly = brute_iou(rebuilt[1, 2, 1:], graders[1, 2, 1:], [1, 2], 1.0)
    assert float(result["iou_per_grader"][1, 2]) == pytest.approx(partly, abs=1e-12)
    assert np.isnan(result["iou_per_grader"][2, 1])
    whole = [brute_iou(rebuilt[2, g], graders[2, g], [1, 2], 1.0) for g in (0, 2)]
    assert float(result["iou"][2]) == pytest.approx(np.mean(whole), abs=1e-12)
    with pytest.raises(ValueError, match="every grader"):
        segmentation.oracle_iou(tree, graded(rebuilt[:, :2]))


@pytest.mark.parametrize("samples", ["probs", "mode", "draw"])
def test_soft_dice_cuts_both_means(samples: str, rng: np.random.Generator) -> None:
    masks, graders = random_masks(rng, (3, 5, 4, 4), 3), random_masks(rng, (3, 4, 4, 4), 3)
    tree = tree_of(sampled(masks), graded(graders), 3, other=2)
    result = segmentation.soft_dice(tree, samples=samples)
    assert result["dice"].dims == ("case", "threshold")
    for case in range(3):
        for index, level in enumerate((0.1, 0.3, 0.5, 0.7, 0.9)):
            dice = []
            for number in (1, 2):
                given = (masks[case] == number).mean(0)
                if samples == "probs":
                    given = 0.05 + 0.85 * given
                if samples == "draw":
                    given = np.full(given.shape, float(number == 2))
                truth = (graders[case] == number).mean(0)
                dice.append(brute_dice(given > level, truth > level, [1], 1.0))
            assert float(result["dice"][case, index]) == pytest.approx(np.mean(dice), abs=1e-12)
    mean = result["dice"].mean("threshold")
    np.testing.assert_allclose(result["dice_over_thresholds"], mean, atol=1e-12)


def test_soft_dice_leaves_out_what_no_grader_saw(rng: np.random.Generator) -> None:
    masks, graders = random_masks(rng, (2, 5, 4, 6), 2), random_masks(rng, (2, 3, 4, 6), 2)
    kept = segmentation.soft_dice(
        sampled(masks[..., :4]), graded(graders[..., :4]), samples="mode", classes=[1]
    )
    graders[:, 1, :, 4:] = -1
    absent = np.full((2, 1, 4, 6), -1)
    more = graded(np.concatenate([graders, absent], axis=1))
    result = segmentation.soft_dice(sampled(masks), more, samples="mode", classes=[1])
    xr.testing.assert_allclose(result, kept)
    nobody = segmentation.soft_dice(sampled(masks), graded(absent), samples="mode", classes=[1])
    assert np.isnan(nobody["dice"]).all()


def insight(masks: np.ndarray, graders: np.ndarray) -> dict[str, float]:
    """The parts of the collective insight of binary masks, as the paper writes them."""

    def variances(group: np.ndarray) -> list[float]:
        return [np.var(a.astype(int) - b) for a, b in itertools.combinations(group, 2)]

    wanted, given = graders.any(0), masks.any(0)
    sensitivity = 1.0 if not (wanted | given).any() else 0.0
    if wanted.any():
        sensitivity = (wanted & given).sum() / wanted.sum()
    best = np.mean([max(brute_dice(m, g, [1], 1.0) for m in masks) for g in graders])
    ours, theirs = variances(masks), variances(graders)
    gap = abs(min(ours) - min(theirs)) + abs(max(ours) - max(theirs))
    parts = {"sensitivity": sensitivity, "d_max": float(best), "agreement": 1 - gap / 2}
    s, d, a = parts.values()
    return {
        **parts,
        "released": 3 * s * d * a / (s + d + a),
        "harmonic": float(stats.hmean([s, d, a])) if min(s, d, a) > 0 else 0.0,
    }


def test_collective_insight_is_its_definition(rng: np.random.Generator) -> None:
    masks, graders = random_masks(rng, (8, 5, 4, 4), 2), random_masks(rng, (8, 3, 4, 4), 2)
    masks[0], graders[0] = 0, 0
    masks[1], graders[1] = 1, 0
    masks[2], graders[2] = 0, 1
    result = segmentation.collective_insight(sampled(masks), graded(graders), classes=[1])
    for case in range(8):
        for name, value in insight(masks[case], graders[case]).items():
            assert float(result[name][case]) == pytest.approx(value, abs=1e-12), (case, name)


def test_collective_insight_of_classes_averages_the_parts(rng: np.random.Generator) -> None:
    masks, graders = random_masks(rng, (3, 4, 4, 4), 3, 0), random_masks(rng, (3, 3, 4, 4), 3, 0)
    result = segmentation.collective_insight(sampled(masks), graded(graders), classes=[1, 2])
    for case in range(3):
        parts = [insight(masks[case] == c, graders[case] == c) for c in (1, 2)]
        for name in ("sensitivity", "agreement"):
            mean = np.mean([part[name] for part in parts])
            assert float(result[name][case]) == pytest.approx(mean, abs=1e-12)
    alone = segmentation.collective_insight(sampled(masks), graded(graders[:, :1]), classes=[1])
    assert np.isnan(alone["released"]).all()
    assert np.isnan(alone["harmonic"]).all()
    assert np.isfinite(alone["sensitivity"]).all()


def test_the_released_score_is_no_harmonic_mean() -> None:
    """Equal parts of 0.9 give 0.81 by the released formula and 0.9 by the harmonic mean."""
    part = 0.9
    assert 3 * part**3 / (3 * part) == pytest.approx(0.81)
    truth = np.ones((1, 2, 1, 19), int)
    found = np.concatenate([np.ones(9, int), np.zeros(10, int)])[None, None, None].repeat(2, 1)
    result = segmentation.collective_insight(sampled(found), graded(truth), classes=[1])
    s, d = 9 / 19, 18 / 28
    assert float(result["released"][0]) == pytest.approx(3 * s * d / (s + d + 1))
    assert float(result["harmonic"][0]) == pytest.approx(3 / (1 / s + 1 / d + 1))


def random_probs(rng: np.random.Generator, shape: tuple[int, ...], classes: int) -> xr.DataArray:
    values = softmax(2 * rng.normal(size=(*shape[:3], classes, *shape[3:])), axis=3)
    dims = ("chain", "draw", "case", "class", "row", "col")
    return xr.DataArray(values, {"case": [f"patient-{i}" for i in range(shape[2])]}, dims)


def test_ncc_is_its_definition(rng: np.random.Generator) -> None:
    probs = random_probs(rng, (2, 3, 4, 5, 6), 3)
    graders = rng.integers(0, 3, (4, 3, 5, 6))
    graders[1, 0, :2] = -1
    graders[2, 2] = -1
    result = segmentation.ncc(probs, graded(graders))
    flat = probs.stack(sample=("chain", "draw")).transpose("sample", "case", ...).values
    for case in range(4):
        draws = flat[:, case]
        mean = draws.mean(0)
        own = np.mean([-(mean * np.log(p + 1e-8)).sum(0) for p in draws], axis=0)
        values = []
        for grader in graders[case]:
            known = grader >= 0
            hot = (grader == np.arange(3)[:, None, None]).astype(float)
            cross = np.mean([-(hot * np.log(p + 1e-8)).sum(0) for p in draws], axis=0)
            if known.any():
                values.append(stats.pearsonr(own[known], cross[known]).statistic)
        assert float(result["ncc"][case]) == pytest.approx(np.mean(values), abs=1e-10)
    assert np.isnan(result["ncc_per_grader"][2, 2])


def test_ncc_needs_uncertainty_that_varies(rng: np.random.Generator) -> None:
    graders = rng.integers(0, 2, (2, 3, 4, 4))
    flat = xr.full_like(random_probs(rng, (1, 4, 2, 4, 4), 2), 0.5)
    result = segmentation.ncc(flat, graded(graders))
    assert np.isnan(result["ncc"]).all()
    assert result["ncc_mean"].attrs["num_undefined"] == 2
    with pytest.raises(ValueError, match="needs class probabilities"):
        segmentation.ncc(sampled(graders), graded(graders))
    with pytest.raises(ValueError, match="offset must be a finite number above 0"):
        segmentation.ncc(flat, graded(graders), offset=0)


def test_ncc_finds_where_graders_disagree(rng: np.random.Generator) -> None:
    """Right half undecided in samples and graders alike; a map of the wrong half is negative."""
    right = np.zeros((8, 8), bool)
    right[:, 4:] = True
    noise = rng.integers(0, 2, (1, 60, 8, 8))
    masks = sampled(np.where(right, noise[:, :50], 1))
    agree = graded(np.where(right, noise[:, 50:], 1))
    other = graded(np.where(right[:, ::-1], noise[:, 50:], 1))
    probs = certain_probs(masks, 2, peak=0.99)
    assert float(segmentation.ncc(probs, agree)["ncc"][0]) > 0.9
    assert float(segmentation.ncc(probs, other)["ncc"][0]) < 0.9
