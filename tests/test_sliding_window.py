"""Prediction by overlapping patches: one function a draw, whatever the patches."""

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from monai.inferers.inferer import SlidingWindowInferer
from posterior_trees import array
from torch import Tensor, nn

from ppl_med.axes import dims
from ppl_med.inference import (
    BernoulliDropout,
    Ensemble,
    FromPrior,
    Guides,
    MeanFieldNormal,
    PointEstimate,
    functions,
    predict,
)
from ppl_med.inference.prediction import tree_builder
from ppl_med.likelihoods import Categorical, Gaussian
from ppl_med.models import BayesianClassifier, BayesianSegmenter, DenseRegressor, ProbabilisticUNet
from ppl_med.networks.unet import UNet, convolution
from ppl_med.weights import RandomWeights

CLASSES = ("background", "liver", "tumour")
SIZES = {2: (24, 20), 3: (12, 10, 8)}
WINDOWS = {2: (12, 8), 3: (8, 6, 8)}
QUIET: dict[str, Any] = {"draws": 3, "seed": 4, "progress": False, "device": "cpu"}


class Watched(nn.Module):
    """A net that notes the sizes of what it is given."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(tuple(image.shape))
        return self.net(image)


def local_net(space: int, outputs: int = 3) -> nn.Sequential:
    """Two convolutions of width 3, so that a pixel sees 2 pixels around it."""
    first = convolution(space, 1, 4, 3)
    return nn.Sequential(first, nn.ReLU(), convolution(space, 4, outputs, 3))


def segmenter(space: int, net: nn.Module | None = None) -> BayesianSegmenter:
    torch.manual_seed(0)
    return BayesianSegmenter(net or local_net(space), CLASSES, spatial_dims=space)


def regressor(space: int) -> DenseRegressor:
    torch.manual_seed(0)
    axes = {2: ("row", "col"), 3: ("depth", "row", "col")}[space]
    law = Gaussian(axes, site="depth", partial=True)
    return DenseRegressor(local_net(space, 2), law, spatial_dims=space)


def batches(space: int, cases: int = 3, batch_size: int = 2) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    size = SIZES[space]
    image = torch.randn(cases, 1, *size, generator=generator)
    mask = torch.randint(-1, 3, (cases, *size), generator=generator)
    depth = torch.randn(cases, *size, generator=generator)
    depth[:, :2] = torch.nan
    parts = [slice(i, i + batch_size) for i in range(0, cases, batch_size)]
    return [{"image": image[p], "mask": mask[p], "depth": depth[p]} for p in parts]


def of(model: Any, data: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The batches with only what the model observes."""
    name = "mask" if hasattr(model, "coords") and "class" in model.coords else "depth"
    return [{"image": batch["image"], name: batch[name]} for batch in data]


def assert_close(first: xr.DataTree, second: xr.DataTree, tolerance: float = 1e-5) -> None:
    assert set(first.groups) == set(second.groups)
    for group in ("posterior", "log_likelihood"):
        for name, value in first[group].data_vars.items():
            np.testing.assert_allclose(
                value.values,
                array(second, f"{group}/{name}").values,
                rtol=tolerance,
                atol=tolerance,
            )


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize("space", [2, 3])
@pytest.mark.parametrize("make", [segmenter, regressor])
def test_a_window_of_the_whole_image_changes_nothing(make: Any, space: int, blend: Any) -> None:
    model = make(space)
    data = of(model, batches(space))
    guide = MeanFieldNormal(model, init_scale=0.5)
    whole = predict(model, guide, data, **QUIET)
    by_patches = predict(model, guide, data, window=SIZES[space], blend=blend, **QUIET)
    assert_close(whole, by_patches)
    assert "window" not in whole.attrs
    assert by_patches.attrs["window"] == f"{SIZES[space]}, overlap 0.25, blend {blend}"


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize("space", [2, 3])
@pytest.mark.parametrize("guide_of", [MeanFieldNormal, BernoulliDropout])
def test_every_patch_is_seen_by_one_function(guide_of: Any, space: int, blend: Any) -> None:
    """As MONAI's inferer run by hand over the function of the same draw."""
    model = segmenter(space)
    guide = guide_of(model, 0.5)  # start scale or rate
    data = of(model, batches(space))
    settings: dict[str, Any] = {"window": WINDOWS[space], "overlap": 0.5, "blend": blend}
    tree = predict(model, guide, data, **settings, **QUIET)
    inferer = SlidingWindowInferer(WINDOWS[space], sw_batch_size=5, overlap=0.5, mode=blend)
    image = torch.cat([batch["image"] for batch in data])
    mask = torch.cat([batch["mask"] for batch in data])
    draws = functions(model, guide, draws=QUIET["draws"], seed=QUIET["seed"])
    assert len({float(function(image).sum().detach()) for function in draws}) > 1
    for draw, function in enumerate(draws):
        with torch.no_grad():
            logits: Any = inferer(image, function)
        log_probs = logits.double().log_softmax(1)
        found = array(tree, "posterior/probs").isel(chain=0, draw=draw).values
        np.testing.assert_allclose(found, log_probs.exp(), atol=1e-5)
        scored = log_probs.gather(1, mask.clamp(min=0)[:, None])[:, 0]
        total = torch.where(mask < 0, 0.0, scored).flatten(1).sum(1)
        likelihood = array(tree, "log_likelihood/mask").isel(chain=0, draw=draw).values
        np.testing.assert_allclose(likelihood, total, rtol=1e-5)


