"""Corruptions and populations: identity at severity 0, closed forms, MONAI and PIL as oracles."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from ppl_med.data import shifts
from ppl_med.data.shifts import acquisition, blurring, intensities
from ppl_med.data.shifts.corruptions import SEVEREST

NAMES = list(shifts.CORRUPTIONS)
SHAPES = {"plane": (4, 3, 32, 40), "volume": (2, 3, 8, 24, 20)}
LEVEL = 1e-6  # false-alarm rate of each stochastic test


def images(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Blobs and an edge in [0.15, 0.8], (case, channel, *space)."""
    random = np.random.default_rng(seed)
    grid = np.meshgrid(*[np.linspace(-1, 1, size) for size in shape[2:]], indexing="ij")
    found = np.empty(shape)
    for index in np.ndindex(shape[:2]):
        middle = random.uniform(-0.5, 0.5, len(grid))
        distance = sum((g - m) ** 2 for g, m in zip(grid, middle, strict=True))
        found[index] = 0.15 + 0.45 * np.exp(-6 * distance) + 0.2 * (grid[-1] > middle[-1])
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", SHAPES)
def test_severity_0_is_the_identity_and_each_step_is_worse(name: str, kind: str) -> None:
    image = images(SHAPES[kind])
    for values in (image.astype(np.float32), (255 * image).astype(np.uint8)):
        same = shifts.corrupt(values, name, 0)
        assert same.dtype == values.dtype and np.array_equal(same, values)
        assert not np.shares_memory(same, values)
    found = [shifts.corrupt(image, name, severity) for severity in range(SEVEREST + 1)]
    away = [float(np.square(worse - image).mean() ** 0.5) for worse in found]
    assert np.all(np.diff(away) > 0), away
    assert all(worse.min() >= 0 and worse.max() <= 1 for worse in found)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_random_belongs_to_the_case_and_the_seed(name: str) -> None:
    image = images(SHAPES["plane"])
    found = shifts.corrupt(image, name, 3, seed=1)
    np.testing.assert_array_equal(shifts.corrupt(image[:2], name, 3, seed=1), found[:2])
    grey = (image * 255).round().astype(np.uint8)
    whole = shifts.corrupt(grey, name, 3, seed=1)
    np.testing.assert_allclose(whole / 255, shifts.corrupt(grey / 255, name, 3, seed=1), atol=0.002)
    standardised = shifts.corrupt(image * 4 - 2, name, 3, seed=1, span=(-2, 2))
    np.testing.assert_allclose(standardised, found * 4 - 2, atol=1e-9)


def test_strengths_rise() -> None:
    for corruption in shifts.CORRUPTIONS.values():
        assert np.all(np.diff(np.abs(corruption.strengths)) > 0)


