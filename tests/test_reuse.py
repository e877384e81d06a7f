"""A deterministic network runs once a batch while a program is drawn from, and only then."""

import contextlib
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

from ppl_med.inference import ConditionalNormal, MeanFieldNormal, fit, predict
from ppl_med.models import ProbabilisticUNet
from ppl_med.weights import RandomWeights
from ppl_med.weights.call_cache import cached_call, caching


class Counting(nn.Module):
    """Adds one; counts how often."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1
        return image + 1


@pytest.fixture
def net() -> Counting:
    return Counting().eval()


@torch.no_grad()
def test_the_same_tensor_is_the_same_call(net: Counting) -> None:
    image, other = torch.zeros(2), torch.zeros(2)
    with caching():
        assert cached_call(net, image) is cached_call(net, image)
        assert net.calls == 1
        cached_call(net, other)
        assert net.calls == 2
        image.add_(1)  # the same object, other values
        assert torch.equal(cached_call(net, image), torch.full((2,), 2.0))
    cached_call(net, image)
    assert net.calls == 4, "nothing is kept outside the block"


@torch.no_grad()
def test_an_output_that_was_changed_in_place_is_not_given_again(net: Counting) -> None:
    image = torch.zeros(2)
    with caching():
        for _ in range(3):
            assert torch.equal(cached_call(net, image).mul_(2), torch.full((2,), 2.0))


class OnFeatures(nn.Module):
    """A random head that changes its input, features of the image, in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        self.network = RandomWeights(nn.Sequential(nn.SiLU(inplace=True), nn.Linear(3, 2)))

    def forward(self, image: Tensor, label: Any = None, *, num_cases: int | None = None) -> None:
        logits = self.network(cached_call(self.features, image))
        with pyro.plate("case", num_cases or len(image), subsample=image):
            pyro.sample("label", dist.Categorical(logits=logits), obs=label)


def test_draws_of_a_head_that_works_in_place_are_those_without(monkeypatch: Any) -> None:
    model = OnFeatures()
    guide, data = MeanFieldNormal(model), [{"image": torch.randn(3, 1, 2, 2)}]
    found = predict(model, guide, data, draws=4, progress=False)
    monkeypatch.setattr("ppl_med.inference.predictive.caching", contextlib.nullcontext)
    alone = predict(model, guide, data, draws=4, progress=False)
    xr.testing.assert_identical(found["posterior"].dataset, alone["posterior"].dataset)


@torch.no_grad()
def test_a_network_that_was_changed_runs_anew() -> None:
    """By a pass in training mode, which moves its statistics, and by a step of its weights."""
    net, values = nn.BatchNorm1d(2).eval(), torch.randn(5, 2)
    with caching():
        cached_call(net, values)
        net.train()
        cached_call(net, values)
        net.eval()
        assert torch.equal(cached_call(net, values), net(values))
        net.weight.mul_(2)
        assert torch.equal(cached_call(net, values), net(values))


class CachedInside(nn.Module):
    """A network that keeps what its first layer gave, whose weights are drawn like all others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, image: Tensor) -> Tensor:
        output: Tensor = self.last(cached_call(self.first, image))
        return output


@torch.no_grad()
def test_a_layer_inside_of_random_weights_runs_with_those_of_every_draw() -> None:
    network, image = RandomWeights(CachedInside()).eval(), torch.randn(2, 4)

    def draws() -> list[Tensor]:
        found = []
        for seed in range(8):  # a freed draw's memory is used again
            pyro.set_rng_seed(seed)
            found.append(network(image))
        return found

    with caching():
        found = draws()
    assert all(torch.equal(*pair) for pair in zip(found, draws(), strict=True))


@torch.no_grad()
def test_a_tensor_in_the_place_of_one_that_is_gone_is_another(net: Counting) -> None:
    with caching():
        for value in range(20):
            assert cached_call(net, torch.full((1,), float(value))).item() == value + 1


def test_training_and_gradients_run_every_time(net: Counting) -> None:
    image = torch.zeros(2)
    with caching():
        cached_call(net, image), cached_call(net, image)
        assert net.calls == 2
        with torch.no_grad():
            net.train()
            cached_call(net, image), cached_call(net, image)
    assert net.calls == 4


@torch.inference_mode()
def test_inference_mode_runs_every_time(net: Counting) -> None:
    image = torch.zeros(2)
    with caching():
        first = cached_call(net, image)
        image.add_(1)
        assert not torch.equal(cached_call(net, image), first)


@torch.no_grad()
def test_random_weights_are_drawn_every_time() -> None:
    net = RandomWeights(nn.Linear(2, 2)).eval()
    image = torch.ones(1, 2)
    with caching():
        assert not torch.equal(cached_call(net, image), cached_call(net, image))


def test_predict_runs_the_unet_once_a_batch() -> None:
    torch.manual_seed(0)
    model = ProbabilisticUNet(1, ("a", "b"), channels=(4, 6), num_convolutions=1)
    guide = ConditionalNormal(model.posterior_net(), observation="mask")
    counts: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            counts[name] = counts.get(name, 0) + 1

        return hook

    model.backbone.register_forward_hook(count("backbone"))
    model.prior.register_forward_hook(count("prior"))
    model.combine.register_forward_hook(count("combine"))
    batches = [{"image": torch.randn(3, 1, 8, 8)} for _ in range(4)]
    extra = 4  # what predict finds out beforehand: the sites, and that a draw is a function
    predict(model, guide, batches, draws=10, progress=False)
    assert counts["combine"] >= 4 * 10
    assert counts["backbone"] <= 4 + extra and counts["prior"] <= 4 + extra
    labelled = [{**one, "mask": torch.zeros(3, 8, 8, dtype=torch.int64)} for one in batches]
    counts.clear()
    fit(model, guide, labelled, epochs=2, learning_rate=1e-6, progress=False)
    assert counts["backbone"] >= 8


def test_a_function_is_refused() -> None:
    with pytest.raises(TypeError, match=r"net must be a torch\.nn\.Module or a method of one"):
        cached_call(torch.tanh, torch.zeros(2))
