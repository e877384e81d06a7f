"""``fit(..., compile_nets=True)`` trains as without: from the same draws, the same steps.

The backend is torch's own kernels behind its tracer, so that no test waits for a C++ compiler; one,
which is slow, runs the compiler.
"""

from typing import Any

import pytest
import torch
from test_captured_steps import assert_alike, train
from torch import Tensor, nn

from ppl_med.data import Batches
from ppl_med.inference import (
    BernoulliDropout,
    ConditionalNormal,
    MeanFieldNormal,
    PointEstimate,
    fit,
)
from ppl_med.models import BayesianClassifier, LatentClassifier
from ppl_med.networks import GaussianEncoder
from ppl_med.weights import RandomWeights
from ppl_med.weights import compiled_nets as module

pytestmark = pytest.mark.filterwarnings("ignore:the KL is")


@pytest.fixture(autouse=True)
def quick_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKEND", "aot_eager")
    torch._dynamo.reset()


def batches() -> Batches:
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(10, 1, 8, 8, generator=generator)  # the last batch has 2 cases
    return Batches({"image": image, "label": torch.arange(10) % 2}, batch_size=4)


def twice() -> nn.Module:
    """With BatchNorm, and a layer under two names."""
    layer = nn.Conv2d(3, 3, 3, padding=1)
    parts = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), layer, nn.ReLU(), layer]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(108, 2))


def classifier() -> BayesianClassifier:
    return BayesianClassifier(twice(), ["a", "b"])


def shared(model: Any) -> MeanFieldNormal:
    return MeanFieldNormal(model, estimator="shared")


GUIDES = {
    "normal": shared,
    "point": PointEstimate,
    "dropout": lambda model: BernoulliDropout(model, per_example=False),
}


@pytest.mark.parametrize("guide", GUIDES)
def test_a_compiled_run_is_the_run(guide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"capture": False, "data": batches(), "validation": batches()}
    plain = train(classifier, GUIDES[guide], **options)
    runs = 0
    call = module.compiled_call

    def counted(*arguments: Any) -> Any:
        nonlocal runs
        runs += 1
        return call(*arguments)

    monkeypatch.setattr("ppl_med.weights.random_weights.compiled_call", counted)
    assert_alike(plain, train(classifier, GUIDES[guide], compile_nets=True, **options), 1e-5)
    assert runs == 9  # steps, and no pass of the validation


class Scaled(nn.Module):
    """Is given a tensor by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, image: Tensor, scale: Tensor, shift: float = 0.0) -> Tensor:
        return self.layer(image) * scale + shift


def test_tensors_given_by_name_are_read_anew() -> None:
    net = RandomWeights(Scaled()).train()
    image = torch.randn(5, 4)
    with module.compiled_nets() as compiled:
        for step in range(3):
            for options in ({}, {"shift": float(step)}):
                given: dict[str, Any] = {"scale": torch.rand(5, 3), **options}
                torch.manual_seed(step)
                found = net(image, **given)
                torch.manual_seed(step)
                with torch.no_grad():  # not compiled
                    torch.testing.assert_close(found, net(image, **given))
        assert len(compiled) == 1


def fitted(model: Any, guide: Any, **options: Any) -> Any:
    settings = {"compile_nets": True, "device": "cpu", "progress": False, **options}
    return fit(model, guide, batches(), **settings)


def test_weights_for_every_example_are_refused() -> None:
    model = classifier()
    guide = MeanFieldNormal(model, estimator="flipout")
    with pytest.raises(ValueError, match=r"compile_nets must be False .* estimator='shared'"):
        fitted(model, guide)


def test_a_model_without_random_weights_is_refused() -> None:
    model = LatentClassifier(1, ["a", "b"], width=2)
    guide = ConditionalNormal(GaussianEncoder(1, 2, 2, num_classes=2))
    with pytest.raises(ValueError, match="compile_nets must be False with this model"):
        fitted(model, guide)


class Asking(nn.Module):
    """Branches on what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = twice()

    def forward(self, image: Tensor) -> Tensor:
        logits = self.layers(image)
        return -logits if bool(logits.sum() > 1e9) else logits


def test_a_net_that_cannot_be_compiled_is_refused() -> None:
    model = BayesianClassifier(Asking(), ["a", "b"])
    with pytest.raises(ValueError, match="compile_nets must be False with Asking"):
        fitted(model, shared(model))


def test_it_does_not_go_with_a_captured_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_med.inference.training.captured.eligibility.DEVICES", ("cpu",))
    model = classifier()
    with pytest.raises(ValueError, match="compile_nets must be False with capture=True"):
        fitted(model, shared(model), capture=True)


@pytest.mark.slow
def test_by_the_compiler_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKEND", "inductor")
    options: dict[str, Any] = {"capture": False, "data": batches()}
    plain = train(classifier, shared, **options)
    assert_alike(plain, train(classifier, shared, compile_nets=True, **options), 1e-5)
