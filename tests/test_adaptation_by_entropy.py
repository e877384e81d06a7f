"""Entropy of predictions as a loss: steps are those of gradient descent; collapse is stopped."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from test_adaptation import CLASSES, batches, images, network, probs, state
from torch import nn

from ppl_med.data import Batches, drawn, symmetries, turns
from ppl_med.inference import PointEstimate
from ppl_med.inference.adaptation import adapt, minimise_disagreement, minimise_entropy
from ppl_med.models import BayesianClassifier, BayesianSegmenter

SETTINGS: dict[str, Any] = {"progress": False, "device": "cpu"}
FREE = SETTINGS | {"learning_rate": 0.5, "most_entropy": None, "guard": 0.0, "draws": 1}


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


def scales_of(guide: Any) -> torch.Tensor:
    """All weights and biases of a draw, one after the other."""
    found = guide.draw(0)
    return torch.cat([found[n] for n in sorted(found) if n.startswith(("norm_w", "norm_b"))])


def test_a_reset_starts_anew_and_goes_on(pair: Any) -> None:
    """Reset before the third step, three steps are one step."""
    ward = batches(images(2, shift=1.5), 22)
    one = minimise_entropy(pair[0], pair[1], ward, epochs=1, **FREE)
    three = minimise_entropy(pair[0], pair[1], ward, epochs=3, reset_every=2, **FREE)
    free = minimise_entropy(pair[0], pair[1], ward, epochs=3, **FREE)
    assert torch.equal(scales_of(three[1]), scales_of(one[1]))
    assert not torch.equal(scales_of(free[1]), scales_of(one[1]))
    assert three[2]["restored"].values.ravel().tolist() == [False, False, True]
    entropy = three[2]["entropy"].values.ravel()
    assert entropy[2] == entropy[0] != entropy[1]


def test_the_floor_is_one_of_the_moving_mean(pair: Any) -> None:
    ward = batches(images(2, shift=1.5), 22)
    free = minimise_entropy(pair[0], pair[1], ward, epochs=12, **FREE)[2]
    entropy = free["entropy"].values.ravel()
    moving = [entropy[0]]
    for value in entropy[1:]:
        moving.append(0.9 * moving[-1] + 0.1 * value)
    assert (np.diff(moving) < 0).all()
    floor = (moving[6] + moving[7]) / 2
    held = minimise_entropy(pair[0], pair[1], ward, epochs=12, floor=floor, **FREE)[2]
    restored = held["restored"].values.ravel()
    assert restored[:8].tolist() == [False] * 7 + [True]
    told = held["entropy"].values.ravel()
    np.testing.assert_allclose(told[8:], entropy[:4], rtol=1e-6)  # from the start again
    assert not free["restored"].any()


def test_a_step_of_consistency_is_that_of_gradient_descent(pair: Any) -> None:
    model, guide = pair
    ward = images(2, shift=1.5)
    new_model, new_guide, history = minimise_disagreement(
        model, guide, batches(ward, len(ward)), views=symmetries(4), learning_rate=20.0,
        most_entropy=None, guard=0.0, draws=1, epochs=2, **SETTINGS,
    )  # fmt: skip
    net = copy.deepcopy(model).network.net.train()
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    optimiser = torch.optim.SGD([p for m in norms for p in m.parameters()], lr=20.0)
    told = []
    for _ in range(2):
        optimiser.zero_grad()
        views = [net(view).softmax(1) for view in (ward, ward.flip(2), ward.flip(3),
                                                   ward.flip(2).flip(3))]  # fmt: skip
        mean = sum(views) / 4
        parts = [(view * (view / mean).log()).sum(1).mean() for view in views]
        loss = sum(parts) / 4  # Jensen-Shannon divergence, as a mean of divergences
        told.append(float(loss.detach()))
        loss.backward()
        optimiser.step()
    np.testing.assert_allclose(history["disagreement"][0, 0], told, rtol=1e-3)
    assert 0 < told[1] < told[0]
    with torch.no_grad():
        expected = net(ward).softmax(1).numpy()
    found = probs(new_model, new_guide, batches(ward))[0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("width", "agrees"), [(1, True), (3, False)])
def test_masks_are_mirrored_back(width: int, agrees: bool) -> None:
    """A net that looks at one pixel mirrors its mask with the image: there is nothing to gain."""
    net = nn.Sequential(nn.Conv2d(1, 4, width, padding=width // 2), nn.BatchNorm2d(4), nn.ReLU(),
                        nn.Conv2d(4, 3, 1))  # fmt: skip
    model = BayesianSegmenter(net, CLASSES)
    ward = Batches({"image": images(4, number=6)}, batch_size=3)
    history = minimise_disagreement(
        model, PointEstimate(model), ward, views=symmetries(4), draws=1, **SETTINGS
    )[2]
    assert bool((history["disagreement"] < 1e-7).all()) is agrees


@pytest.mark.parametrize(
    "views", [symmetries(1), [], turns(2), drawn(lambda image, _: image, 2)], ids=len
)
def test_views_that_cannot_be_compared_are_named(views: Any) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))
    model = BayesianSegmenter(net, CLASSES)
    ward = Batches({"image": images(4, number=6)}, batch_size=3)
    with pytest.raises(ValueError, match=r"view|augmentations"):
        minimise_disagreement(model, PointEstimate(model), ward, views=views, draws=1, **SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"guard": 1.0}, "guard"),
        ({"most_entropy": -1.0}, "most_entropy"),
        ({"epochs": 0}, "epochs"),
        ({"reset_every": 0}, "reset_every"),
        ({"floor": -1.0}, "floor"),
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