@pytest.mark.parametrize(
    ("name", "severity", "sd"),
    [
        ("gaussian_noise", 2, lambda grey: 0.06),
        ("speckle_noise", 3, lambda grey: 0.10 * grey),
        ("shot_noise", 4, lambda grey: (grey / 100) ** 0.5),
    ],
)
def test_noise_has_the_sd_stated(name: str, severity: int, sd: Callable[[float], float]) -> None:
    grey, size = 0.5, 20_000
    flat = np.full((1, 1, 100, size // 100), grey)
    found = shifts.corrupt(flat, name, severity).ravel()
    assert stats.ttest_1samp(found, grey).pvalue > LEVEL
    statistic = (size - 1) * found.var(ddof=1) / sd(grey) ** 2
    low, high = stats.chi2.ppf([LEVEL / 2, 1 - LEVEL / 2], size - 1)
    assert low < statistic < high
    wrong = statistic / 1.15**2  # an sd 15 % too small would be seen
    assert not low < wrong < high


def test_rician_noise_raises_the_dark() -> None:
    dark = np.zeros((1, 1, 100, 200))
    found = shifts.corrupt(dark, "rician_noise", 5).ravel()
    assert stats.kstest(found, stats.rayleigh(scale=0.15).cdf).pvalue > LEVEL


def test_salt_and_pepper_hits_its_share_of_pixels_in_all_channels() -> None:
    grey = np.full((1, 3, 200, 200), 0.5)
    found = shifts.corrupt(grey, "salt_and_pepper", 5)[0]
    hit = found != 0.5
    assert (hit == hit[:1]).all()
    assert stats.binomtest(int(hit[0].sum()), hit[0].size, 0.02).pvalue > LEVEL
    assert stats.binomtest(int((found[0] == 1).sum()), int(hit[0].sum()), 0.5).pvalue > LEVEL


def test_lengths_are_shares_of_the_size() -> None:
    """A picture of twice the pixels is blurred as the small one is."""
    small, large = (images((1, 1, size, size)) for size in (64, 128))
    for function in (blurring.gaussian_blur, blurring.motion_blur):
        found = [function(one[0], 0.1, np.random.default_rng(3)) for one in (small, large)]
        halved = found[1][0].reshape(64, 2, 64, 2).mean((1, 3))
        assert np.abs(halved - found[0][0]).mean() < 0.01


def test_pixelate_draws_means_of_blocks() -> None:
    image = images((1, 2, 12, 20))[0]
    found = blurring.pixelate(image, 0.5, np.random.default_rng(0))
    blocks = image.reshape(2, 6, 2, 10, 2).mean((2, 4))
    np.testing.assert_allclose(found, blocks.repeat(2, 1).repeat(2, 2), atol=1e-12)


def test_jpeg_is_that_of_pil() -> None:
    image = (images((1, 3, 32, 32)) * 255).astype(np.uint8)
    found = shifts.corrupt(image, "jpeg", 2)[0]
    buffer = io.BytesIO()
    Image.fromarray(image[0].transpose(1, 2, 0)).save(buffer, "JPEG", quality=30)
    np.testing.assert_array_equal(found, np.asarray(Image.open(buffer)).transpose(2, 0, 1))


def test_gamma_is_that_of_monai() -> None:
    from monai.transforms.intensity.array import AdjustContrast

    image = images((1, 1, 32, 32))[0]
    image = (image - image.min()) / (image.max() - image.min())
    theirs = np.asarray(AdjustContrast(1.4)(image.astype(np.float32)))
    found = intensities.gamma(image, 0.4, np.random.default_rng(0))
    np.testing.assert_allclose(found, theirs, atol=1e-5)


def test_contrast_keeps_the_mean_and_scales_the_sd() -> None:
    image = images((1, 2, 16, 16))[0]
    found = intensities.contrast(image, -0.4, np.random.default_rng(0))
    np.testing.assert_allclose(found.mean((1, 2)), image.mean((1, 2)))
    np.testing.assert_allclose(found.std((1, 2)), 0.6 * image.std((1, 2)))


def test_a_stain_leaves_white_and_its_channels_alone() -> None:
    white = np.ones((3, 8, 8))
    np.testing.assert_allclose(intensities.stain(white, 0.3, np.random.default_rng(0)), 1)
    image = images((1, 3, 8, 8))[0]
    np.testing.assert_allclose(intensities.stain(image, 0.0, np.random.default_rng(0)), image)


@pytest.mark.parametrize("shape", [(2, 32, 30), (1, 8, 24, 20)])
def test_a_bias_field_is_bright_here_and_dark_there(shape: tuple[int, ...]) -> None:
    image = images((1, *shape))[0]
    field = np.log(acquisition.bias_field(image, 0.3, np.random.default_rng(0)) / image)
    assert abs(field[0].mean()) < 1e-9
    assert np.abs(field).max() == pytest.approx(0.3)
    np.testing.assert_allclose(field, np.broadcast_to(field[:1], field.shape), atol=1e-9)


@pytest.mark.parametrize("shape", [(2, 32, 30), (1, 9, 24, 21)])
def test_what_happens_in_k_space(shape: tuple[int, ...]) -> None:
    """Motion turns phases only; ghosting leaves the middle line; Gibbs leaves out an ellipse."""
    image = images((1, *shape))[0]
    axes = tuple(range(1, image.ndim))
    moved = acquisition.motion(image, 0.05, np.random.default_rng(0))
    assert np.square(moved).sum() == pytest.approx(np.square(image).sum())
    assert np.abs(moved - image).max() > 0.01

    bright = image + 5  # so far above 0 that the magnitude changes nothing
    before = np.fft.fftn(bright, axes=axes)
    after = np.fft.fftn(acquisition.ghosting(bright, 0.5, np.random.default_rng(0)), axes=axes)
    clear = np.abs(before) > 1e-6
    lines = np.broadcast_to(np.arange(shape[-2])[:, None], before.shape)
    ratio = {n: np.abs(after / before)[clear & (lines == n)] for n in range(shape[-2])}
    assert all(np.ptp(one) < 1e-6 for one in ratio.values())
    means = [round(float(one.mean()), 6) for one in ratio.values()]
    assert means[0] == 1 and set(means) == {0.5, 1.0}

    cut = np.fft.fftn(acquisition.gibbs(bright, 0.4, np.random.default_rng(0)), axes=axes)
    grid = np.meshgrid(*[2 * np.fft.fftfreq(size) for size in shape[1:]], indexing="ij")
    inside = np.sqrt(sum(g**2 for g in grid)) <= 0.6
    np.testing.assert_allclose(cut[:, inside], before[:, inside], atol=1e-8)
    np.testing.assert_allclose(cut[:, ~inside], 0, atol=1e-8)


def test_a_move_before_all_lines_is_a_plain_shift() -> None:
    class Early(np.random.Generator):
        """Both moves before the first line, along columns."""

        def uniform(self, low: Any = 0, high: Any = 1, size: Any = None) -> Any:
            return np.full(size, -1.0 if high < 1 else 0.0)

    image = images((1, 1, 15, 20))[0]
    found = acquisition.motion(image, 0.25, Early(np.random.PCG64(0)))
    np.testing.assert_allclose(found, np.abs(np.roll(image, 5, axis=-1)), atol=1e-9)


def test_a_spike_is_one_wave() -> None:
    image = images((1, 2, 32, 32))[0]
    wave = acquisition.spike(image, 0.1, np.random.default_rng(0)) - image
    spectrum = np.abs(np.fft.fftn(wave[0]))
    assert (spectrum > 1e-6).sum() == 2
    assert np.square(wave[0]).mean() == pytest.approx(0.1**2 / 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"name": "gaussian_nois"}, ValueError, "name"),
        ({"severity": 6}, ValueError, "severity"),
        ({"image": np.zeros((2, 8, 8))}, ValueError, "image has shape"),
        ({"image": np.zeros((2, 1, 8, 8), int)}, TypeError, "dtype"),
        ({"image": np.full((2, 1, 8, 8), 2.0)}, ValueError, "span"),
        ({"image": np.full((2, 1, 8, 8), np.nan)}, ValueError, "NaN"),
        ({"span": (1, 0)}, ValueError, "darkest"),
        ({"name": "stain"}, ValueError, "red, green and blue"),
    ],
)
def test_wrong_arguments_are_named(change: dict, error: type[Exception], message: str) -> None:
    given = {"image": np.zeros((2, 1, 8, 8)), "name": "gaussian_noise", "severity": 1} | change
    with pytest.raises(error, match=message):
        shifts.corrupt(given.pop("image"), given.pop("name"), given.pop("severity"), **given)


