"""Bernoulli dropout: its objective is Gal's, its masks are over input units, one per example."""

import itertools
from collections.abc import Callable
from typing import Any

import pyro.poutine as poutine
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_med.inference import BernoulliDropout, elbo_terms
from ppl_med.models import BayesianClassifier
from ppl_med.programs.elbo import total
from ppl_med.testing import assert_mean
from ppl_med.weights import Normal, RandomWeights

PRIOR_SCALE = 0.7
RATES = {"1.weight": 0.3, "3.weight": 0.5}
CASES = 8


class DropoutNet(nn.Module):
    """What one would write without this package: inverted dropout before each layer."""

    def __init__(self, net: nn.Sequential, *, functional: bool) -> None:
        super().__init__()
        layers: list[Any] = list(net)
        self.first, self.second, self.functional = layers[1], layers[3], functional

    def forward(self, image: Tensor) -> Tensor:
        hidden = torch.relu(self.first(self.drop(image.flatten(1), RATES["1.weight"])))
        return self.second(self.drop(hidden, RATES["3.weight"]))

    def drop(self, values: Tensor, rate: float) -> Tensor:
        if self.functional:
            return F.dropout(values, rate)
        return values * (torch.rand(values.shape) >= rate) / (1 - rate)

    def objective(self, image: Tensor, label: Tensor) -> Tensor:
        """Gal's loss; inverted scaling puts M = weight / keep, so its (1 - p)/2 |M|^2 / s^2 is:"""
        penalty = torch.zeros((), dtype=torch.float64)
        for layer, rate in ((self.first, RATES["1.weight"]), (self.second, RATES["3.weight"])):
            penalty = penalty + layer.weight.square().sum() / (1 - rate) + layer.bias.square().sum()
        loss = F.cross_entropy(self(image), label, reduction="sum")
        return loss + penalty / (2 * PRIOR_SCALE**2)


def setting() -> tuple[nn.Sequential, BayesianClassifier, BernoulliDropout, Tensor, Tensor]:
    layers = [nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)]
    net = nn.Sequential(*layers).double()
    model = BayesianClassifier(net, ["a", "b"], Normal(PRIOR_SCALE))
    image, label = torch.randn(CASES, 1, 2, 2).double(), torch.arange(CASES) % 2
    return net, model, BernoulliDropout(model, RATES), image, label


def objective(
    model: BayesianClassifier, guide: BernoulliDropout, image: Tensor, label: Tensor
) -> Tensor:
    """Negative quasi-ELBO without the constants of the prior's density."""
    nll, kl = elbo_terms(model, guide, image, label)
    at_zero = model.network.prior_distribution().log_prob(torch.zeros(23).double())
    return total(nll) + total(kl) + at_zero


def gradient(loss: Tensor, net: nn.Sequential) -> Tensor:
    """By the net's weights; those of M follow by the chain rule: weight = keep * M."""
    keeps = [0.7, 1.0, 0.5, 1.0]
    parts = torch.autograd.grad(loss, list(net.parameters()))
    return torch.cat([keep * part.flatten() for keep, part in zip(keeps, parts, strict=True)])


def test_the_objective_is_gals_mask_for_mask() -> None:
    net, model, guide, image, label = setting()
    by_hand = DropoutNet(net, functional=False)
    part: Any = guide.parts["weights"]
    objective(model, guide, image, label)  # counts the uses of every weight
    for seed in range(20):
        torch.manual_seed(seed)
        ours = objective(model, guide, image, label)
        torch.manual_seed(seed)
        theirs = by_hand.objective(image, label)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
        (ours_gradient,) = torch.autograd.grad(ours, [part.weights])
        torch.testing.assert_close(ours_gradient, gradient(theirs, net), rtol=1e-8, atol=1e-10)


def test_the_expected_objective_is_that_of_dropout_training() -> None:
    """Against torch's own F.dropout: two-sample z-tests of loss and gradient."""
    net, model, guide, image, label = setting()
    by_hand, part = DropoutNet(net, functional=True), guide.parts["weights"]
    assert isinstance(part.weights, Tensor)
    objective(model, guide, image, label)
    losses, gradients = [], []
    for _ in range(800):
        ours, theirs = objective(model, guide, image, label), by_hand.objective(image, label)
        (own,) = torch.autograd.grad(ours, [part.weights])
        losses.append((ours - theirs).detach())
        gradients.append(own - gradient(theirs, net))
    assert_mean(torch.stack(losses), 0.0)
    assert_mean(torch.stack(gradients), torch.zeros(23))


