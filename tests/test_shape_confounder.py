"""The shape of the foreground: normalised and swapped in volumes, and told apart by its outline.

Against closed forms of warped balls and ellipsoids, affine maps, the binormal AUROC, an AUROC of
permuted labels, and scikit-learn.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binom, norm
from sklearn.metrics import roc_auc_score

from ppl_med.explain.confounding import (
    common_shape,
    normalize_shape,
    outline_auroc,
    swap_effects,
    swap_shape,
    swap_test,
)
from ppl_med.explain.confounding.outline import _score_interval

SIZE = (24, 26, 28)


def offsets(middle: tuple[float, ...], size: tuple[int, ...] = SIZE) -> NDArray:
    return np.indices(size) - np.reshape(middle, (-1, *[1] * len(size)))


def ellipsoid(middle: Any, radii: Any, size: tuple[int, ...] = SIZE) -> NDArray:
    """Distance from the middle, 1 on the surface."""
    return np.linalg.norm(offsets(middle, size) / np.reshape(radii, (-1, *[1] * len(size))), axis=0)


def dice(one: NDArray, other: NDArray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


# --- volumes


def test_an_ellipsoid_becomes_a_ball_with_its_inside() -> None:
    """In every direction the relative distance keeps its value, a linear map of the volume."""
    old = ellipsoid((11.2, 12.9, 13.4), (9.0, 7.0, 11.0))
    new = ellipsoid((11.5, 12.5, 13.5), (9.0, 9.0, 9.0))
    slope = offsets((11.2, 12.9, 13.4)) / np.reshape((9.0, 7.0, 11.0), (3, 1, 1, 1))
    wanted = offsets((11.5, 12.5, 13.5))
    # The same direction and the same share of the radius; its closed form for an ellipsoid.
    length = np.linalg.norm(wanted, axis=0)
    unit = wanted / np.maximum(length, 1e-9)
    radius = 1 / np.linalg.norm(unit / np.reshape((9.0, 7.0, 11.0), (3, 1, 1, 1)), axis=0)
    image = np.stack([slope[0] + 2 * slope[1], old])[None]
    images, foregrounds = normalize_shape(image, (old <= 1)[None], new <= 1)
    assert images.shape == image.shape and foregrounds.shape == (1, *SIZE)
    assert dice(foregrounds[0], new <= 1) > 0.97
    inside = new < 0.85
    source = unit * length * radius / 9 / np.reshape((9.0, 7.0, 11.0), (3, 1, 1, 1))
    # Errors are those of an outline of voxels, half a voxel of 7 to 11.
    assert np.abs(images[0, 0] - source[0] - 2 * source[1])[inside].max() < 0.2
    assert np.abs(images[0, 1] - length / 9)[inside].max() < 0.1
    assert np.abs(images[0, 1] - length / 9)[inside].mean() < 0.03


def test_a_volume_that_fits_is_left_alone() -> None:
    mask = ellipsoid((11.2, 12.9, 13.4), (9.0, 7.0, 11.0)) <= 1
    image = np.random.default_rng(0).normal(size=(1, 2, *SIZE))
    images, foregrounds = normalize_shape(image, mask[None], mask)
    np.testing.assert_allclose(images, image, atol=1e-10)
    np.testing.assert_array_equal(foregrounds[0], mask)


def test_a_cylinder_of_volumes_is_warped_as_its_slices() -> None:
    """Far from its ends, an infinite cylinder's cross sections shrink along rays as a disc's do."""
    length = 61
    disc = ellipsoid((14.0, 14.0), (10.0, 10.0), (29, 29)) <= 1
    small = ellipsoid((14.0, 14.0), (7.0, 7.0), (29, 29)) <= 1
    long = np.broadcast_to(disc, (length, 29, 29))
    thin = np.broadcast_to(small, (length, 29, 29))
    values = offsets((14.0, 14.0), (29, 29))[0] / 10
    flat, _ = normalize_shape(values[None, None], disc[None], small)
    middle = length // 2
    volume = np.broadcast_to(values, (1, 1, length, 29, 29))
    deep, foregrounds = normalize_shape(volume, long[None], thin)
    assert np.abs(deep[0, 0, middle] - flat[0, 0]).max() < 0.03
    assert dice(foregrounds[0, middle], small) > 0.97


def test_the_axes_of_a_volume_are_alike() -> None:
    """Turning axes and then warping is warping and then turning, poles or not."""
    mask = np.stack(
        [ellipsoid((11.5, 12.0, 13.0), radii) <= 1 for radii in ((8, 6, 10), (7, 9, 8))]
    )
    image = np.random.default_rng(1).normal(size=(2, 1, *SIZE))
    image = np.stack([[np.cumsum(one[0], 0) / 5] for one in image])
    first, _ = normalize_shape(image, mask)
    turned, _ = normalize_shape(image.transpose(0, 1, 4, 2, 3), mask.transpose(0, 3, 1, 2))
    back = turned.transpose(0, 1, 3, 4, 2)
    # The grids of directions differ, so outlines of voxels are read a little differently.
    assert np.abs(back - first).mean() < 0.05 * image.std()


def test_after_normalisation_volumes_have_one_outline() -> None:
    random = np.random.default_rng(2)
    mask = np.stack(
        [ellipsoid(11.5 + random.normal(0, 1, 3), random.uniform(6, 9, 3)) <= 1 for _ in range(6)]
    )
    _, foregrounds = normalize_shape(mask[:, None].astype(float), mask)
    wanted = common_shape(mask)
    assert min(dice(one, wanted) for one in foregrounds) > 0.97
    sizes = mask.sum((1, 2, 3)), foregrounds.sum((1, 2, 3))
    assert sizes[0].std() > 10 * sizes[1].std()


def test_the_common_ellipsoid_has_the_mean_sides() -> None:
    mask = np.zeros((2, 20, 30, 40), bool)
    mask[0, 5:9, 10:16, 10:34] = True
    mask[1, 8:16, 4:14, 4:36] = True
    found = np.argwhere(common_shape(mask))
    assert (np.ptp(found, axis=0) + 1).tolist() == [6, 8, 28]
    np.testing.assert_allclose(found.mean(0), [9.5, 14.5, 19.5])


# --- swaps


def two_shapes(cases: int, seed: int = 0) -> tuple[NDArray, NDArray, NDArray]:
    """Images of rings, in foregrounds that are wide in class 0 and tall in class 1."""
    random = np.random.default_rng(seed)
    label = np.arange(cases) % 2
    radii = np.where(label[:, None] == 1, (10.0, 7.0), (7.0, 10.0)) * random.uniform(
        0.95, 1.05, (cases, 2)
    )
    distance = np.stack([ellipsoid((14.0, 14.0), one, (29, 29)) for one in radii])
    mask = distance <= 1
    image = np.where(mask, 1 + 0.3 * np.cos(6 * distance), 0.0)[:, None]
    return image, mask, label


def test_a_swap_gives_every_image_the_outline_of_its_donor() -> None:
    image, mask, label = two_shapes(12)
    wide, tall = label == 0, label == 1
    images, foregrounds, donor = swap_shape(image[wide], mask[wide], mask[tall])
    for one, row in zip(foregrounds, donor, strict=True):
        assert dice(one, mask[tall][row]) > 0.96
    assert sorted(donor.tolist()) == list(range(6)), "donors are not drawn equally often"
    inside = foregrounds & (ellipsoid((14.0, 14.0), (9.0, 9.0), (29, 29)) < 0.8)
    assert 0.65 < images[:, 0][inside].min() and images[:, 0][inside].max() < 1.35
    again = swap_shape(image[wide], mask[wide], mask[tall])
    np.testing.assert_array_equal(again[0], images)
    assert (swap_shape(image[wide], mask[wide], mask[tall], seed=1)[2] != donor).any()


def test_no_image_gets_an_outline_of_its_own_patient() -> None:
    image, mask, _ = two_shapes(8)
    patient = np.array(["a", "a", "b", "b", "b", "c", "d", "d"])
    for seed in range(5):
        *_, donor = swap_shape(image, mask, mask, patient=patient, donor_patient=patient, seed=seed)
        assert (patient[donor] != patient).all()
    with pytest.raises(ValueError, match="no foreground of another patient for case 0"):
        swap_shape(image[:1], mask[:1], mask[:2], patient=["a"], donor_patient=["a", "a"])


class Looks:
    """Logit of class 1 from the height of what is bright, or from the mean intensity inside."""

    def __init__(self, at_shape: bool, gain: float) -> None:
        self.at_shape, self.gain = at_shape, gain

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        bright = image > 0.3
        if self.at_shape:
            value = (bright.any(-1).flatten(1).sum(1) - 17.0) / 2
        else:
            value = (image * bright).flatten(1).sum(1) / bright.flatten(1).sum(1) - 1
        return (self.gain * value)[:, None].to(image)


def test_the_swap_tells_a_net_of_the_shape_from_one_of_the_texture() -> None:
    image, mask, label = two_shapes(20)
    wide, tall = label == 0, label == 1
    before = torch.from_numpy(image[wide])
    given, outlines_of_donors, _ = swap_shape(image[wide], mask[wide], mask[tall])
    swapped = torch.from_numpy(given)
    gains = (0.8, 1.0, 1.2)
    shape = swap_test([Looks(True, gain) for gain in gains], before, swapped, 1)
    texture = swap_test([Looks(False, gain) for gain in gains], before, swapped, 1)
    assert shape["expected_effect_lower"] > 0.3
    assert abs(texture["expected_effect"]) < 0.01
    own, other = (
        torch.from_numpy(normalize_shape(one.numpy(), masks, common_shape(mask))[0])
        for one, masks in ((before, mask[wide]), (swapped, outlines_of_donors))
    )
    after = swap_test([Looks(True, gain) for gain in gains], own, other, 1)
    assert abs(after["expected_effect"]) < 0.05 * shape["expected_effect"]
    net = swap_effects(shape["before"], shape["after"])
    np.testing.assert_allclose(net["expected_effect"], shape["expected_effect"])


# --- bad input


def ball(size: int = 15) -> NDArray:
    return ellipsoid((7.0,) * 3, (5.5,) * 3, (size,) * 3) <= 1


def hollow(plane: bool, radius: float) -> NDArray:
    mask = ball()
    mask[ellipsoid((7.0, 7.0, 9.0), (radius,) * 3, (15,) * 3) <= 1] = False
    return mask[7] if plane else mask


def bay() -> NDArray:
    mask = ball()
    mask[5:10, 5:10, 9:] = False
    return mask


def warp(mask: NDArray, **options: Any) -> None:
    normalize_shape(np.zeros((1, 1, *mask.shape)), mask[None], **options)


MIXED = np.array([[1.0, 1.0, 1.0]] * 5 + [[1.0, 1.0, 2.0]] * 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: warp(hollow(False, 1)), "mask of case 0 has holes of 7 pixels"),
        (lambda: warp(hollow(True, 1)), "mask of case 0 has holes of 5 pixels"),
        (lambda: warp(bay()), "mask of case 0: rays .* more than once over .*convex_hull"),
        (lambda: warp(ball(), target=bay()), "target: rays"),
        (lambda: warp(ball(), target=bay()[None]), "target of case 0: rays"),
        (lambda: warp(np.zeros((5, 5, 5))), "1 empty foreground"),
        (lambda: warp(ball(), target=np.zeros((15,) * 3)), "target has 1 empty"),
        (lambda: warp(ball() * 2), "0 and 1"),
        (lambda: normalize_shape(np.full((1, 1, 15, 15, 15), np.nan), ball()[None]), "NaN"),
        (lambda: normalize_shape(np.zeros((1, 15, 15, 15)), ball()[None]), "image has shape"),
        (lambda: warp(ball(), target=ball()[:5]), "target has shape"),
        (lambda: warp(ball(), spacing=[1.0, 1.0, 1.0]), r"spacing has shape \(3,\)"),
        (lambda: warp(ball(), spacing=[[1.0, np.nan, 1.0]]), "mm above 0.* 1 of 1"),
        (
            lambda: normalize_shape(
                np.zeros((7, 1, 15, 15, 15)), np.stack([ball()] * 7), spacing=MIXED
            ),
            r"median, \(1, 1, 1\) mm, in 2 of 7 cases, first case 5; read .*spacing=\(1, 1, 1\)",
        ),
        (
            lambda: swap_shape(
                np.zeros((5, 1, 15, 15, 15)), np.stack([ball()] * 5), np.stack([ball()] * 2),
                spacing=MIXED[:5], donor_spacing=MIXED[5:],
            ),
            "in 2 of 7 cases",
        ),
        (
            lambda: swap_shape(
                np.zeros((1, 1, 15, 15, 15)), ball()[None], ball()[None], patient=["a"]
            ),
            "patient and donor_patient go together",
        ),
        (
            lambda: swap_shape(np.zeros((1, 1, 15, 15, 15)), ball()[None], ball()[None, :9]),
            "sizes must agree",
        ),
    ],
)  # fmt: skip
def test_shapes_that_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_one_spacing_is_welcome_whatever_it_is() -> None:
    """Rays of voxels are rays of millimetres, so that the warp does not depend on it."""
    mask = np.stack([ball(), ellipsoid((7.0,) * 3, (4.0, 6.0, 5.0), (15,) * 3) <= 1])
    image = np.random.default_rng(0).normal(size=(2, 1, 15, 15, 15))
    plain = normalize_shape(image, mask)
    thick = normalize_shape(image, mask, spacing=[[4.0, 1.0, 1.0]] * 2)
    np.testing.assert_array_equal(plain[0], thick[0])


# --- outlines alone


def outlines(cases: int, gain: float, seed: int, axes: int = 2) -> tuple[NDArray, NDArray]:
    """Ellipses, one class longer along the first axis by a share."""
    random = np.random.default_rng(seed)
    label = np.arange(cases) % 2
    radii = 5 * np.exp(random.normal(0, 0.08, (cases, axes)))
    radii[label == 1, 0] *= 1 + gain
    size = (17,) * axes
    mask = np.stack([ellipsoid((8.0,) * axes, one, size) <= 1 for one in radii])
    return mask, np.array(["here", "there"])[label]


@pytest.mark.parametrize("features", ["mask", "descriptors"])
@pytest.mark.parametrize("axes", [2, 3])
def test_outlines_are_told_apart_and_no_more_once_they_are_one(features: Any, axes: int) -> None:
    mask, label = outlines(60, 0.3, 0, axes)
    found = outline_auroc(mask, label, features=features, permutations=19)
    assert found["auroc"] == pytest.approx(roc_auc_score(label == "there", found["score"]))
    assert found["auroc_lower"] > 0.85 and found["p_value"] == 0.05
    np.testing.assert_allclose(
        found["balanced_accuracy"],
        ((found["score"] > 0) == (label == "there")).mean(),
    )
    assert found.attrs["classes"] == ["here", "there"] and found.attrs["num_patients"] == 60
    one = np.broadcast_to(common_shape(mask), mask.shape)
    same = outline_auroc(one, label, features=features, permutations=19)
    assert same["auroc"] == 0.5 and same["p_value"] == 1


def test_p_values_of_outlines_that_tell_nothing_are_valid() -> None:
    """P(p <= 0.2) is 0.2 at most; false alarms 1e-3. Some patients have scans of both classes."""
    runs, low = 40, 0
    for seed in range(runs):
        mask, _ = outlines(32, 0.0, seed)
        patient = np.arange(32) // 2
        label = np.random.default_rng(seed).integers(0, 2, 16)[patient]
        label[:4] = 0, 1, 1, 0
        if min(np.bincount(label)) < 10:
            continue
        found = outline_auroc(
            mask, label, patient=patient, features="descriptors", folds=2, permutations=4, seed=seed
        )
        low += int(found["p_value"] <= 0.2)
    assert low <= binom.isf(1e-3, runs, 0.2)


def test_patients_are_never_in_training_and_test() -> None:
    """Copies of a patient would tell the class of outlines that tell nothing."""
    mask, _ = outlines(20, 0.0, 3)
    patient = np.repeat(np.arange(20), 6)
    label = (np.arange(20) % 2)[patient]
    copies = np.repeat(mask, 6, 0)
    found = outline_auroc(copies, label, patient=patient, features="descriptors", permutations=0)
    for one in np.unique(patient):
        assert len(np.unique(found["fold"][patient == one])) == 1
    assert np.isnan(found["p_value"]) and found["auroc"] < 0.9
    leaky = outline_auroc(copies, label, features="descriptors", permutations=0)
    assert leaky["auroc"] > found["auroc"] + 0.05
    width = found["auroc_upper"] - found["auroc_lower"]
    assert width > 0.3, "copies of a patient made the interval shorter"


@pytest.mark.parametrize("distance", [0.8, 2.5])
def test_the_score_interval_covers(distance: float) -> None:
    """Of binormal scores, 25 and 35 cases; 95 % in 400 runs, both tails of 1e-3."""
    random, runs = np.random.default_rng(0), 400
    truth = norm.cdf(distance / np.sqrt(2))
    hits = 0
    for _ in range(runs):
        above = random.normal(size=(25, 1)) + distance > random.normal(size=35)
        low, high = _score_interval(float(above.mean()), 25, 35, 0.95)
        hits += low <= truth <= high
    assert binom.isf(1 - 1e-3, runs, 0.95) <= hits
    assert hits <= runs * 0.995, "the interval holds nearly everything"


def test_the_score_interval_has_a_width_at_its_ends() -> None:
    low, high = _score_interval(1.0, 10, 12, 0.95)
    assert 0.7 < low < 0.95 and high == 1
    np.testing.assert_allclose(_score_interval(0.0, 12, 10, 0.95), (1 - high, 1 - low), atol=0.06)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": ["a"] * 20}, "1 different value"),
        ({"label": ["a", "b"]}, r"label has shape \(2,\)"),
        ({"label": ["a"] * 17 + ["b"] * 3}, "17 and 3 patients"),
        ({"label": ["a", None] * 10}, "label is missing"),
        ({"patient": np.arange(20) // 8}, "patients of its two values"),
        ({"mask": np.zeros((20, 17, 17))}, "20 empty"),
        ({"spacing": [[1.0, 1.0]] * 19 + [[1.0, 1.5]]}, "1 of 20 cases, first case 19"),
        ({"folds": 1}, "folds must"),
        ({"permutations": -1}, "permutations must"),
        ({"level": 1.0}, "level must"),
    ],
)
def test_outline_auroc_refuses(options: dict[str, Any], message: str) -> None:
    mask, label = outlines(20, 0.0, 0)
    with pytest.raises(ValueError, match=message):
        outline_auroc(**{"mask": mask, "label": label} | options)
