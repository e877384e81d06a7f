"""Entropy of predictions as a loss: steps are those of gradient descent; collapse is stopped."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from test_adaptation import CLASSES, batches, images, network, probs, state
from torch import nn

from ppl_med.inference import PointEstimate
from ppl_med.inference.adaptation import adapt, minimise_entropy
from ppl_med.models import BayesianClassifier

SETTINGS: dict[str, Any] = {"progress": False, "device": "cpu"}


@pytest.fixture
def pair() -> tuple[Any, Any]:
    model = BayesianClassifier(network(), CLASSES)
    return model, PointEstimate(model)


def entropy_of(logits: torch.Tensor) -> torch.Tensor:
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


def test_one_step_is_that_of_gradient_descent_and_lowers_the_entropy(pair: Any) -> None:
    """PyTorch's SGD on a copy in training mode is the oracle; then the domain's statistics."""
    model, guide = pair
    ward = images(2, shift=1.5)
    before = state(model, guide)
    new_model, new_guide, history = minimise_entropy(
        model, guide, batches(ward, len(ward)), learning_rate=0.5, most_entropy=None, guard=0.0,
        draws=1, epochs=2, **SETTINGS,
    )  # fmt: skip
    after = state(model, guide)
    assert all(torch.equal(before[name], after[name]) for name in before)

    net = copy.deepcopy(model).network.net.train()
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    optimiser = torch.optim.SGD([p for m in norms for p in m.parameters()], lr=0.5)
    told = []
    for _ in range(2):
        optimiser.zero_grad()
        entropy = entropy_of(net(ward)).mean()
        told.append(float(entropy.detach()))
        entropy.backward()
        optimiser.step()
    np.testing.assert_allclose(history["entropy"][0, 0], told, atol=1e-5)
    assert told[1] < told[0]
    with torch.no_grad():
        expected = net(ward).softmax(1).numpy()
    np.testing.assert_allclose(
        probs(new_model, new_guide, batches(ward))[0, 0], expected, atol=1e-4
    )


def test_uncertain_cases_take_no_part(pair: Any) -> None:
    model, guide = pair
    ward = batches(images(2), 11)
    few = minimise_entropy(model, guide, ward, most_entropy=0.9, draws=1, **SETTINGS)[2]
    none = minimise_entropy(model, guide, ward, most_entropy=1e-9, draws=1, **SETTINGS)
    assert ((few["share_used"] > 0) & (few["share_used"] < 1)).any()
    assert (none[2]["share_used"] == 0).all()
    found = none[1].draw(0)
    weights = [value for name, value in found.items() if name.startswith("norm_weight")]
    assert weights and all(torch.equal(value, torch.ones_like(value)) for value in weights)


def leaning() -> nn.Module:
    """A net of two classes that leans to the first: so does the slope of the entropy."""
    net: Any = nn.Sequential(nn.Conv2d(1, 1, 8), nn.Flatten(), nn.BatchNorm1d(1), nn.Linear(1, 2))
    with torch.no_grad():
        net[3].weight.copy_(torch.tensor([[0.5], [-0.5]]))
        net[3].bias.copy_(torch.tensor([1.0, 0.0]))
    found: nn.Module = net
    return found


def test_the_guard_stops_a_collapse() -> None:
    """Carried on without a brake, all cases get one class; with it, the draw is as at its start."""
    model = BayesianClassifier(leaning(), CLASSES[:2])
    guide, ward = PointEstimate(model), batches(images(2), 11)
    settings = SETTINGS | {"learning_rate": 1.0, "most_entropy": None, "draws": 1, "epochs": 30}
    free = minimise_entropy(model, guide, ward, guard=0.0, **settings)
    held = minimise_entropy(model, guide, ward, guard=0.5, **settings)
    marginal = free[2]["marginal_entropy"][0, 0]
    assert marginal[0] > 0.5 and marginal[-1] < 0.1 and not free[2]["collapsed"].any()
    assert (probs(free[0], free[1], ward)[0, 0, :, 0] > 0.5).all()
    assert held[2]["collapsed"].all()
    stopped = held[2]["marginal_entropy"][0, 0].dropna("step")
    assert float(stopped.min()) > 0.2 and len(stopped) < len(marginal)
    weights = [value for name, value in held[1].draw(0).items() if name.startswith("norm_weight")]
    assert weights and all(torch.equal(value, torch.ones_like(value)) for value in weights)
    own = probs(*adapt(model, guide, ward, draws=1, **SETTINGS), ward)
    np.testing.assert_array_equal(probs(held[0], held[1], ward), own)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"guard": 1.0}, "guard"),
        ({"most_entropy": -1.0}, "most_entropy"),
        ({"epochs": 0}, "epochs"),
        ({"batches": batches(images(1, number=5), 4)}, "one case"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str, pair: Any) -> None:
    given: dict[str, Any] = {"batches": batches(images(1)), "draws": 1} | change
    with pytest.raises(ValueError, match=message):
        minimise_entropy(pair[0], pair[1], given.pop("batches"), **given, **SETTINGS)


def test_layers_that_do_not_scale_are_refused() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=False), nn.Flatten(),
                        nn.Linear(72, 3))  # fmt: skip
    model = BayesianClassifier(net, CLASSES)
    with pytest.raises(ValueError, match="affine=False"):
        minimise_entropy(model, PointEstimate(model), batches(images(1)), **SETTINGS)
