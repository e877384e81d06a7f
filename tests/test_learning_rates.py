"""Learning rates by name: a layer learns at its own, wherever its weights lie."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppl_med.data import Batches
from ppl_med.inference import (
    SWAG,
    BernoulliDropout,
    ConcreteDropout,
    LowRankNormal,
    MeanFieldNormal,
    PointEstimate,
    RadialNormal,
    checkpoint,
    fit,
)
from ppl_med.inference.training.parameter_groups import names_of
from ppl_med.models import BayesianClassifier

CLASSES = ("a", "b")
GUIDES = [
    *(PointEstimate, MeanFieldNormal, LowRankNormal, RadialNormal, SWAG),
    *(BernoulliDropout, ConcreteDropout),
]
NET = "network.net."


def cases() -> Batches:
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(12, 1, 4, 4, generator=generator)
    return Batches({"image": image, "label": torch.arange(12) % 2}, batch_size=4)


def classifier(where: Any = None) -> BayesianClassifier:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3), nn.Linear(3, 2)
    )
    return BayesianClassifier(net, CLASSES, where=where)


def train(model: Any, guide: Any, **options: Any) -> Any:
    settings: dict[str, Any] = {"epochs": 2, "progress": False, "device": "cpu", "seed": 3}
    return fit(model, guide, cases(), **(settings | options))


def values(model: Any, guide: Any) -> dict[str, Tensor]:
    """Parameters by name in the model; of random weights, those of the guide's mean."""
    found = {n: p.detach().clone() for n, p in model.named_parameters()}
    for name, view in guide.layout().views(guide.center()).items():
        found[f"{NET}{name}"] = view.clone()
    return found


@pytest.mark.parametrize("where", [None, "last_layer"])
@pytest.mark.parametrize("make", GUIDES)
def test_a_rate_of_zero_freezes_a_layer_and_no_other(make: Any, where: Any) -> None:
    model = classifier(where)
    guide = make(model)
    before = values(model, guide)
    running = {n: b.clone() for n, b in model.named_buffers() if "running" in n}
    wanted = {n: p.requires_grad for n, p in model.named_parameters()}
    history = train(model, guide, learning_rate={"*.net.0.*": 0, "*.net.1.*": 0.0, "*": 0.01})
    after = values(model, guide)
    for name in before:
        still = name.startswith((f"{NET}0.", f"{NET}1."))
        assert torch.equal(before[name], after[name]) == still, name
    assert all(torch.equal(running[n], b) for n, b in model.named_buffers() if n in running)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == wanted
    assert (history["learning_rate"] == 0.01).all()


@pytest.mark.parametrize("optimizer", [None, torch.optim.SGD, torch.optim.RMSprop])
def test_every_weight_of_a_vector_learns_at_its_own_rate(optimizer: Any) -> None:
    """One step at a tenth of the rate is a tenth of the step."""
    steps = []
    for learning_rate in (0.01, {"*.net.3.*": 0.001, "*": 0.01}):
        model = classifier()
        guide = PointEstimate(model)
        before = values(model, guide)
        given: Any = optimizer
        if optimizer is not None and not isinstance(learning_rate, dict):
            given = lambda ps: optimizer(ps, lr=0.01)  # noqa: E731
        one = [next(iter(cases()))]
        options: dict[str, Any] = {"epochs": 1, "progress": False, "device": "cpu"}
        fit(model, guide, one, learning_rate=learning_rate, optimizer=given, **options)
        after = values(model, guide)
        steps.append({name: after[name] - before[name] for name in before})
    for name in steps[0]:
        expected = steps[0][name] * (0.1 if ".3." in name else 1.0)
        torch.testing.assert_close(steps[1][name], expected, rtol=1e-3, atol=1e-7)


def test_equal_rates_are_one_rate_bit_for_bit() -> None:
    found = []
    for learning_rate in (0.01, {"*.net.0.*": 0.01, "*": 0.01}):
        model = classifier()
        guide = MeanFieldNormal(model)
        train(model, guide, learning_rate=learning_rate)
        found.append(values(model, guide))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_names_are_those_of_the_model() -> None:
    model = classifier("last_layer")
    guide = MeanFieldNormal(model)
    names = {name for parts in names_of((model, guide)).values() for name, _ in parts}
    layers = {f"{NET}{layer}.{kind}" for layer in (0, 1, 3, 4) for kind in ("weight", "bias")}
    assert names == layers


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"*layer9*": 0.1, "*": 0.01}, r"pattern '\*layer9\*' fits no parameter.*network\.net\.0"),
        ({"*.net.0.*": 0.1}, r"no pattern that fits the parameter 'network\.net\.1\.weight'"),
        ({"*": 0.0}, "nothing to train"),
    ],
)
def test_patterns_that_do_not_fit_are_named(rates: Any, message: str) -> None:
    model = classifier()
    with pytest.raises(ValueError, match=message):
        train(model, PointEstimate(model), learning_rate=rates)


def test_an_optimizer_that_drops_the_rates_is_refused(tmp_path: Any) -> None:
    model = classifier()
    rates = {"*.net.0.*": 0.1, "*": 0.01}
    with pytest.raises(ValueError, match="does not use the rates of learning_rate"):
        train(
            model,
            PointEstimate(model),
            learning_rate=rates,
            optimizer=lambda groups: torch.optim.SGD([p for g in groups for p in g["params"]]),
        )
    # And a run goes on at the rates that it was begun with.
    path = tmp_path / "run.pt"
    train(model, PointEstimate(model), learning_rate=rates, checkpoint=path)
    assert checkpoint.read(path)["identity"]["learning_rate"] == [["*.net.0.*", 0.1], ["*", 0.01]]
    other = classifier()
    with pytest.raises(ValueError, match="learning_rate is"):
        train(other, PointEstimate(other), learning_rate=0.1, checkpoint=path, resume=True)
