"""Prediction under augmentations: the same draws, maps moved back, and nothing else changed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from example_runs import ROOT, run
from posterior_trees import array
from torch import Tensor, nn

from ppl_med import storage
from ppl_med.analysis import augmentation, scoring
from ppl_med.analysis.tree import average_augmentations
from ppl_med.data import Augmentation, Batches, drawn, flips_and_turns, symmetries, turns
from ppl_med.inference import (
    ConditionalNormal,
    MeanFieldNormal,
    PointEstimate,
    predict,
    predict_augmented,
)
from ppl_med.inference.prediction import zarr_layout
from ppl_med.models import (
    BayesianClassifier,
    BayesianRegressor,
    BayesianSegmenter,
    LatentClassifier,
)
from ppl_med.networks import GaussianEncoder
from ppl_med.weights import Normal

SIDE, CASES = 8, 5
OPTIONS: dict[str, Any] = {"draws": 3, "seed": 4, "progress": False}
Pair = tuple[Any, Any]


def classifier() -> Pair:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 3))
    model = BayesianClassifier(net, ["a", "b", "c"], Normal(0.8))
    return model, MeanFieldNormal(model, init_scale=0.3)


def latent() -> Pair:
    torch.manual_seed(0)
    model = LatentClassifier(1, ["a", "b", "c"], width=3)
    return model, ConditionalNormal(GaussianEncoder(1, 2, 3, num_classes=3))


def segmenter(kernel: int = 3) -> Pair:
    torch.manual_seed(0)
    net = nn.Conv2d(1, 2, kernel, padding=kernel // 2)
    model = BayesianSegmenter(net, ["out", "in"], prior=Normal(1.0))
    return model, MeanFieldNormal(model, init_scale=0.3)


PAIRS: dict[str, Callable[[], Pair]] = {
    "classifier": classifier,
    "latent": latent,
    "segmenter": segmenter,
}


def cases(name: str, batch_size: int = 2, **changed: Any) -> Batches:
    rng = np.random.default_rng(1)
    arrays: dict[str, Any] = {"image": rng.normal(size=(CASES, 1, SIDE, SIDE)).astype("float32")}
    if name == "segmenter":
        arrays["mask"] = rng.integers(-1, 2, (CASES, SIDE, SIDE))
    else:
        arrays["label"] = rng.integers(0, 3, CASES)
    arrays |= {"id": [f"c{i}" for i in range(CASES)], "site": np.arange(CASES)}
    return Batches(arrays | changed, batch_size=batch_size)


def without(tree: xr.DataTree, index: int = 0) -> dict[str, xr.Dataset]:
    """The groups under one augmentation."""
    return {
        name: node.to_dataset()
        .isel(augmentation=index, missing_dims="ignore")
        .drop_vars("augmentation", errors="ignore")
        for name, node in tree.children.items()
    }


@pytest.mark.parametrize("name", PAIRS)
def test_the_identity_is_the_prediction(name: str) -> None:
    pair, batches = PAIRS[name](), cases(name)
    plain = predict(*pair, batches, **OPTIONS)
    found = predict_augmented(*pair, batches, symmetries(1), **OPTIONS)
    groups = without(found)
    left = {"log_likelihood"} if name == "segmenter" else set()
    assert set(groups) == set(plain.children) - left
    for group, one in groups.items():
        xr.testing.assert_identical(one, plain[group].to_dataset())
    assert array(found, "posterior/probs").dims[:4] == ("chain", "draw", "augmentation", "case")
    differing = {"wall_time_seconds", "augmentations"}
    assert {k: v for k, v in found.attrs.items() if k not in differing} == {
        k: v for k, v in plain.attrs.items() if k not in differing
    }


@pytest.mark.parametrize("name", ["latent", "segmenter"])
def test_draws_are_the_same_under_every_augmentation(name: str) -> None:
    """Each is the prediction of images moved by hand, with the noise of the same cases."""
    pair, batches = PAIRS[name](), cases(name)
    found = predict_augmented(*pair, batches, symmetries(8), **OPTIONS)
    image = np.asarray(batches.arrays["image"])
    moves: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda x: x,
        lambda x: x[..., ::-1],
        lambda x: x[..., ::-1, :],
        lambda x: x[..., ::-1, ::-1],
    ]
    moves += [partial(_transposed, one) for one in moves]
    back = [*moves[:5], *(moves[i] for i in (6, 5, 7))]
    for index, (move, undo) in enumerate(zip(moves, back, strict=True)):
        moved = predict(*pair, cases(name, image=move(image).copy()), **OPTIONS)
        groups = without(found, index)
        for variable in ("posterior/probs", f"posterior_predictive/{_observed(name)}"):
            group, own = variable.split("/")
            expected = array(moved, variable)
            values = undo(expected.values) if name == "segmenter" else expected.values
            np.testing.assert_array_equal(groups[group][own].values, values)
        if "weight_norm" in groups["posterior"]:
            weights = moved["posterior"].to_dataset()["weight_norm"]
            xr.testing.assert_identical(groups["posterior"]["weight_norm"], weights)
    assert "augmentation" not in found["observed_data"].dims


def _transposed(move: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
    return move(image).swapaxes(-1, -2)


def _observed(name: str) -> str:
    return "mask" if name == "segmenter" else "label"


def test_a_net_that_sees_no_direction_has_no_variance_by_symmetries() -> None:
    tree = predict_augmented(*segmenter(1), cases("segmenter"), symmetries(8), **OPTIONS)
    found = augmentation.variance(tree)
    assert (found["augmentation"] == 0).all() and (found["interaction"] == 0).all()
    assert (found["model"] > 0).all()
    averaged = average_augmentations(tree)
    plain = predict(*segmenter(1), cases("segmenter"), **OPTIONS)
    xr.testing.assert_allclose(scoring.score(averaged), scoring.score(plain), rtol=1e-5)


def test_turned_maps_are_turned_back_and_unknown_outside() -> None:
    """A linear ramp is interpolated without error wherever nothing of it had left the image."""
    rows, cols = np.mgrid[0:24, 0:24].astype("float64")
    ramp = torch.from_numpy(0.3 * rows - 0.2 * cols)
    unknown = []
    for one in turns(6, degrees=30, factor=1.3, seed=3):
        assert one.undo is not None
        moved = one.move(ramp[None, None], 0)
        back = one.undo(moved[0])[0].numpy()
        known = ~np.isnan(back)
        # A band of the border is interpolated from repeated pixels.
        inner = known & (np.minimum(rows, 23 - rows) > 1) & (np.minimum(cols, 23 - cols) > 1)
        np.testing.assert_allclose(back[inner], ramp.numpy()[inner], atol=1e-4)
        whole = one.undo(torch.ones(24, 24, dtype=torch.int64))
        assert set(np.unique(whole.numpy())) <= {-1, 1}
        unknown.append((~known).mean())
    assert unknown[0] == 0 and max(unknown) > 0.1


def test_turned_pixels_that_left_the_image_are_unknown_in_the_tree() -> None:
    chosen = turns(4, degrees=20, factor=1.2, seed=0)
    tree = predict_augmented(*segmenter(), cases("segmenter"), chosen, **OPTIONS)
    probs, mask = array(tree, "posterior/probs"), array(tree, "posterior_predictive/mask")
    assert probs.isel(augmentation=0).notnull().all() and probs.isnull().any()
    assert (mask.isel(augmentation=0) >= 0).all() and (mask == -1).any()
    np.testing.assert_allclose(
        probs.sum("class").where(probs.notnull().all("class")).min(), 1, rtol=1e-5
    )
    found = augmentation.variance(tree)
    known = probs.notnull().all(("chain", "draw", "class")).sum("augmentation")
    np.testing.assert_array_equal(found["model"].notnull().all("class"), known > 1)


@pytest.mark.parametrize("most_bytes", [2**24, 64])  # of a chunk: maps in one, and in several
def test_a_stream_gives_the_same_and_goes_on(
    most_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zarr_layout, "MOST_BYTES", most_bytes)
    pair, batches = segmenter(), cases("segmenter")
    chosen = symmetries(4)
    expected = predict_augmented(*pair, batches, chosen, **OPTIONS)
    path = tmp_path / "run.zarr"
    seen = []

    def failing(image: Tensor, first: int) -> Tensor:
        seen.append(first)
        if len(seen) > 3:
            raise RuntimeError("lost")
        return image.flip(-2)

    broken = [*chosen[:2], Augmentation("upend", failing, lambda maps: maps.flip(-2)), chosen[3]]
    with pytest.raises(RuntimeError, match="lost"):
        predict_augmented(*pair, batches, broken, store=path, **OPTIONS)
    with pytest.raises(FileExistsError, match="resume=True"):
        predict_augmented(*pair, batches, chosen, store=path, **OPTIONS)
    found = predict_augmented(*pair, batches, chosen, store=path, resume=True, **OPTIONS)
    assert array(found, "posterior/probs").chunks is not None
    assert [one.name for one in tmp_path.iterdir()] == ["run.zarr"]
    loaded = storage.load(path)
    assert isinstance(loaded, xr.DataTree)
    for tree in (found, loaded):
        for group, node in expected.children.items():
            xr.testing.assert_equal(tree[group].to_dataset().compute(), node.to_dataset())
    xr.testing.assert_allclose(augmentation.summary(found), augmentation.summary(expected))
    with pytest.raises(FileExistsError, match="exists"):
        predict_augmented(*pair, batches, chosen, store=path, **OPTIONS)


def test_drawn_augmentations_belong_to_the_case() -> None:
    def noise(image: Tensor, generator: torch.Generator) -> Tensor:
        return image + torch.randn(image.shape, generator=generator)

    pair, chosen = classifier(), drawn(noise, 3, seed=1)
    one, other = (
        predict_augmented(*pair, cases("classifier", size), chosen, **OPTIONS) for size in (1, 5)
    )
    np.testing.assert_allclose(
        array(one, "posterior/probs"), array(other, "posterior/probs"), rtol=1e-5
    )
    again = drawn(flips_and_turns, 2, seed=1)
    image = torch.randn(3, 1, 4, 4)
    assert torch.equal(again[0].move(image, 7), again[0].move(image, 7))


def test_numbers_are_split_too() -> None:
    torch.manual_seed(0)
    model = BayesianRegressor(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), prior=Normal(1.0))
    rng = np.random.default_rng(0)
    arrays = {"image": rng.normal(size=(4, 1, 8, 8)).astype("float32"), "value": rng.normal(size=4)}
    pair = model, MeanFieldNormal(model, init_scale=0.3)
    tree = predict_augmented(*pair, Batches(arrays), symmetries(4), **OPTIONS)
    assert (augmentation.variance(tree)["total"] > 0).all()
    with pytest.raises(ValueError, match="choose one augmentation"):
        average_augmentations(tree)


def test_misuse_is_refused() -> None:
    pair, batches = segmenter(), cases("segmenter")
    with pytest.raises(ValueError, match="augmentation 'silent' cannot be undone"):
        predict_augmented(
            *pair, batches, [*symmetries(2), Augmentation("silent", lambda x, _: x)], **OPTIONS
        )
    with pytest.raises(ValueError, match="augmentations must be a list such as"):
        predict_augmented(*pair, batches, [], **OPTIONS)
    with pytest.raises(ValueError, match="different names"):
        predict_augmented(*pair, batches, symmetries(2) * 2, **OPTIONS)
    with pytest.raises(ValueError, match="prior_draws"):
        predict_augmented(*pair, batches, symmetries(2), prior_draws=3, **OPTIONS)
    with pytest.raises(ValueError, match="must end in"):
        predict_augmented(*pair, batches, symmetries(2), store="run.csv", **OPTIONS)
    with pytest.raises(ValueError, match="must be square"):
        predict_augmented(
            *pair,
            [{"image": torch.zeros(2, 1, 4, 6)}],
            symmetries(8),
            **OPTIONS,
        )
    sizes = [
        {"image": torch.zeros(2, 1, size, size), "id": [f"{size}", f"{size}b"]} for size in (4, 6)
    ]
    with pytest.raises(ValueError, match="images of one size"):
        predict_augmented(*pair, sizes, symmetries(2), **OPTIONS)
    with pytest.raises(ValueError, match="must keep the shape"):
        predict_augmented(*classifier(), cases("classifier"), [lambda x: x[..., :4]], **OPTIONS)
    loader = torch.utils.data.DataLoader(_Cases(), batch_size=2, shuffle=True)
    with pytest.raises(ValueError, match="no 'id'"):
        predict_augmented(*classifier(), loader, symmetries(2), **OPTIONS)
    for factory in (lambda: symmetries(3), lambda: turns(0), lambda: turns(2, factor=0.5)):
        with pytest.raises(ValueError):
            factory()


class _Cases(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": torch.full((1, SIDE, SIDE), float(index))}


def test_one_draw_or_one_augmentation_is_refused_by_name() -> None:
    model, _ = classifier()
    tree = predict_augmented(
        model, PointEstimate(model), cases("classifier"), symmetries(4), **OPTIONS
    )
    with pytest.raises(ValueError, match="one draw, or copies of one"):
        augmentation.variance(tree)
    tree = predict_augmented(*classifier(), cases("classifier"), symmetries(1), **OPTIONS)
    with pytest.raises(ValueError, match="one augmentation"):
        augmentation.summary(tree)
    with pytest.raises(ValueError, match="axis of augmentations"):
        scoring.score(tree)
    plain = predict(*classifier(), cases("classifier"), **OPTIONS)
    with pytest.raises(ValueError, match="predict_augmented"):
        augmentation.variance(plain)
    with pytest.raises(ValueError, match="no axis of augmentations"):
        average_augmentations(plain)


def test_average_is_the_mean_of_probabilities_and_of_likelihoods() -> None:
    tree = predict_augmented(*classifier(), cases("classifier"), symmetries(8), **OPTIONS)
    found = average_augmentations(tree)
    probs = array(tree, "posterior/probs").mean("augmentation")
    xr.testing.assert_allclose(array(found, "posterior/probs"), probs)
    label = array(found, "observed_data/label")
    expected: Any = np.log(probs.isel({"class": xr.DataArray(label.values, dims="case")}))
    np.testing.assert_allclose(
        array(found, "log_likelihood/label"), expected.transpose("chain", "draw", "case")
    )
    assert np.isfinite(float(scoring.score(found)["nll"]))


@pytest.mark.slow
def test_the_example_on_malaria_cells_runs(tmp_path: Path, data_folder: Path) -> None:
    script = ROOT / "examples" / "unknown_inputs" / "augmentations.py"
    printed = run(script, "--smoke", "--out", tmp_path / "run", "--data", data_folder)
    assert "augmentation" in printed
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"augmentations.nc", "augmentations.png"}
