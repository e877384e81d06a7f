"""Confounding: exposure by relevance mass, the swap test, shape normalisation and dependence.

Against scikit-learn's AUROC, closed forms of linear nets and of warped discs, the distance
correlation of the bivariate normal law, and p-values that must be uniform.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import chisquare, norm
from sklearn.feature_selection import mutual_info_classif
from sklearn.metrics import roc_auc_score
from torch import Tensor

from ppl_med.explain.confounding import (
    common_shape,
    dependence,
    exposure,
    normalize_shape,
    swap_effects,
    swap_frame,
    swap_test,
)
from ppl_med.explain.quality import mass_inside

MAP_DIMS = ("chain", "draw", "case", "channel", "row", "col")
CASES = 30


def maps(seed: int, inside: float = 0.0, draws: int = 3) -> xr.DataArray:
    """Noise, with more of it in the upper left corner."""
    values = np.random.default_rng(seed).normal(size=(2, draws, CASES, 2, 6, 6))
    values[..., :2, :2] += inside
    return xr.DataArray(values, dims=MAP_DIMS)


def corner() -> xr.DataArray:
    mask = np.zeros((CASES, 6, 6), bool)
    mask[:, :2, :2] = True
    return xr.DataArray(mask, dims=("case", "row", "col"))


# --- exposure


def test_exposure_by_independent_means() -> None:
    of_net = {"one": maps(0, 0.5), "two": maps(1)}
    of_reference = {"two": maps(3), "one": maps(2)}
    found = exposure(of_net, corner(), reference=of_reference)
    assert found["mass_share"].dims == ("method", "chain", "draw", "case")
    for name, values in of_net.items():
        own = mass_inside(values, corner())["mass_share"]
        other = mass_inside(of_reference[name], corner())["mass_share"]
        np.testing.assert_allclose(found["mass_share"].sel({"method": name}), own)
        per_draw = own.mean("case")
        part = found.sel({"method": name})
        np.testing.assert_allclose(part["expected_mass_share"], per_draw.mean())
        for end, share in (("lower", 0.025), ("upper", 0.975)):
            expected = np.quantile(per_draw, share, method="weibull")
            found_end = part[f"expected_mass_share_{end}"]
            np.testing.assert_allclose(found_end, expected)
            assert found_end.attrs["attained_level"] == 5 / 7  # six draws
        by_case = own.mean(("chain", "draw")).values
        np.testing.assert_allclose(
            part["expected_mass_share_se"], by_case.std(ddof=1) / np.sqrt(CASES)
        )
        truth = np.repeat([1, 0], CASES)
        for chain in range(2):
            for draw in range(3):
                scores = np.concatenate([own[chain, draw], other[chain, draw]])
                np.testing.assert_allclose(part["auroc"][chain, draw], roc_auc_score(truth, scores))
        scores = np.concatenate([one.mean(("chain", "draw")) for one in (own, other)])
        np.testing.assert_allclose(part["auroc_of_mean"], roc_auc_score(truth, scores))
    assert found["area_share"].values == pytest.approx(4 / 36)


def test_standard_error_of_the_auroc() -> None:
    """Its root mean square is the standard deviation over data sets, within 4 standard errors."""
    random, runs, cases = np.random.default_rng(0), 100, 60
    found, errors = np.empty((2, runs))
    for run in range(runs):
        common = random.normal(size=cases)
        shares = []
        for gain in (0.8, 0.0):
            score = norm.cdf(common + random.normal(size=cases) + gain)
            values = np.stack([score, 1 - score], 1)[:, None, None]  # two pixels
            shares.append({"a": xr.DataArray(values, dims=("case", "channel", "row", "col"))})
        left = xr.DataArray(np.tile([[[1, 0]]], (cases, 1, 1)), dims=("case", "row", "col"))
        one = exposure(shares[0], left, reference=shares[1])
        found[run], errors[run] = one["auroc_of_mean"].item(), one["auroc_of_mean_se"].item()
    expected = norm.cdf(0.8 / 2)  # two variances of 2 and none shared between different cases
    assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(runs) + 1 / cases
    ratio = np.sqrt((errors**2).mean()) / found.std(ddof=1)
    assert abs(ratio - 1) < 4 / np.sqrt(2 * runs)


def test_absolute_relevance_and_maps_without_mass() -> None:
    values = maps(0)
    found = exposure({"a": values}, corner(), sign="absolute")
    np.testing.assert_allclose(
        found["mass_share"].sel({"method": "a"}), mass_inside(abs(values), corner())["mass_share"]
    )
    values[0, 0, :4] = -1.0
    assert exposure({"a": values}, corner())["num_without_mass"][0, 0, 0] == 4
    one = exposure({"a": values.isel(chain=0, draw=1, drop=True)}, corner())
    assert one.sizes["draw"] == 1 and np.isnan(one["expected_mass_share_lower"]).all()


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({}, {}, "maps is empty"),
        ({"a": maps(0)}, {"reference": {"b": maps(0)}}, "reference has the methods"),
        ({"a": maps(0), "b": maps(0, draws=2)}, {}, "another method"),
        ({"a": maps(0)}, {"reference": {"a": maps(0, draws=2)}}, "as many draws"),
        ({"a": maps(0)}, {"level": 1.0}, "level must"),
        ({"a": maps(0)}, {"sign": "negative"}, "sign must"),
    ],
)
def test_exposure_refuses(given: Any, options: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        exposure(given, corner(), **options)


# --- swap test


class Linear:
    """Logit of class 1 is the weighted sum of pixels; two of them, each a draw of two chains."""

    def __init__(self, weight: Tensor, chain: int, draw: int) -> None:
        self.weight, self.chain, self.draw = weight, chain, draw

    def __call__(self, image: Tensor) -> Tensor:
        return (self.weight * image).flatten(1).sum(1)[:, None]


def nets() -> list[Linear]:
    weights = 0.3 * torch.randn(6, 1, 4, 4, dtype=torch.float64)
    return [Linear(one, *divmod(at, 3)) for at, one in enumerate(weights)]


def images(cases: int = 12) -> Tensor:
    return torch.randn(cases, 1, 4, 4, dtype=torch.float64)


def brighter_corner(image: Tensor) -> Tensor:
    image[:, :, 0, 0] += 2.0
    return image


@pytest.mark.parametrize("target", [0, 1])
def test_effect_of_a_swap_on_linear_nets(target: int) -> None:
    draws, before = nets(), images()
    found = swap_test(draws, before, brighter_corner, target, batch_size=5)
    sign = 2 * target - 1
    for one in draws:
        logit = sign * (one.weight * before).flatten(1).sum(1)
        expected = (logit + sign * 2 * one.weight[0, 0, 0]).sigmoid() - logit.sigmoid()
        part = found.sel(chain=one.chain, draw=one.draw)
        np.testing.assert_allclose(part["effect"], expected, atol=1e-12)
        np.testing.assert_allclose(part["mean_effect"], expected.mean(), atol=1e-12)
    means = found["mean_effect"].values
    np.testing.assert_allclose(found["expected_effect"], means.mean())
    low, high = np.quantile(means, [0.025, 0.975], method="weibull")
    np.testing.assert_allclose(found["expected_effect_lower"], low)
    np.testing.assert_allclose(found["expected_effect_upper"], high)
    by_case = found["effect"].mean(("chain", "draw")).values
    np.testing.assert_allclose(found["expected_effect_se"], by_case.std(ddof=1) / np.sqrt(12))
    np.testing.assert_allclose(found["probability_positive"], (means > 0).mean())
    np.testing.assert_allclose(found["changed_share"], 1 / 16)
    above = found[["before", "after"]].mean(("chain", "draw")) > 0.5
    np.testing.assert_array_equal(found["flips"], above["before"] != above["after"])
    odds = swap_test(draws, before, brighter_corner(before.clone()), target, scale="log_odds")
    slopes = [
        [sign * 2 * float(one.weight[0, 0, 0]) for one in draws[at : at + 3]] for at in (0, 3)
    ]
    np.testing.assert_allclose(odds["mean_effect"], slopes, atol=1e-9)
    np.testing.assert_allclose(odds["effect"].std("case"), 0, atol=1e-9)


def test_pixels_without_weight_have_no_effect() -> None:
    draws = nets()
    for one in draws:
        one.weight[0, 0, 0] = 0.0
    found = swap_test(draws, images(), brighter_corner, 1)
    np.testing.assert_allclose(found["effect"], 0, atol=1e-12)
    assert not found["flips"].any()


def test_cases_in_another_order_are_refused() -> None:
    ids = np.array([f"c{index}" for index in range(12)])
    values = np.random.default_rng(0).random((1, 3, 12))
    before = xr.DataArray(values, {"case": ids}, ("chain", "draw", "case"))
    group = np.repeat(np.arange(4), 3)
    swap_effects(before, before + 0.1, group=group)
    with pytest.raises(ValueError, match="same cases in the same order"):
        swap_effects(before, (before + 0.1).isel(case=slice(None, None, -1)), group=group)
    region, of_net = corner(), {"one": maps(0, 0.5)}
    named = {"case": np.arange(CASES)}
    ordered = {"one": maps(1).assign_coords(named)}
    turned = {"one": ordered["one"].isel(case=slice(None, None, -1))}
    exposure({"one": of_net["one"].assign_coords(named)}, region, reference=ordered)
    with pytest.raises(ValueError, match="same cases in the same order"):
        exposure({"one": of_net["one"].assign_coords(named)}, region, reference=turned)
    with pytest.raises(ValueError, match="same cases in the same order"):
        exposure({"one": ordered["one"], "two": turned["one"]}, region)


def test_repeated_images_of_a_patient_add_no_certainty() -> None:
    draws, before = nets(), images()
    once = swap_test(draws, before, brighter_corner, 1)
    twice = before.repeat(3, 1, 1, 1)
    patients = np.tile(np.arange(12), 3)
    grouped = swap_test(draws, twice, brighter_corner, 1, group=patients)
    np.testing.assert_allclose(grouped["expected_effect_se"], once["expected_effect_se"])
    assert grouped.attrs["num_groups"] == 12
    alone = swap_test(draws, twice, brighter_corner, 1)["expected_effect_se"]
    assert alone < 0.7 * once["expected_effect_se"]


def test_frame() -> None:
    one, other = torch.zeros(2, 1, 6, 7), torch.ones(2, 1, 6, 7)
    framed = swap_frame(one, other, 2)
    assert framed[:, :, 2:4, 2:5].sum() == 0 and framed.sum() == 2 * (42 - 6)
    assert one.sum() == 0 and other.sum() == 84, "the caller's images were changed"
    with pytest.raises(ValueError, match="leaves nothing"):
        swap_frame(one, other, 3)
    with pytest.raises(ValueError, match="must be the same"):
        swap_frame(one, other[:1], 1)


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"swap": lambda x: x}, "changed no pixel"),
        ({"swap": lambda x: x[:1]}, r"swap gave \(1, 1, 4, 4\)"),
        ({"swap": lambda x: x / 0}, "NaN or infinite"),
        ({"target": 2}, "classes 0 to 1"),
        ({"group": [1]}, "group has shape"),
        ({"scale": "logit"}, "scale must"),
        ({"level": 0.0}, "level must"),
        ({"functions": []}, "functions is empty"),
    ],
)
def test_swap_test_refuses(options: dict[str, Any], message: str) -> None:
    given: Any = {"functions": nets(), "image": images(), "swap": brighter_corner, "target": 1}
    with pytest.raises((ValueError, TypeError), match=message):
        swap_test(**given | options)


# --- shape normalisation

SIDE = 61


def polar(middle: tuple[float, float]) -> tuple[NDArray, NDArray]:
    row, col = np.indices((SIDE, SIDE)) - np.array(middle)[:, None, None]
    return np.hypot(row, col), np.arctan2(row, col)


def clover(angle: NDArray) -> NDArray:
    return 18 * (1 + 0.15 * np.cos(3 * angle))


def smooth(distance: NDArray, angle: NDArray) -> NDArray:
    """A function of the place relative to the outline."""
    return np.cos(2.5 * distance) * (1 + 0.3 * np.sin(angle))


def test_a_clover_becomes_a_disc_with_its_inside() -> None:
    distance, angle = polar((28.0, 33.0))
    mask = distance <= clover(angle)
    image = smooth(distance / clover(angle), angle)
    new_distance, new_angle = polar((30.0, 30.0))
    disc = new_distance <= 20
    images, foregrounds = normalize_shape(image[None, None], mask[None], disc)
    assert 2 * (foregrounds[0] & disc).sum() / (foregrounds[0].sum() + disc.sum()) > 0.98
    inside = (new_distance < 17) & (new_distance > 4)
    expected = smooth(new_distance / 20, new_angle)
    assert np.abs(images[0, 0] - expected)[inside].max() < 0.12
    assert np.abs(images[0, 0] - expected)[inside].mean() < 0.025


def test_a_shape_that_fits_is_left_alone() -> None:
    distance, angle = polar((28.0, 33.0))
    mask = distance <= clover(angle)
    image = np.random.default_rng(0).normal(size=(1, 2, SIDE, SIDE))
    images, foregrounds = normalize_shape(image, mask[None], mask)
    np.testing.assert_allclose(images, image, atol=1e-10)
    np.testing.assert_array_equal(foregrounds[0], mask)


def test_after_normalisation_areas_and_outlines_agree() -> None:
    random = np.random.default_rng(1)
    masks = []
    for radius, bump in zip(random.uniform(12, 20, 8), random.uniform(0, 0.2, 8), strict=True):
        distance, angle = polar((30 + random.normal(), 30 + random.normal()))
        masks.append(distance <= radius * (1 + bump * np.cos(2 * angle + random.normal())))
    mask = np.stack(masks)
    _, foregrounds = normalize_shape(mask[:, None].astype(float), mask)
    wanted = common_shape(mask)
    before = mask.sum((1, 2)).std() / mask.sum((1, 2)).mean()
    assert before > 0.1 and foregrounds.sum((1, 2)).std() < 0.02 * foregrounds.sum((1, 2)).mean()
    for one in foregrounds:
        assert 2 * (one & wanted).sum() / (one.sum() + wanted.sum()) > 0.97


def test_the_common_shape_has_the_mean_sides() -> None:
    mask = np.zeros((2, 40, 50), bool)
    mask[0, 5:15, 10:34] = True
    mask[1, 8:30, 4:36] = True
    found = common_shape(mask)
    assert np.ptp(np.flatnonzero(found.any(1))) + 1 == 16  # of 10 and 22
    assert np.ptp(np.flatnonzero(found.any(0))) + 1 == 28  # of 24 and 32
    assert (found == found[::-1]).all() and (found == found[:, ::-1]).all()


def ring() -> NDArray:
    distance, _ = polar((30.0, 30.0))
    return (distance < 20) & (distance > 8)


def bay() -> NDArray:
    distance, _ = polar((30.0, 30.0))
    mask = distance < 20
    mask[32:44, 20:] = False
    return mask


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: normalize_shape(np.zeros((1, 1, SIDE, SIDE)), ring()[None]), "mask of case 0"),
        (lambda: normalize_shape(np.zeros((1, 1, SIDE, SIDE)), bay()[None]), "more than once"),
        (lambda: normalize_shape(np.zeros((1, SIDE, SIDE)), ring()[None]), "image has shape"),
        (lambda: common_shape(np.zeros((2, 4, 4))), "2 empty foreground"),
        (lambda: common_shape(np.full((2, 4, 4), 2)), "0 and 1"),
        (
            lambda: normalize_shape(np.zeros((1, 1, 4, 4)), np.ones((1, 4, 4)), np.ones((5, 4))),
            r"target has shape \(5, 4\)",
        ),
    ],
)
def test_shape_refuses(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- dependence


def correlated(cases: int, correlation: float) -> tuple[xr.DataArray, NDArray]:
    one, two = np.random.default_rng(0).normal(size=(2, cases))
    mixed = correlation * one + np.sqrt(1 - correlation**2) * two
    return xr.DataArray(mixed, dims="case"), one


@pytest.mark.parametrize("correlation", [0.5, 0.9])
def test_distance_correlation_of_the_normal_law(correlation: float) -> None:
    """Székely et al. 2007, theorem 7."""
    r = correlation
    above = r * np.arcsin(r) + np.sqrt(1 - r**2) - r * np.arcsin(r / 2) - np.sqrt(4 - r**2) + 1
    expected = above / (1 + np.pi / 3 - np.sqrt(3))
    found = dependence(*correlated(2000, r), permutations=1, mutual_information=False)
    assert float(found["expected_distance_correlation"]) == pytest.approx(expected, abs=0.04)


def test_distance_correlation_by_its_second_formula() -> None:
    """V² = S1 + S2 - 2 S3 (Székely et al. 2007, theorem 1), of two columns and two draws."""
    random = np.random.default_rng(3)
    feature = random.normal(size=(1, 2, 12, 2))
    cause = np.arange(12) % 3
    distances = (cause[:, None] != cause).astype(float)

    def covariance(a: NDArray, b: NDArray) -> float:
        return float((a * b).mean() + a.mean() * b.mean() - 2 * (a.mean(1) * b.mean(1)).mean())

    given = xr.DataArray(feature, dims=("chain", "draw", "case", "column"))
    found = dependence(given, cause, permutations=1, mutual_information=False)
    for draw in range(2):
        own = np.linalg.norm(feature[0, draw][:, None] - feature[0, draw], axis=-1)
        expected = covariance(own, distances) / np.sqrt(
            covariance(own, own) * covariance(distances, distances)
        )
        assert float(found["distance_correlation"][0, draw]) == pytest.approx(expected)


def test_mutual_information() -> None:
    """ln 2 where the confounder can be read off; scikit-learn's figure elsewhere."""
    cause = np.arange(600) % 2
    noise = np.random.default_rng(0).normal(size=600)
    clear = dependence(xr.DataArray(noise + 20 * cause, dims="case"), cause, permutations=3)
    assert float(clear["expected_mutual_information"]) == pytest.approx(np.log(2), abs=0.01)
    assert clear["mutual_information"].attrs["units"] == "nats"
    partly = dependence(xr.DataArray(noise + cause, dims="case"), cause, permutations=3, seed=2)
    oracle = mutual_info_classif((noise + cause)[:, None], cause, random_state=2)
    assert float(partly["expected_mutual_information"]) == pytest.approx(oracle[0])