def test_patches_of_one_draw_agree_where_they_overlap() -> None:
    """Windows of the receptive field's net agree beyond its reach, so the blend is the function.

    With weights of its own, a patch would disagree with the next by as much as draws do.
    """
    model = segmenter(2)
    guide = MeanFieldNormal(model, init_scale=0.5)
    data = of(model, batches(2))
    whole = array(predict(model, guide, data, **QUIET), "posterior/probs")
    tree = predict(model, guide, data, window=(12, 20), overlap=0.0, **QUIET)
    patched = array(tree, "posterior/probs")
    gaps: xr.DataArray = abs(patched - whole)
    difference = gaps.max(("chain", "draw", "case", "class", "col")).values
    seam = np.isin(np.arange(24), [10, 11, 12, 13])  # two rows on either side of the border
    assert (difference[~seam] < 1e-5).all()
    assert (difference[seam] > 1e-3).any()  # or there were no patches
    between = np.abs(whole.isel(draw=0) - whole.isel(draw=1)).max()
    assert between > 0.01


def test_every_member_of_an_ensemble_is_one_function() -> None:
    model = segmenter(2)
    guide = Ensemble(model, PointEstimate, members=2)
    data = of(model, batches(2))
    options = QUIET | {"draws": 1}
    whole = predict(model, guide, data, **options)["posterior/probs"]
    patched = predict(model, guide, data, window=(12, 20), overlap=0.5, **options)
    inner = {"row": [0, 1, 2, 3, 20, 21, 22, 23]}  # of one patch only
    np.testing.assert_allclose(patched["posterior/probs"].isel(inner), whole.isel(inner), atol=1e-5)
    assert np.abs(whole.isel(chain=0) - whole.isel(chain=1)).max() > 0.01


def test_batches_and_chunks_do_not_matter() -> None:
    model = segmenter(3)
    guide = MeanFieldNormal(model, init_scale=0.5)
    options: dict[str, Any] = {"window": WINDOWS[3], **QUIET}
    one = predict(model, guide, of(model, batches(3, batch_size=1)), **options)
    all_at_once = predict(model, guide, of(model, batches(3, batch_size=3)), **options)
    assert_close(one, all_at_once, 1e-6)


def test_the_prior_and_the_noise_of_logits_go_by_patches() -> None:
    torch.manual_seed(0)
    net = local_net(2, 6)
    model = BayesianSegmenter(net, CLASSES, likelihood="logit_normal")
    guide = PointEstimate(model)
    data = of(model, batches(2))
    whole = predict(model, guide, data, prior_draws=2, **QUIET)
    patched = predict(model, guide, data, prior_draws=2, window=SIZES[2], **QUIET)
    assert_close(whole, patched)
    np.testing.assert_allclose(patched["prior/probs"], whole["prior/probs"], atol=1e-5)