@pytest.mark.parametrize("mode", ["one mask a batch", "prediction"])
def test_one_mask_for_all_is_the_mean_over_every_mask(mode: str) -> None:
    """All 2^7 masks, by hand."""
    net, model, guide, image, label = setting()
    if mode == "one mask a batch":
        guide = BernoulliDropout(model, RATES, per_example=False)
    else:
        guide.eval()
    expected = torch.zeros(()).double()
    for bits in itertools.product([0.0, 1.0], repeat=7):
        mask = torch.tensor(bits).double()
        hidden = F.linear(image.flatten(1) * mask[:4] / 0.7, net[1].weight, net[1].bias)  # type: ignore[arg-type]
        logits = F.linear(hidden.relu() * mask[4:] / 0.5, net[3].weight, net[3].bias)  # type: ignore[arg-type]
        kept = int(mask[:4].sum())
        chance = 0.7**kept * 0.3 ** (4 - kept) * 0.5**3
        expected += chance * F.cross_entropy(logits, label, reduction="sum").detach()
    with torch.no_grad():
        terms = [elbo_terms(model, guide, image, label)[0]["label"] for _ in range(1500)]
    assert_mean(torch.stack(terms), expected)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3, bias=False), (4,)),
    "tokens": (lambda: nn.Linear(4, 3, bias=False), (2, 4)),
    "conv": (lambda: nn.Conv2d(4, 2, 2, bias=False), (4, 3, 3)),
    "grouped": (lambda: nn.Conv2d(4, 6, 2, groups=2, bias=False), (4, 3, 3)),
    "depthwise": (lambda: nn.Conv1d(4, 4, 2, groups=4, bias=False), (4, 3)),
    "conv3d": (lambda: nn.Conv3d(4, 1, 2, bias=False), (4, 2, 2, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 2, 2, stride=2, bias=False), (4, 2, 2)),
    "transposed-grouped": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False), (4, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("per_example", [True, False])
def test_masks_drop_whole_input_units(name: str, per_example: bool) -> None:
    """Outputs are those of the layer on inputs with some units at 0, each unit on its own."""
    layer, shape = LAYERS[name][0]().double(), LAYERS[name][1]
    image, rate = torch.randn(shape).double(), 0.4
    axis = -1 if isinstance(layer, nn.Linear) else 0
    view = [1] * len(shape)
    view[axis] = 4
    masks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).double()
    possible = torch.stack([layer(image[None] * m.view(view))[0] for m in masks]).flatten(1)
    model = RandomWeights(layer)
    guide = BernoulliDropout(model, rate, skip_first=False, per_example=per_example)
    batch, outputs = image.expand(4, *shape), []
    with torch.no_grad():
        for _ in range(301 if per_example else 1200):
            trace = poutine.trace(guide).get_trace()
            outputs.append(poutine.replay(model, trace=trace)(batch).flatten(1))
    drawn = torch.cat(outputs[1:]) if per_example else torch.stack(outputs)[:, 0]
    keep = 1 - rate
    drawn = drawn.detach() * keep  # M is the weight over keep
    distance = (drawn[:, None] - possible.detach()).abs().amax(-1)
    assert distance.min(1).values.max() < 1e-9
    which = distance.argmin(1)
    chance = keep ** masks.sum(1) * rate ** (4 - masks.sum(1))
    assert_mean(F.one_hot(which, 16), chance)


def test_examples_have_masks_of_their_own_in_training_only() -> None:
    _, model, guide, image, _ = setting()
    same = image[:1].expand(200, 1, 2, 2)

    def distinct() -> int:
        trace = poutine.trace(guide).get_trace()
        output: Tensor = poutine.replay(model.network, trace=trace)(same)
        return len(output.detach().unique(dim=0))

    distinct()
    assert distinct() > 4
    guide.eval()
    assert distinct() == 1


def test_the_mean_weight_is_the_nets() -> None:
    _, model, guide, _, _ = setting()
    draws = guide.eval().distribution().sample(torch.Size([3000]))
    assert_mean(draws, model.network.initial())


def test_the_rate_is_the_probability_of_being_dropped() -> None:
    model = BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), ["a", "b"])
    guide = BernoulliDropout(model, 0.1, skip_first=False).eval()
    draws = guide.distribution().sample(torch.Size([3000]))
    assert_mean((draws[:, :4] == 0).double(), torch.full((4,), 0.1))
    assert (draws[:, 8:] != 0).all()  # biases are never dropped


def three_layers() -> nn.Module:
    layers = [nn.BatchNorm2d(1), nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(2, 2), nn.Linear(2, 2)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("options", "where", "names"),
    [
        ({}, None, ["3.weight", "4.weight"]),
        ({"skip_first": False}, None, ["1.weight", "3.weight", "4.weight"]),
        ({}, "last_layer", ["4.weight"]),
        ({"rate": {"1.weight": 0.2}}, None, ["1.weight"]),
    ],
)
def test_which_layers_are_dropped(options: dict[str, Any], where: Any, names: list[str]) -> None:
    model = BayesianClassifier(three_layers(), ["a", "b"], where=where)
    part: Any = BernoulliDropout(model, **options).parts["weights"]
    assert list(part.rates) == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "strictly between 0 and 1"),
        ({"rate": 1.0}, "strictly between 0 and 1"),
        ({"rate": {"1.bias": 0.2}}, r"rate names \['1.bias'\], which are no layer weights"),
        ({"rate": {}}, "no layer is left to drop"),
    ],
)
def test_wrong_rates_are_named(options: dict[str, Any], message: str) -> None:
    model = BayesianClassifier(three_layers(), ["a", "b"])
    with pytest.raises(ValueError, match=message):
        BernoulliDropout(model, **options)


def test_a_single_layer_needs_to_be_asked_for() -> None:
    model = BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), ["a", "b"])
    with pytest.raises(ValueError, match="skip_first=False"):
        BernoulliDropout(model)


def test_a_guide_of_other_rates_is_not_loaded() -> None:
    model = BayesianClassifier(three_layers(), ["a", "b"])
    state = BernoulliDropout(model, 0.2).state_dict()
    BernoulliDropout(model, 0.2).load_state_dict(state)
    with pytest.raises(ValueError, match="drops at the rates"):
        BernoulliDropout(model, 0.3).load_state_dict(state)
