"""The studies of depths and of street scenes: their own figures, and what they must reproduce."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from ppl_med.data.readers.camvid import CLASS_NAMES
from ppl_med.plots.depth import depth_maps, noise_recovery

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(0)
DIMS = ("chain", "draw", "case", "row", "col")


@pytest.fixture
def depth(monkeypatch) -> Any:
    """The study of depths."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("depth.study")


@pytest.fixture
def scores(monkeypatch) -> Any:
    """Figures of the study of depths."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("depth.scores")


@pytest.fixture
def streets(monkeypatch) -> Any:
    """Figures of the pixels of street scenes."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("dense_uncertainty.pixels")


@pytest.fixture
def shared(monkeypatch) -> Any:
    """What both share."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("dense_uncertainty.variants")


@pytest.fixture
def bad_weather(monkeypatch) -> Any:
    """Corruptions of images."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("dense_uncertainty.corruption")


def number_tree(draws: int = 3) -> xr.DataTree:
    """Depth maps of two cases, 4 x 5 pixels."""
    shape = (1, draws, 2, 4, 5)
    case = {"case": ["a", "b"]}
    loc = xr.DataArray(RNG.normal(5, 1, shape), case, DIMS)
    scale = xr.DataArray(RNG.uniform(0.2, 0.6, shape), case, DIMS)
    observed = xr.DataArray(RNG.normal(5, 1, shape[2:]), case, DIMS[2:])
    return xr.DataTree.from_dict(
        {
            "/posterior": xr.Dataset({"loc": loc, "scale": scale}),
            "/observed_data": observed.to_dataset(name="depth"),
        }
    )


def test_noise_is_compared_bin_by_bin(scores):
    true = np.repeat(np.arange(1.0, 11), 7)
    same = scores.noise_table(true, true)
    assert same["correlation"] == pytest.approx(1) and same["sd_error"] == 0
    twice = scores.noise_table(2 * true, true)  # every bin holds one value k, and is off by k
    assert twice["correlation"] == pytest.approx(1)
    assert twice["sd_error"] == pytest.approx(np.arange(1, 11).mean())
    assert np.isnan(scores.noise_table(np.ones(70), true)["correlation"])


@pytest.mark.parametrize(("law", "family"), [("normal", stats.norm), ("laplace", stats.laplace)])
def test_the_nll_is_of_the_mixture_at_every_pixel(scores, law, family):
    tree = number_tree()
    group: Any = tree["posterior"].to_dataset()
    observed = tree["observed_data"].to_dataset()["depth"].values
    density = np.mean(
        [
            family(group["loc"].values[0, s], group["scale"].values[0, s]).pdf(observed)
            for s in range(3)
        ],
        axis=0,
    )
    assert scores._nll(tree, law) == pytest.approx(-np.log(density).mean())


def test_pixels_without_a_label_have_no_nll(streets):
    probs = RNG.dirichlet(np.ones(11), (1, 4, 2, 3, 5)).transpose(0, 1, 2, 5, 3, 4)
    case = {"case": ["a", "b"], "class": list(CLASS_NAMES)}
    whole = xr.DataArray(probs, case, ("chain", "draw", "case", "class", "row", "col"))
    mask = xr.DataArray(RNG.integers(-1, 11, (2, 3, 5)), {"case": ["a", "b"]}, DIMS[2:])
    tree = xr.DataTree.from_dict(
        {"/posterior": whole.to_dataset(name="probs"),
         "/observed_data": mask.to_dataset(name="mask")}
    )  # fmt: skip
    maps = streets.pixel_maps(tree, np.zeros((2, 3, 5)))
    mean = probs.mean((0, 1))
    for at in np.ndindex(2, 3, 5):
        label, found = int(mask.values[at]), float(maps["nll"].values[at])
        here = mean[at[0], :, at[1], at[2]]
        assert np.isnan(found) if label < 0 else found == pytest.approx(-np.log(here[label]), 1e-5)
        assert maps["prediction"].values[at] == here.argmax()
    parts = maps["expected_entropy"] + maps["mutual_information"]
    np.testing.assert_allclose(maps["predictive_entropy"], parts, atol=1e-5)


def test_smaller_fractions_lie_in_larger_ones(shared):
    from ppl_med.data import Batches

    images = RNG.random((20, 1, 4, 4), np.float32)
    batches = Batches({"image": images, "id": np.arange(20)}, batch_size=8, shuffle=True)
    found = [set(shared.share(batches, part, 3).ids) for part in (0.25, 0.5, 1.0)]
    assert [len(one) for one in found] == [5, 10, 20] and found[0] < found[1] < found[2]
    assert found[0] != set(shared.share(batches, 0.25, 4).ids)