class CodeAtTheInput(nn.Module):
    """A latent code a case, tiled over the image that a random network is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = RandomWeights(nn.Sequential(UNet(2, (4, 8), 1), convolution(2, 4, 3, 1)))
        self.likelihood = Categorical(CLASSES, ("row", "col"), site="mask", partial=True)
        self.coords = {"class": list(CLASSES)}

    def forward(self, image: Tensor, mask: Any = None, *, num_cases: int | None = None) -> Tensor:
        plate = pyro.plate("case", num_cases or len(image), subsample=image)
        with plate:
            law = dist.Normal(image.new_zeros(len(image), 1), 1.0).to_event(1)
            z = pyro.sample("z", law, infer=dims("latent"))
        tiled = z[:, :, None, None].expand_as(image)
        logits: Tensor = self.network(torch.cat([image, tiled], 1))
        with plate:
            self.likelihood(logits, mask)
        return logits


def test_a_code_of_a_case_is_one_for_all_its_patches() -> None:
    model = CodeAtTheInput()
    guide = Guides(PointEstimate(model), FromPrior("z"))
    data = of(model, batches(2))
    tree = predict(model, guide, data, window=(12, 12), **QUIET)
    image = torch.cat([batch["image"] for batch in data])
    inferer = SlidingWindowInferer((12, 12), sw_batch_size=1, overlap=0.25, mode="gaussian")
    codes = torch.from_numpy(array(tree, "posterior/z").values[0])
    net = model.network.net.eval()
    assert codes.std() > 0.2
    for draw, z in enumerate(codes):
        tiled = z[:, :, None, None].expand_as(image)
        with torch.no_grad():
            logits: Any = inferer(torch.cat([image, tiled], 1), net)
        found = array(tree, "posterior/probs").values[0, draw]
        np.testing.assert_allclose(found, logits.softmax(1), atol=1e-5)


# -------------------------------------------------------------------------------------- memory


def test_the_net_never_sees_more_than_a_patch_a_case() -> None:
    net = Watched(local_net(3))
    model = segmenter(3, net)
    watched: Any = model.network.net
    data = of(model, batches(3))
    predict(model, PointEstimate(model), data, window=WINDOWS[3], **QUIET)
    sizes = set(watched.seen)
    assert {size[2:] for size in sizes} == {WINDOWS[3]}
    assert max(size[0] for size in sizes) == 2
    voxels = max(math.prod(size[2:]) for size in sizes)
    assert voxels < 0.5 * math.prod(SIZES[3])


class OneVolume:
    """A single case; its observations would add nothing."""

    def __init__(self, size: tuple[int, int, int]) -> None:
        self.image = torch.zeros(1, 1, *size)

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Any:
        yield {"image": self.image}


def peak(draws: int, store: Path | None) -> tuple[float, xr.DataTree]:
    """Largest memory that NumPy's arrays took, MB, and the result."""
    model = segmenter(3)
    guide = MeanFieldNormal(model, init_scale=0.5)
    volume: Any = OneVolume((32, 32, 32))
    options = QUIET | {"draws": draws, "window": (32, 32, 16), "overlap": 0.0, "store": store}
    tracemalloc.start()
    tree = predict(model, guide, volume, **options)
    found = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return found, tree


