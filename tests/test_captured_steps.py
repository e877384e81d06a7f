"""``fit(..., capture=True)`` trains as without: same losses, same parameters, step for step.

Without a GPU, a graph is imitated by a tape of operators (``taped_graph``); the tests marked
``gpu`` run the same on one.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from taped_graph import TapedGraph, imitate
from torch import Tensor, nn
from torch.utils.data import DataLoader, WeightedRandomSampler
from torchvision.models import resnet18

from ppl_med.data import Batches
from ppl_med.inference import (
    SWAG,
    BernoulliDropout,
    ConditionalNormal,
    Ensemble,
    Geco,
    MeanFieldNormal,
    PointEstimate,
    VariationalOnlineNewton,
    fit,
    warm_up,
)
from ppl_med.inference.training.captured.captured_step import WARM_UP, CapturedStep
from ppl_med.inference.training.captured.replay_check import TRIALS
from ppl_med.inference.training.trainer import Trainer
from ppl_med.models import BayesianClassifier, DUQClassifier, LatentClassifier
from ppl_med.networks import GaussianEncoder, LeNet

pytestmark = pytest.mark.filterwarnings("ignore:the KL is", "ignore:posterior collapse")
CASES, SIZE, EPOCHS = 18, 4, 3  # the last batch of an epoch has 2 cases
FULL = CASES // SIZE
TOLERANCE = 2e-6  # of float32 rates and KL weights against double ones


@pytest.fixture
def imitated(monkeypatch: pytest.MonkeyPatch) -> None:
    imitate(monkeypatch)


def batches(channels: int = 1, size: int = 16) -> Batches:
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(CASES, channels, size, size, generator=generator)
    return Batches({"image": image, "label": torch.arange(CASES) % 2}, batch_size=SIZE)


def lenet(where: Any = None) -> BayesianClassifier:
    return BayesianClassifier(LeNet(1, 2, size=16), ["a", "b"], where=where)


def with_norm() -> BayesianClassifier:
    net = nn.Sequential(
        nn.Conv2d(1, 3, 5), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(432, 2)
    )
    return BayesianClassifier(net, ["a", "b"])


def train(
    make: Any,
    guide_of: Any,
    *,
    capture: bool,
    device: str = "cpu",
    data: Any = None,
    **options: Any,
) -> tuple[xr.Dataset, list[Tensor]]:
    """History, and all parameters and buffers afterwards."""
    torch.manual_seed(0)
    model = make()
    guide = guide_of(model)
    settings = {"epochs": EPOCHS, "seed": 3, "progress": False, **options}
    history = fit(model, guide, data or batches(), device=device, capture=capture, **settings)
    return history, state(model, guide)


def state(model: Any, guide: Any) -> list[Tensor]:
    return [
        value.detach().cpu()
        for module in (model, guide)
        for value in (*module.parameters(), *module.buffers())
    ]


def assert_alike(
    first: tuple[xr.Dataset, list[Tensor]],
    second: tuple[xr.Dataset, list[Tensor]],
    tolerance: float = TOLERANCE,
) -> None:
    assert set(first[0]) == set(second[0])
    for name in (name for name, value in first[0].items() if value.dtype.kind == "f"):
        scale = float(np.abs(first[0][name]).max()) or 1.0
        np.testing.assert_allclose(first[0][name], second[0][name], atol=tolerance * scale)
    for one, other in zip(first[1], second[1], strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


RUNS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "plain": (lenet, lambda m: MeanFieldNormal(m, estimator="shared"), {}),
    "schedule, annealing, clipping": (
        lenet,
        lambda m: MeanFieldNormal(m, estimator="flipout"),
        {"schedule": "one-cycle", "kl_weight": warm_up(0.7), "clip_norm": 0.5},
    ),
    "norm, average, warm-up": (
        with_norm,
        lambda m: MeanFieldNormal(m, estimator="auto"),
        {"average": 0.9, "rate_warm_up": 0.5, "schedule": "cosine"},
    ),
    "rates by name": (
        lenet,
        BernoulliDropout,
        {"learning_rate": {"*features*": 0.0, "*weight": 1e-4, "*": 1e-3}, "clip_norm": 0.1},
    ),
    "constraint": (lenet, MeanFieldNormal, {"objective": Geco(0.5)}),
    "natural gradient": (lenet, MeanFieldNormal, {"optimizer": VariationalOnlineNewton()}),
    "code per case": (
        lambda: LatentClassifier(1, ["a", "b"], width=2),
        lambda _: ConditionalNormal(GaussianEncoder(1, 2, 2, num_classes=2)),
        {},
    ),
    "centroids that follow": (
        lambda: DUQClassifier(LeNet(1, 5, size=16), ["a", "b"], 5),
        PointEstimate,
        {},
    ),
    "weights that are collected": (lenet, SWAG, {"epochs": 4}),
    "bfloat16": (with_norm, MeanFieldNormal, {"precision": "bfloat16"}),
}


@pytest.mark.filterwarnings("ignore:precision='bfloat16' on a device")
@pytest.mark.usefixtures("imitated")
@pytest.mark.parametrize("name", RUNS)
def test_a_captured_run_is_the_run(name: str) -> None:
    make, guide_of, options = RUNS[name]
    whole = train(make, guide_of, capture=False, **options)
    captured = train(make, guide_of, capture=True, **options)
    assert_alike(whole, captured)
    epochs = options.get("epochs", EPOCHS)
    assert [graph.replays for graph in TapedGraph.made] == [epochs * FULL - WARM_UP + len(TRIALS)]


@pytest.mark.usefixtures("imitated")
def test_every_member_of_an_ensemble_has_a_recording_of_its_own() -> None:
    def members(model: Any) -> Ensemble:
        return Ensemble(model, MeanFieldNormal, 2)

    assert_alike(
        train(lenet, members, capture=False, epochs=2),
        train(lenet, members, capture=True, epochs=2),
    )
    assert len(TapedGraph.made) == 2


@pytest.mark.usefixtures("imitated")
def test_batches_with_a_weight_for_each_case_are_captured() -> None:
    """Of a sampler that draws some cases more often: the factor is a tensor."""
    images = batches()
    rows = [{name: value[i] for name, value in images.arrays.items()} for i in range(CASES)]
    weights = torch.arange(1.0, CASES + 1)

    def loader() -> DataLoader:
        return DataLoader(rows, SIZE, sampler=WeightedRandomSampler(weights, CASES))  # type: ignore[arg-type]

    whole, captured = (
        train(lenet, MeanFieldNormal, capture=capture, data=loader(), num_cases=CASES)
        for capture in (False, True)
    )
    assert_alike(whole, captured)
    assert TapedGraph.made[0].replays > len(TRIALS)


class Killed(Exception):
    """The run ends here."""


@pytest.mark.usefixtures("imitated")
@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("optimizer", [None, VariationalOnlineNewton()])
def test_a_run_goes_on_from_a_checkpoint_captured_or_not(
    before: bool, after: bool, optimizer: Any, tmp_path: Path
) -> None:
    options = {"schedule": "cosine", "kl_weight": warm_up(0.9), "optimizer": optimizer}
    whole = train(lenet, MeanFieldNormal, capture=False, **options)
    kept = {**options, "checkpoint": tmp_path / "run.pt", "checkpoint_every": 0.0}
    made = 0

    def kill(step: Any) -> Any:
        def counted(self: Any, *arguments: Any) -> Any:
            nonlocal made
            made += 1
            if made == 8:  # after replays, in the second epoch
                raise Killed
            return step(self, *arguments)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", kill(Trainer._step))
        with pytest.raises(Killed):
            train(lenet, MeanFieldNormal, capture=before, **kept)
    resumed = train(lenet, MeanFieldNormal, capture=after, resume=True, **kept)
    assert_alike(whole, resumed)


@pytest.mark.usefixtures("imitated")
def test_replays_read_the_batch_where_it_was_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[dict[str, int]] = []
    call = CapturedStep.__call__

    def watched(self: Any, values: Any, *rest: Any) -> Any:
        given = call(self, values, *rest)
        if len(values["image"]) == SIZE:
            places.append({name: value.data_ptr() for name, value in given.items()})
            assert torch.equal(given["image"], values["image"])
        return given

    monkeypatch.setattr(CapturedStep, "__call__", watched)
    train(lenet, MeanFieldNormal, capture=True)
    assert len(places) == EPOCHS * FULL and all(place == places[0] for place in places)


@pytest.mark.usefixtures("imitated")
def test_parameters_exchanged_between_epochs_are_recorded_anew() -> None:
    """By a callback that gives a layer another tensor of the same values."""

    def run(capture: bool) -> Any:
        torch.manual_seed(0)
        model = with_norm()
        guide = MeanFieldNormal(model, estimator="shared")
        norm: Any = model.network.net.get_submodule("1")

        def exchange(_: Any) -> None:
            norm.running_mean = norm.running_mean.clone()

        history = fit(
            model, guide, batches(), epochs=4, device="cpu", progress=False, capture=capture,
            callbacks=[exchange],
        )  # fmt: skip
        return history, state(model, guide)

    assert_alike(run(False), run(True))
    assert len(TapedGraph.made) == 4  # the first, and one for each later epoch


# ---------------------------------------------------------------- on a GPU

NETS: dict[str, Any] = {
    "LeNet": lambda: lenet(),
    "ResNet-18": lambda: BayesianClassifier(resnet18(num_classes=2), ["a", "b"]),
}


@pytest.mark.gpu
@pytest.mark.parametrize("estimator", ["shared", "auto"])
@pytest.mark.parametrize("net", NETS)
def test_a_run_captured_on_a_gpu_is_the_run(
    net: str, estimator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for sums whose order a GPU leaves open."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    options = {"schedule": "one-cycle", "kl_weight": warm_up(0.7), "clip_norm": 0.5}
    data = batches(3, 28) if net == "ResNet-18" else batches()
    whole, captured = (
        train(
            NETS[net],
            lambda m: MeanFieldNormal(m, estimator=estimator),
            capture=capture,
            device="cuda",
            data=data,
            **options,
        )
        for capture in (False, True)
    )
    assert_alike(whole, captured, tolerance=1e-3)