def test_corruptions_are_seeded_and_of_the_stated_strength(bad_weather):
    grey = np.full((3, 3, 64, 48), 128, np.uint8)
    noisy = bad_weather.corrupt(grey, "noise", 2, seed=5)
    again = bad_weather.corrupt(grey[:2], "noise", 2, seed=5)
    assert (noisy[:2] == again).all() and (noisy[0] != noisy[1]).any()
    spread = (noisy / 255).var() / 0.1**2 * (noisy.size - 1)
    tail = stats.chi2(noisy.size - 1).cdf(spread)
    assert 5e-4 < tail < 1 - 5e-4  # rounding to 1/255 adds 0.01 % to the variance
    assert (bad_weather.corrupt(grey, "blur", 5) == grey).all()
    fog = bad_weather.corrupt(grey * 0, "fog", 3).mean((1, 2, 3)) / 255
    np.testing.assert_allclose(fog, 0.55, atol=0.02)
    with pytest.raises(ValueError, match="severity"):
        bad_weather.corrupt(grey, "fog", 6)
    with pytest.raises(ValueError, match="kind"):
        bad_weather.corrupt(grey, "snow", 1)
    with pytest.raises(ValueError, match="uint8"):
        bad_weather.corrupt(grey / 255, "fog", 1)


def test_maps_of_depth_are_drawn(depth):
    tree = number_tree()
    images = RNG.random((2, 3, 4, 5))
    figure = depth_maps(tree, images, noise_sd=np.full((2, 4, 5), 0.3))
    titles = [ax.get_title() for ax in figure.axes[:6]]
    assert titles == [
        "image", "measured depth", "predicted depth", "true noise, sd", "learnt noise, sd",
        "epistemic, sd",
    ]  # fmt: skip
    scale = tree["posterior"].to_dataset()["scale"].values
    learnt = np.sqrt((scale[0, :, 0] ** 2).mean(0))
    shown: Any = figure.axes[4].images[0].get_array()
    np.testing.assert_allclose(shown, learnt)
    with pytest.raises(ValueError, match="noise_sd has shape"):
        depth_maps(tree, images, noise_sd=np.ones((2, 4, 4)))
    with pytest.raises(ValueError, match="case must be ids"):
        depth_maps(tree, images, "nobody")


def test_recovered_noise_is_drawn(scores):
    true = np.repeat(np.arange(1.0, 11), 7)
    figure = noise_recovery({"net": scores.noise_table(2 * true, true)})
    lines = figure.axes[0].lines
    assert (np.asarray(lines[1].get_ydata()) == 2 * np.asarray(lines[1].get_xdata())).all()
    with pytest.raises(ValueError, match="tables is empty"):
        noise_recovery({})


def shift_by_outliers(depth, tmp_path, variant: str, likelihood: str, share: float) -> float:
    """How far outliers move the mean prediction on scenes without any, metres."""
    found = []
    for outliers in (0.0, share):
        options = depth.Options(
            scenes=64, size=16, channels=(8,), steps=200, cases=32, draws=2, batch_size=16,
            outliers=outliers, likelihood=likelihood, noise="gaussian", learning_rate=1e-2,
        )  # fmt: skip
        folder = tmp_path / f"{likelihood}-{outliers}"
        folder.mkdir()
        study = depth.Study(options, folder)
        tree = study.trees(depth.Cell(variant, 1.0, 0))["none"]
        found.append(float(tree["posterior/loc"].mean()))
    return found[1] - found[0]


@pytest.mark.slow
def test_outliers_move_the_laplace_fit_less_than_the_homoscedastic_normal_one(depth, tmp_path):
    share = 0.1
    square = shift_by_outliers(depth, tmp_path, "baseline", "gaussian", share)
    absolute = shift_by_outliers(depth, tmp_path, "aleatoric", "laplace", share)
    # A mean of 5.5 to 6 m takes a tenth of the way to the outliers' 16 m; a median goes to the
    # 0.5 / 0.9 quantile of the noise, which is 0.14 of its standard deviations of up to 0.55 m.
    assert 0.7 < square / (share * (16 - 5.75)) < 1.3
    assert abs(absolute) < square / 3


@pytest.mark.slow
def test_noise_is_recovered_and_doubt_falls_with_data_and_rises_off_them(depth, tmp_path):
    options = depth.Options(variant=("both",), fraction=(1.0, 0.25), split="test", device="cpu")
    study = depth.Study(options, tmp_path)
    result = depth.collect(study).isel(variant=0, seed=0)
    whole, quarter = result.sel(fraction=1.0), result.sel(fraction=0.25)
    usual = whole.sel(images="like training")
    assert usual["correlation"] >= 0.95
    assert usual["sd_error"] <= 0.02
    assert usual["interval_error"] <= 0.02
    assert usual["epistemic"] < quarter["epistemic"].sel(images="like training")
    shifted = ["shifted colour", "shifted texture"]
    for part in (whole, quarter):
        same = part.sel(images="like training")
        assert abs(same["aleatoric"] / same["true_variance"] - 1) < 0.15
        ratio = part.sel(images=shifted) / same
        assert (abs(ratio["aleatoric"] - 1) < 0.4).all()
        assert (ratio["epistemic"] > 1.75).all()  # as from Make3D to NYUv2 in the paper