def test_a_store_holds_the_draws_of_a_volume_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A draw of the result takes 0.6 MB: 10 more of them, nothing in memory."""
    monkeypatch.setattr(tree_builder, "LARGE_ARRAY", 2**19)
    peak(1, None)  # imports
    few, _ = peak(2, tmp_path / "few.zarr")
    many, stored = peak(12, tmp_path / "many.zarr")
    in_memory, held = peak(12, None)
    assert many - few < 1
    assert in_memory - many > 4  # or this test could not tell
    for group in ("posterior/probs", "posterior_predictive/mask"):
        found: Any = stored[group]
        assert found.chunks is not None and set(found.chunks[1]) == {1}
        np.testing.assert_array_equal(found.values, held[group].values)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few.zarr", "many.zarr"]


def test_several_large_volumes_go_through_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_builder, "LARGE_ARRAY", 2**10)
    monkeypatch.setattr("ppl_med.inference.predictive.CHUNK_NUMBERS", 1)
    model = segmenter(3)
    guide = MeanFieldNormal(model, init_scale=0.5)
    data = of(model, batches(3, batch_size=1))
    options: dict[str, Any] = {"window": WINDOWS[3], **QUIET}
    stored = predict(model, guide, data, store=tmp_path / "run.zarr", **options)
    assert_close(stored, predict(model, guide, data, **options), 0)


def test_a_store_remembers_its_window(tmp_path: Path) -> None:
    model = segmenter(2)
    guide = PointEstimate(model)
    data = of(model, batches(2))
    store = tmp_path / "run.zarr"
    predict(model, guide, data, store=store, window=(12, 8), **QUIET)
    for options in ({}, {"window": (12, 12)}, {"window": (12, 8), "overlap": 0.5}):
        settings: dict[str, Any] = options
        with pytest.raises(ValueError, match="made with another window"):
            predict(model, guide, data, store=store, resume=True, **settings, **QUIET)
    predict(model, guide, data, store=store, resume=True, window=[12, 8], **QUIET)


# ----------------------------------------------------------------------------------- arguments


def test_an_image_smaller_than_the_window_is_padded_with_zeros() -> None:
    """Two convolutions of width 3 pad with zeros too; the first one's bias is set to nothing."""
    model = segmenter(2)
    first: Any = model.network.net.get_submodule("0")
    first.bias.data.zero_()
    guide = PointEstimate(model)
    data = of(model, batches(2))
    whole = predict(model, guide, data, **QUIET)
    inner = {"row": slice(2, -2), "col": slice(2, -2)}
    padded = predict(model, guide, data, window=(40, 33), **QUIET)
    assert padded["posterior/probs"].shape == whole["posterior/probs"].shape
    np.testing.assert_allclose(
        padded["posterior/probs"].isel(inner), whole["posterior/probs"].isel(inner), atol=1e-5
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": (12,)}, r"window \(12,\) has 1 axes.*2 spatial axes"),
        ({"window": (12, 8, 8)}, r"has 3 axes"),
        ({"window": (12, 0)}, "window must be a whole number of pixels"),
        ({"window": (12, 8.5)}, "window must be a whole number of pixels"),
        ({"window": (True, True)}, "window must be a whole number of pixels"),
        ({"window": ()}, "window must be a whole number of pixels"),
        ({"window": 12}, "window must be a whole number of pixels"),
        ({"window": "ab"}, "window must be a whole number of pixels"),
        ({"window": (12, 8), "overlap": 1.0}, r"overlap must be in \[0, 1\)"),
        ({"window": (12, 8), "overlap": -0.1}, r"overlap must be in \[0, 1\)"),
        ({"window": (12, 8), "overlap": math.nan}, r"overlap must be in \[0, 1\)"),
        ({"window": (12, 8), "overlap": "half"}, r"overlap must be in \[0, 1\)"),
        ({"window": (12, 8), "blend": "linear"}, "blend must be "),
    ],
)
@pytest.mark.usefixtures("types_unchecked")
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    model = segmenter(2)
    with pytest.raises(ValueError, match=message):
        predict(model, PointEstimate(model), of(model, batches(2)), **options, **QUIET)


def test_models_that_have_no_net_to_run_by_patches_say_so() -> None:
    torch.manual_seed(0)
    data = batches(2)
    images = [{"image": batch["image"], "mask": batch["mask"]} for batch in data]
    code = ProbabilisticUNet(1, CLASSES, (4, 8), 1, latent_dim=2)
    with pytest.raises(ValueError, match="ProbabilisticUNet runs no network with random weights"):
        predict(code, FromPrior("z"), images, window=(12, 8), **QUIET)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    classifier = BayesianClassifier(net, CLASSES)
    cases = [{"image": batch["image"]} for batch in data]
    with pytest.raises(ValueError, match=r"gave \(1, 3\) for a patch \(1, 1, 12, 8\)"):
        predict(classifier, PointEstimate(classifier), cases, window=(12, 8), **QUIET)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = RandomWeights(nn.Bilinear(20, 20, 2))

    def forward(self, image: Tensor, mask: Any = None, *, num_cases: int | None = None) -> None:
        self.network(image, image)


def test_a_net_of_two_inputs_is_refused() -> None:
    model = TwoInputs()
    with pytest.raises(ValueError, match="only networks of one image run by patches"):
        predict(model, PointEstimate(model), batches(2), window=(12, 8), **QUIET)
