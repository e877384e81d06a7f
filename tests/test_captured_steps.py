"""``fit(..., capture=True)`` trains as without: same losses, same parameters, step for step.

Without a GPU, a graph is imitated by a tape of operators (``taped_graph``); the tests marked
``gpu`` run the same on one.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
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
    ImportanceWeighted,
    MeanFieldNormal,
    PointEstimate,
    VariationalOnlineNewton,
    fit,
    warm_up,
)
from ppl_med.inference.training.captured.captured_step import WARM_UP, CapturedStep
from ppl_med.inference.training.captured.eligibility import check_alone
from ppl_med.inference.training.captured.replay_check import TRIALS
from ppl_med.inference.training.trainer import Trainer
from ppl_med.models import BayesianClassifier, DUQClassifier, LatentClassifier
from ppl_med.networks import GaussianEncoder, LeNet
from ppl_med.weights import RandomWeights

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


@pytest.mark.usefixtures("imitated")
def test_a_step_that_exchanges_tensors_is_refused() -> None:
    class Moving(DUQClassifier):
        """Its centroids are new tensors after every step."""

        def after_step(self, image: Tensor, label: Tensor) -> None:
            super().after_step(image, label)
            self.centroids.total = self.centroids.total.clone()

    with pytest.raises(RuntimeError, match="write into it"):
        train(lambda: Moving(LeNet(1, 5, size=16), ["a", "b"], 5), PointEstimate, capture=True)


# ---------------------------------------------------------------- what cannot be captured


class Reading(BayesianClassifier):
    """Looks at its logits on the way."""

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        logits = super().forward(image, label, num_cases=num_cases)
        assert logits.isfinite().all()
        return logits


class DrawingOnTheHost(BayesianClassifier):
    """Adds noise from NumPy's generator while it trains."""

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        noise = float(np.random.normal()) if self.training else 0.0  # noqa: NPY002
        return super().forward(image + noise, label, num_cases=num_cases)


class PartOfThePixels(nn.Module):
    """Observes some columns only, which are drawn anew in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.network = RandomWeights(nn.Conv2d(1, 1, 1))

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        output = self.network(image)
        with pyro.plate("case", num_cases or len(image), subsample=image, dim=-2):
            with pyro.plate("col", 16, subsample_size=4, dim=-1):
                law = dist.Normal(output.mean((1, 2, 3))[:, None].expand(-1, 4), 1.0)
                seen = None if label is None else label[:, None].expand(-1, 4).float()
                pyro.sample("label", law, obs=seen)


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "accumulated": (lenet, {"accumulate": 2}, "accumulate must be 1 with capture=True, got 2"),
    "particles": (lenet, {"objective": ImportanceWeighted()}, "objective must be Elbo"),
    "optimizer": (
        lenet,
        {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)},
        "optimizer must be one of torch's .* got 'SGD'; such as Adam",
    ),
    "reading": (
        lambda: Reading(LeNet(1, 2, size=16), ["a", "b"]),
        {},
        "capture must be False .* makes the host wait for the device, at .*assert logits.isfinite",
    ),
    "drawing on the host": (
        lambda: DrawingOnTheHost(LeNet(1, 2, size=16), ["a", "b"]),
        {},
        "capture must be False .* draw random numbers on the host",
    ),
    "random plate": (
        PartOfThePixels,
        {},
        "capture must be False with the plate 'col', which draws 4 of 16",
    ),
}


@pytest.mark.usefixtures("imitated")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_is_refused_before_any_training(name: str) -> None:
    make, options, message = REFUSED[name]
    torch.manual_seed(0)
    model = make()
    guide = MeanFieldNormal(model)
    before = [value.clone() for value in state(model, guide)]
    settings = {"capture": True, "device": "cpu", "progress": False, **options}
    with pytest.raises(ValueError, match=message):
        fit(model, guide, batches(), **settings)
    for value, earlier in zip(state(model, guide), before, strict=True):
        assert torch.equal(value, earlier)


def test_a_cpu_captures_nothing() -> None:
    model = lenet()
    with pytest.raises(ValueError, match="capture must be False on the device 'cpu'"):
        fit(model, MeanFieldNormal(model), batches(), capture=True, device="cpu")


@pytest.mark.usefixtures("imitated")
def test_batches_of_more_than_tensors_are_refused() -> None:
    class Told(BayesianClassifier):
        def forward(
            self, image: Tensor, label: Any = None, *, view: Any = None, num_cases: Any = None
        ) -> Tensor:
            return super().forward(image, label, num_cases=num_cases)

    torch.manual_seed(0)
    model = Told(LeNet(1, 2, size=16), ["a", "b"])
    guide = MeanFieldNormal(model)
    data = [{"image": torch.randn(2, 1, 16, 16), "label": torch.tensor([0, 1]), "view": "front"}]

    with pytest.raises(ValueError, match="'view' would stay as in the first batch"):
        fit(model, Guided(guide), data, capture=True, device="cpu", progress=False)


class Guided(nn.Module):
    """A guide that takes whatever the model takes."""

    def __init__(self, guide: nn.Module) -> None:
        super().__init__()
        self.guide = guide

    def forward(self, *inputs: Any, num_cases: int | None = None, **options: Any) -> None:
        self.guide(*inputs, num_cases=num_cases)


def test_several_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="capture must be False in several processes"):
        check_alone(2, capture=True)


# ---------------------------------------------------------------- on a GPU

NETS: dict[str, Any] = {
    "LeNet": lambda: lenet(),
    "ResNet-18": lambda: BayesianClassifier(resnet18(num_classes=2), ["a", "b"]),
}


@pytest.mark.gpu
@pytest.mark.parametrize("estimator", ["shared", "auto"])
@pytest.mark.parametrize("net", NETS)
def test_a_run_captured_on_a_gpu_is_the_run(net: str, estimator: Any) -> None:
    """But for sums whose order a GPU leaves open."""
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