@pytest.mark.parametrize("kind", ["category", "number"])
def test_p_values_are_uniform_under_independence(kind: str) -> None:
    random, counts = np.random.default_rng(7), np.zeros(10)
    for run in range(200):
        feature = xr.DataArray(random.normal(size=(1, 2, 14)), dims=("chain", "draw", "case"))
        cause = random.normal(size=14) if kind == "number" else random.permutation(14) % 2
        found = dependence(feature, cause, permutations=9, mutual_information=False, seed=run)
        counts[round(float(found["distance_correlation_p_value"]) * 10) - 1] += 1
    if kind == "number":
        assert chisquare(counts).pvalue > 1e-3
    else:  # two classes have equal statistics now and then, which makes p-values larger only
        assert counts[0] < 20 + 4 * np.sqrt(18)


def test_dependence_is_found_and_only_within_controls() -> None:
    random = np.random.default_rng(0)
    label = np.arange(120) % 2
    cause = (random.random(120) < 0.2 + 0.6 * label).astype(int)
    through_class = xr.DataArray(random.normal(size=120) + 3 * label, dims="case")
    everyone = dependence(through_class, cause, permutations=99)
    controls = dependence(through_class, cause, controls=label == 0, permutations=99)
    for name in ("distance_correlation", "mutual_information"):
        assert everyone[f"{name}_p_value"] == 0.01 and controls[f"{name}_p_value"] > 0.01
        assert everyone[f"expected_{name}"] > 2 * everyone[f"{name}_chance"]
    moved = through_class.copy(data=np.where(label == 1, 99.0, through_class))
    again = dependence(moved, cause, controls=label == 0, permutations=99)
    xr.testing.assert_identical(again, controls)
    assert controls["num_cases"] == 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature": xr.DataArray(np.zeros(5), dims="row")}, "dim 'case'"),
        ({"feature": xr.DataArray(np.zeros((5, 2, 2)), dims=("case", "row", "col"))}, "at most"),
        ({"confounder": np.zeros(4, int)}, r"confounder has shape \(4,\)"),
        ({"controls": np.ones(5, int)}, "controls is int64"),
        ({"controls": np.arange(5) < 3}, "cases .*, got 3"),
        ({"confounder": np.zeros(5, int)}, "one value only"),
        ({"confounder": np.array([0, 1, 1, 0, np.nan])}, "NaN or infinite"),
        ({"permutations": 0}, "permutations must"),
    ],
)
def test_dependence_refuses(options: dict[str, Any], message: str) -> None:
    given: Any = {
        "feature": xr.DataArray(np.arange(5.0), dims="case"),
        "confounder": np.array([0, 1, 0, 1, 1]),
    }
    with pytest.raises(ValueError, match=message):
        dependence(**given | options)
