"""Mode frequencies and switched regions of generators whose law is known."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from segmentation_trees import (
    RATES,
    SWITCHES,
    Z,
    brute_iou,
    case_ids,
    graded,
    mode_bits,
    mode_law,
    mode_masks,
    random_masks,
    sampled,
    switch,
    switch_regions,
)

from ppl_med.analysis import segmentation
from ppl_med.analysis.segmentation import frequencies

ALL = list(range(1, 11))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def regions_array(regions: np.ndarray) -> xr.DataArray:
    return xr.DataArray(regions, {"case": case_ids(len(regions))}, ("case", "row", "col"))


def test_samples_go_to_the_nearest_mode(rng: np.random.Generator) -> None:
    masks, known = random_masks(rng, (6, 9, 9, 9), 3, 0), random_masks(rng, (6, 4, 9, 9), 3, 0)
    result = segmentation.modes(sampled(masks, chains=3), graded(known, "mode"), classes=[1, 2])
    count, least = np.zeros((6, 4)), np.zeros((6, 9))
    for case, sample in np.ndindex(6, 9):
        gaps = [1 - brute_iou(masks[case, sample], mode, [1, 2], 1.0) for mode in known[case]]
        count[case, int(np.argmin(gaps))] += 1
        least[case, sample] = min(gaps)
    np.testing.assert_array_equal(result["count"], count)
    np.testing.assert_allclose(result["frequency"], count.sum(0) / 54, atol=1e-12)
    np.testing.assert_allclose(result["distance"], least.mean(1), atol=1e-12)
    np.testing.assert_allclose(
        result["frequency_se"], (count / 9).std(0, ddof=1) / 6**0.5, atol=1e-12
    )
    assert float(result["tied"].max()) == 0


def test_a_perfect_sampler_has_the_frequencies_of_the_truth(rng: np.random.Generator) -> None:
    cases, number = 400, 8
    regions, law = switch_regions(rng, cases), mode_law()
    picked = rng.choice(32, (cases, number), p=law)
    result = segmentation.modes(
        sampled(switch(regions, mode_bits()[picked])),
        graded(mode_masks(regions), "mode"),
        law,
        classes=ALL,
        empty=np.nan,
    )
    np.testing.assert_array_equal(result["count"].sum("case"), np.bincount(picked.ravel()))
    assert float(result["distance"].max()) == 0
    # 2 N KL is chi-square with 31 degrees of freedom, up to terms of order 1 / N
    assert 2 * 3200 * float(result["kl_empirical_true"]) < stats.chi2.isf(1e-6, 31)
    assert float(result["kl_empirical_true_perfect"]) == pytest.approx(31 / (2 * 3200))
    frequency = result["frequency"].values
    assert float(result["kl_empirical_true"]) == pytest.approx(stats.entropy(frequency, law))
    assert float(result["kl_true_empirical"]) == pytest.approx(stats.entropy(law, frequency))
    expected = np.abs(frequency - law).sum() / 2
    assert float(result["total_variation"]) == pytest.approx(expected)
    assert f"{stats.entropy(law):.4f} nats" in result["probability"].attrs["note"]
    assert int(result["modes_found"]) == 32


def test_perfect_values_are_the_means_over_replications(rng: np.random.Generator) -> None:
    law, number = np.array([0.5, 0.3, 0.2]), 2000
    found = [
        frequencies.compare(counts[None].astype(float), law[None])
        for counts in rng.multinomial(number, law, 1000)
    ]
    for name in ("kl_empirical_true", "total_variation"):
        values = np.array([float(one[name]) for one in found])
        perfect = float(found[0][f"{name}_perfect"])
        error = values.std(ddof=1) / len(values) ** 0.5
        assert abs(values.mean() - perfect) < Z * error + 0.01 * perfect, name


def test_errors_over_cases_are_the_spread_over_replications(rng: np.random.Generator) -> None:
    """Cases with frequencies of their own, away from the truth: first-order errors hold."""
    law, mean, cases = np.array([0.5, 0.3, 0.2]), np.array([2.0, 5.0, 3.0]), 200
    found = []
    for _ in range(800):
        own = rng.dirichlet(mean, cases)
        counts = rng.multinomial(16, own).astype(float)
        found.append(frequencies.compare(counts, np.broadcast_to(law, counts.shape)))
    for name in ("kl_empirical_true", "kl_true_empirical", "total_variation"):
        spread = np.std([float(one[name]) for one in found], ddof=1)
        claimed = np.mean([float(one[f"{name}_se"]) for one in found])
        # the sd of 800 replications is known to 2.5 %; six standard errors and the second order
        assert claimed == pytest.approx(spread, rel=0.18), name


def styles(rng: np.random.Generator, cases: int) -> tuple[np.ndarray, np.ndarray]:
    """Bars of width 0, 2, 4 or 7, with probabilities that depend on the case."""
    known = np.arange(8) < np.array([0, 2, 4, 7])[:, None]
    masks = np.broadcast_to(known[None, :, None].astype(int), (cases, 4, 1, 8)).copy()
    return masks, rng.dirichlet([1, 1, 2, 2], cases)


def draw_styles(rng: np.random.Generator, law: np.ndarray, number: int) -> np.ndarray:
    below = law.cumsum(1)[:, None, :3]
    return (rng.random((len(law), number))[..., None] > below).sum(-1)


def test_a_model_that_ignores_the_image_fails_case_by_case(rng: np.random.Generator) -> None:
    """Probabilities given the image: the marginal law alone passes the pooled test only."""
    cases, number = 1500, 16
    masks, law = styles(rng, cases)
    marginal = np.broadcast_to(law.mean(0), law.shape)
    for drawn, passes in ((law, True), (marginal, False)):
        picked = draw_styles(rng, drawn, number)
        result = segmentation.modes(
            sampled(masks[np.arange(cases)[:, None], picked]),
            graded(masks, "mode"),
            xr.DataArray(law, dims=("case", "mode")),
            classes=[1],
        )
        np.testing.assert_array_equal(result["count"][0], np.bincount(picked[0], minlength=4))
        np.testing.assert_allclose(result["probability"], law.mean(0), atol=1e-12)
        if passes:  # stratified samples: below 3 / (2 N) on average
            assert 2 * cases * number * float(result["kl_empirical_true"]) < stats.chi2.isf(1e-6, 3)
            assert float(result["kl_empirical_true_perfect"]) < 3 / (2 * cases * number)
        else:
            assert float(result["total_variation"]) < 0.02
        gap = result["kl_per_case"] - result["kl_per_case_perfect"]
        score = float(gap.mean()) / (float(gap.std(ddof=1)) / cases**0.5)
        assert (abs(score) < Z) is passes


def test_perfect_values_hold_for_probabilities_that_vary(rng: np.random.Generator) -> None:
    law, number = rng.dirichlet([1, 2, 3], 50), 40
    counts = rng.multinomial(number, law[None], (1000, 50)).astype(float)
    found = [frequencies.compare(one, law) for one in counts]
    for name in ("kl_empirical_true", "total_variation"):
        values = np.array([float(one[name]) for one in found])
        perfect = float(found[0][f"{name}_perfect"])
        error = values.std(ddof=1) / len(values) ** 0.5
        assert abs(values.mean() - perfect) < Z * error + 0.01 * perfect, name
    inside = np.array([frequencies.kl_per_case(one, law) for one in counts])
    error = inside[:, 0].std(0, ddof=1) / 1000**0.5
    assert (np.abs(inside[:, 0].mean(0) - inside[0, 1]) < Z * error).all()


def test_errors_hold_for_probabilities_that_vary(rng: np.random.Generator) -> None:
    """Cases are drawn together with their law; the model always draws the same wrong one."""
    found = []
    for _ in range(800):
        law = rng.dirichlet([2, 5, 3], 200)
        counts = rng.multinomial(16, np.broadcast_to([0.5, 0.3, 0.2], (200, 3))).astype(float)
        found.append(frequencies.compare(counts, law))
    for name in ("kl_empirical_true", "kl_true_empirical", "total_variation"):
        spread = np.std([float(one[name]) for one in found], ddof=1)
        claimed = np.mean([float(one[f"{name}_se"]) for one in found])
        assert claimed == pytest.approx(spread, rel=0.18), name


def test_a_collapsed_sampler_misses_modes() -> None:
    regions = switch_regions(np.random.default_rng(0), 5)
    masks = sampled(regions[:, None].repeat(4, 1))
    result = segmentation.modes(
        masks, graded(mode_masks(regions), "mode"), mode_law(), classes=ALL, empty=np.nan
    )
    assert int(result["modes_found"]) == 1
    assert float(result["kl_empirical_true"]) == pytest.approx(-np.log(mode_law()[0]))
    assert float(result["kl_true_empirical"]) == np.inf
    assert float(result["total_variation"]) == pytest.approx(1 - mode_law()[0])


def absent_class(rng: np.random.Generator, cases: int) -> np.ndarray:
    """Class 5 is absent from every second case: there each mask is two modes at once."""
    regions = switch_regions(rng, cases)
    regions[::2][regions[::2] == 5] = 2
    return regions


def test_ties_do_not_bias_the_frequencies_unless_asked_to(rng: np.random.Generator) -> None:
    cases, number, law = 1200, 4, mode_law()
    regions = absent_class(rng, cases)
    picked = rng.choice(32, (cases, number), p=law)
    masks = sampled(switch(regions, mode_bits()[picked]))
    known = graded(mode_masks(regions), "mode")
    rates = {}
    for ties in ("exclude", "proportional", "equal", "first"):
        result = segmentation.modes(masks, known, law, ties=ties, classes=ALL, empty=np.nan)
        assert float(result["tied_mean"]) == 0.5
        rates[ties] = float(result["frequency"].values @ mode_bits()[:, 4])
        counted = 0.5 if ties == "exclude" else 1.0
        assert float(result["count"].sum()) == pytest.approx(counted * cases * number)
    error = (RATES[4] * (1 - RATES[4]) / (cases * number / 2)) ** 0.5
    for ties, expected in {
        "exclude": RATES[4],
        "proportional": RATES[4],
        "equal": (RATES[4] + 0.5) / 2,
        "first": RATES[4] / 2,  # the published histogram
    }.items():
        assert abs(rates[ties] - expected) < Z * error, ties


def test_ties_are_shared_by_the_law_of_their_case() -> None:
    """Modes 0 and 1 are the same mask: a sample of it is split as the case says."""
    known = np.zeros((2, 3, 2, 2), int)
    known[:, :2, 0] = 1
    law = np.array([[0.6, 0.2, 0.2], [0.1, 0.4, 0.5]])
    result = segmentation.modes(
        sampled(known[:, [0, 1]]), graded(known, "mode"), law, ties="proportional", classes=[1]
    )
    np.testing.assert_allclose(result["count"], [[1.5, 0.5, 0], [0.4, 1.6, 0]], atol=1e-12)
    assert result["tied"].values.tolist() == [1, 1]


def test_ties_everywhere_leave_nothing_to_count(rng: np.random.Generator) -> None:
    regions = absent_class(rng, 4)[::2]
    masks, known = sampled(regions[:, None]), graded(mode_masks(regions), "mode")
    with pytest.raises(ValueError, match="Every sample is tied"):
        segmentation.modes(masks, known, classes=ALL, empty=np.nan)
    with pytest.raises(ValueError, match="needs probabilities"):
        segmentation.modes(masks, known, classes=ALL, ties="proportional")
    assert float(segmentation.modes(masks, known, classes=ALL, ties="equal")["count"].sum()) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ties": "last"}, "ties must be"),
        ({"probabilities": [0.5, 0.5]}, "one per mode"),
        ({"probabilities": [0.5, 0.2, 0.2]}, "sum to one"),
        ({"probabilities": [1.5, 0.5, -1.0]}, "non-negative"),
    ],
)
def test_malformed_modes_are_refused(change: dict, message: str, rng: np.random.Generator) -> None:
    masks, known = random_masks(rng, (2, 4, 3, 3), 2), random_masks(rng, (2, 3, 3, 3), 2)
    with pytest.raises(ValueError, match=message):
        segmentation.modes(sampled(masks), graded(known, "mode"), classes=[1], **change)
    with pytest.raises(ValueError, match=r"expected \(case, mode"):
        segmentation.modes(sampled(masks), graded(known), classes=[1])
    known[0, 1] = -1
    with pytest.raises(ValueError, match="undefined"):
        segmentation.modes(sampled(masks), graded(known, "mode"), classes=[1])


def test_coherent_samples_flip_whole_regions(rng: np.random.Generator) -> None:
    cases, number = 500, 8
    regions = switch_regions(rng, cases)
    bits = (rng.random((cases, number, 5)) < RATES).astype(int)
    result = segmentation.flips(
        sampled(switch(regions, bits), chains=2), regions_array(regions), SWITCHES, RATES
    )
    fraction = result["alternative_fraction"].stack(sample=("chain", "draw"))
    np.testing.assert_array_equal(fraction.transpose("case", "sample", "switch"), bits)
    assert float(result["consistency"].min()) == float(result["accuracy"].min()) == 1
    np.testing.assert_allclose(result["flip_mean"], bits.mean((0, 1)), atol=1e-12)
    error = (RATES * (1 - RATES) / (cases * number)) ** 0.5
    assert bool((np.abs(result["flip_mean"] - RATES) < Z * error).all())
    np.testing.assert_allclose(
        result["correlation"], np.corrcoef(bits.reshape(-1, 5).T), atol=1e-12
    )
    np.testing.assert_allclose(result["probability"], mode_law(), atol=1e-12)
    code = bits.reshape(-1, 5) @ [1, 2, 4, 8, 16]
    np.testing.assert_allclose(
        result["frequency"], np.bincount(code, minlength=32) / len(code), atol=1e-12
    )
    assert 2 * cases * number * float(result["kl_empirical_true"]) < stats.chi2.isf(1e-6, 31)
    assert result["mode"].values[1] == "10000"
    assert result["rate"].sel(switch="5") == RATES[4]
    agrees = segmentation.modes(
        sampled(switch(regions, bits)),
        graded(mode_masks(regions), "mode"),
        mode_law(),
        classes=ALL,
        empty=np.nan,
    )
    np.testing.assert_allclose(agrees["frequency"], result["frequency"], atol=1e-12)
    np.testing.assert_allclose(agrees["frequency_se"], result["frequency_se"], atol=1e-12)


def test_dependent_flips_show_in_the_correlation(rng: np.random.Generator) -> None:
    regions = switch_regions(rng, 100)
    bits = (rng.random((100, 4, 5)) < 0.5).astype(int)
    bits[..., 1], bits[..., 2], bits[..., 3] = bits[..., 0], 1 - bits[..., 0], 1
    result = segmentation.flips(sampled(switch(regions, bits)), regions_array(regions), SWITCHES)
    assert float(result["correlation"][0, 1]) == pytest.approx(1)
    assert float(result["correlation"][0, 2]) == pytest.approx(-1)
    assert np.isnan(result["correlation"][3]).all()
    assert "probability" not in result


def test_pixel_noise_is_inconsistent(rng: np.random.Generator) -> None:
    regions = switch_regions(rng, 30, size=40)
    noise = rng.random((30, 6, 40, 40)) < np.concatenate([[0], RATES])[regions][:, None]
    result = segmentation.flips(
        sampled(regions[:, None] + 5 * noise), regions_array(regions), SWITCHES
    )
    assert bool((result["consistency_mean"] < 0.8).all())
    mean = result["alternative_fraction"].mean(("chain", "draw", "case"))
    np.testing.assert_allclose(mean, RATES, atol=0.02)


def test_fractions_of_a_region_by_hand() -> None:
    regions = np.array([[[1, 1, 1, 1, 2, 2, -1]]])
    masks = np.array([[[[6, 6, 1, 3, 7, 2, 7]]], [[[6, 1, 1, 1, 3, 3, 1]]]]).transpose(1, 0, 2, 3)
    switches = {1: 6, 2: 7, 3: 8}
    result = segmentation.flips(sampled(masks), regions_array(regions), switches)
    fraction = result["alternative_fraction"].isel(chain=0, case=0).values
    np.testing.assert_allclose(fraction, [[2 / 3, 1 / 2, np.nan], [1 / 4, np.nan, np.nan]])
    np.testing.assert_allclose(result["consistency"][0], [(2 / 3 + 3 / 4) / 2, 1 / 2, np.nan])
    np.testing.assert_allclose(result["accuracy"][0], [(3 / 4 + 1) / 2, 1 / 2, np.nan])
    np.testing.assert_allclose(result["flip"][0], [1 / 2, 1 / 2, np.nan])
    assert float(result["undecided"]) == 1
    assert np.isnan(result["frequency"]).all()
    rated = segmentation.flips(
        sampled(masks), regions_array(regions), switches, rates=(0.5, 0.5, 0.25)
    )  # the truth is known even so
    np.testing.assert_allclose(rated["rate"], [0.5, 0.5, 0.25])
    np.testing.assert_allclose(rated["probability"], [0.1875] * 4 + [0.0625] * 4)


def test_one_perfect_sample_is_off_by_the_chance_of_the_other_modes() -> None:
    """With one sample the total variation is 1 - p of the mode that was drawn."""
    law = np.array([0.5, 0.3, 0.2])
    result = frequencies.compare(np.array([[0, 1, 0]]), law[None])
    assert float(result["total_variation"]) == pytest.approx(0.7)
    assert float(result["total_variation_perfect"]) == pytest.approx((law * (1 - law)).sum())


@pytest.mark.parametrize(
    ("switches", "rates", "message"),
    [
        ({1: 6, 6: 1}, None, "both as original"),
        ({1: 6, 2: 6}, None, "twice"),
        ({1: 6}, [0.5, 0.5], "one per switch"),
        ({1: 6}, [1.5], "probabilities"),
        ({number: number + 20 for number in range(13)}, None, "at most 12"),
    ],
)
def test_malformed_switches_are_refused(
    switches: dict, rates: list | None, message: str, rng: np.random.Generator
) -> None:
    regions = switch_regions(rng, 2)
    masks = sampled(regions[:, None])
    with pytest.raises(ValueError, match=message):
        segmentation.flips(masks, regions_array(regions), switches, rates)
    with pytest.raises(TypeError, match="switches must map"):
        segmentation.flips(masks, regions_array(regions), {})
    with pytest.raises(ValueError, match="one unswitched class map"):
        segmentation.flips(masks, graded(regions[:, None]), {1: 6})


def test_the_total_variation_of_a_perfect_sampler_is_its_mean_over_sets() -> None:
    """Truths that differ from case to case: the samples of sure cases add no spread."""
    rng = np.random.default_rng(7)
    truth = np.repeat([[0.98, 0.02], [0.02, 0.98]], 50, 0)
    counts = np.stack([rng.multinomial(8, p, 3000) for p in truth], 1).astype(float)  # (set, case)
    share = counts.sum(1) / counts.sum((1, 2))[:, None]
    expected = np.abs(share - truth.mean(0)).sum(1) / 2
    claimed = float(frequencies.compare(counts[0], truth)["total_variation_perfect"])
    assert abs(expected.mean() - claimed) < 0.02 * claimed + Z * stats.sem(expected)