def test_resampled_labels_have_the_shares_asked_for() -> None:
    label = np.repeat([0, 1, 2], [100, 60, 40])
    rows = shifts.resample_labels(label, {0: 0.2, 2: 0.8}, seed=1)
    assert np.array_equal(rows, np.unique(rows))
    assert np.bincount(label[rows], minlength=3).tolist() == [10, 0, 40]
    few = shifts.resample_labels(label, {0: 0.5, 1: 0.25, 2: 0.25}, number=10, seed=1)
    counts = np.bincount(label[few], minlength=3)
    assert len(few) == 10 and counts[0] == 5 and sorted(counts[1:]) == [2, 3]
    often = np.zeros(200)
    for seed in range(200):
        often[shifts.resample_labels(label, {0: 1.0}, number=20, seed=seed)] += 1
    assert stats.chisquare(often[:100]).pvalue > LEVEL


def test_relabelled_cases_and_a_class_held_out() -> None:
    label = np.array([0, 1, 2, 1, -1, 2])
    assert shifts.relabel(label, {1: 0, 0: 1}).tolist() == [1, 0, 2, 0, -1, 2]
    many = shifts.relabel(np.ones(4000, int), {1: 2}, share=0.3)
    assert stats.binomtest(int((many == 2).sum()), 4000, 0.3).pvalue > LEVEL
    inside, anew, outside = shifts.hold_out_class(label, 1)
    assert (inside.tolist(), outside.tolist()) == ([0, 2, 4, 5], [1, 3])
    assert anew.tolist() == [0, 1, -1, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shifts.resample_labels([0, 1], {0: 0.5}), "sum to 0.5"),
        (lambda: shifts.resample_labels([0, 1, 1], {0: 0.5, 1: 0.5}, number=3), "class 0 has 1"),
        (lambda: shifts.resample_labels([[0, 1]], {0: 1.0}), "label has shape"),
        (lambda: shifts.hold_out_class([0, 1], 2), "class 2, of which there are 0"),
        (lambda: shifts.relabel([0.5, 1], {0: 1}), "expected integers"),
    ],
)
def test_populations_that_cannot_be(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
