"""Attribution constraints: factors and posterior of a linear net, and a tag that is unlearned.

A linear net's gradient is its weight, so losses are closed forms, and a squared loss of a pixel
that is always 0 is conjugate to the normal prior of its weight.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

from ppl_med.data import Batches
from ppl_med.explain import AttributionConstrained, NoPositiveAttribution, RightReasons
from ppl_med.explain.attribution import attribute
from ppl_med.explain.quality import mass_inside
from ppl_med.inference import (
    BernoulliDropout,
    ConditionalNormal,
    MeanFieldNormal,
    PointEstimate,
    fit,
    functions,
    predict,
)
from ppl_med.likelihoods import OF_CASES, class_likelihood, stored_parameters
from ppl_med.models import BayesianClassifier, LatentClassifier
from ppl_med.networks import GaussianEncoder
from ppl_med.testing import check_guide, check_program
from ppl_med.weights import Normal

CLASSES = ("healthy", "lesion")
SIZE = 4
SITE = "attribution_constraint"


def linear(outputs: int = 2) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, outputs, bias=False))


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.Softplus(), nn.Flatten(), nn.Linear(3 * (SIZE - 2) ** 2, 2)
    )


def batch(cases: int = 6) -> dict[str, Tensor]:
    return {
        "image": torch.randn(cases, 1, SIZE, SIZE),
        "label": torch.arange(cases) % 2,
        "irrelevant": torch.rand(cases, SIZE, SIZE) < 0.3,
    }


def factor(model: nn.Module, weights: Tensor, values: dict[str, Tensor], **options: Any) -> Tensor:
    """Factor of every case times its scale, under given weights."""
    with pyro.condition(data={"weights": weights}):
        trace = poutine.trace(model.train()).get_trace(**values, **options)
    node: Any = trace.nodes[SITE]
    return (node["scale"] * node["fn"].log_prob(node["value"])).detach()


# --- closed forms on a linear net


def expected_loss(kind: str, weights: Tensor, values: dict[str, Tensor]) -> Tensor:
    matrix = weights.view(2, SIZE * SIZE)
    slope = matrix[1] - matrix[0]
    image, label = values["image"].flatten(1), values["label"]
    if kind == "healthy":
        return 3.0 * (image * slope).clamp(min=0).sum(1) * (label == 0)
    squares = (values["irrelevant"].flatten(1) * slope.square()).sum(1)
    if kind == "log_odds":
        return 3.0 * squares
    chance = (image @ slope).sigmoid()
    return 3.0 * (1 - 2 * chance).square() * squares


CONSTRAINTS: dict[str, Callable[[], Any]] = {
    "healthy": lambda: NoPositiveAttribution(3.0),
    "log_odds": lambda: RightReasons(3.0, "log_odds"),
    "published": lambda: RightReasons(3.0),
}


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_factor_of_a_linear_net(kind: str) -> None:
    model = AttributionConstrained(BayesianClassifier(linear(), CLASSES), [CONSTRAINTS[kind]()])
    values, weights = batch(), torch.randn(2 * SIZE * SIZE)
    expected = expected_loss(kind, weights, values)
    assert (expected > 0).any()
    torch.testing.assert_close(factor(model, weights, values), -expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_factors_of_mini_batches_are_those_of_all_cases_on_average(kind: str) -> None:
    model = AttributionConstrained(BayesianClassifier(linear(), CLASSES), [CONSTRAINTS[kind]()])
    values, weights = batch(), torch.randn(2 * SIZE * SIZE)
    whole = factor(model, weights, values).sum()
    parts = [
        factor(model, weights, {n: v[at : at + 2] for n, v in values.items()}, num_cases=6).sum()
        for at in (0, 2, 4)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-4, atol=1e-4)


class Recorded:
    """A loss of nothing that notes the probabilities it is given."""

    name, needs_mask = "recorded", False

    def loss(self, logits: Tensor, image: Tensor, label: Tensor, irrelevant: Any) -> Tensor:
        self.probs = logits.softmax(1).detach()
        return 0 * logits.sum(1)


@pytest.mark.parametrize("name", OF_CASES)
def test_constraints_are_on_the_probability_of_predict(name: str) -> None:
    outputs = class_likelihood(name, CLASSES, (), "label").num_outputs
    model = BayesianClassifier(linear(outputs), CLASSES, likelihood=name)
    recorded, values = Recorded(), batch()
    weights = torch.randn(outputs * SIZE * SIZE)
    factor(AttributionConstrained(model, [recorded]), weights, values)
    with pyro.condition(data={"weights": weights}):
        trace = poutine.trace(model.eval()).get_trace(values["image"])
    node: Any = trace.nodes["label"]
    stored = stored_parameters(node["fn"], ["case"])["probs"][1].detach()
    torch.testing.assert_close(recorded.probs.double(), stored.double(), rtol=0, atol=1e-5)


def test_constraints_add() -> None:
    model = BayesianClassifier(linear(), CLASSES)
    both = [CONSTRAINTS["healthy"](), CONSTRAINTS["published"]()]
    values, weights = batch(), torch.randn(2 * SIZE * SIZE)
    each = [factor(AttributionConstrained(model, [c]), weights, values) for c in both]
    torch.testing.assert_close(
        factor(AttributionConstrained(model, both), weights, values), sum(each)
    )


def test_posterior_of_a_pixel_that_is_always_empty() -> None:
    """Labels say nothing of its weight: variance 1 / (1 / prior^2 + 2 * weight * cases)."""
    values = batch(8)
    values["image"][:, :, 0] = 0.0
    values["irrelevant"] = torch.zeros(8, SIZE, SIZE)
    values["irrelevant"][:, 0, :2] = 1.0
    wrapped = BayesianClassifier(linear(1), CLASSES, Normal(0.5), likelihood="bernoulli")
    model = AttributionConstrained(wrapped, [RightReasons(2.0, "log_odds")])
    guide = MeanFieldNormal(model, init_scale=1.0, estimator="auto")  # local on linear layers
    batches = Batches(values, batch_size=4, shuffle=True)
    fit(model, guide, batches, epochs=160, learning_rate=0.1, schedule="cosine", progress=False)
    law: Any = guide.distribution()
    constrained = 1 / np.sqrt(1 / 0.25 + 2 * 2.0 * 8)
    with torch.no_grad():
        np.testing.assert_allclose(law.scale[:2], constrained, rtol=0.1)
        np.testing.assert_allclose(law.scale[2:4], 0.5, rtol=0.1)
        np.testing.assert_allclose(law.loc[:2], 0.0, atol=0.05)


# --- every guide


GUIDES: dict[str, Callable[[Any], nn.Module]] = {
    "shared": partial(MeanFieldNormal, estimator="shared"),
    "flipout": partial(MeanFieldNormal, estimator="flipout"),
    "auto": MeanFieldNormal,
    "dropout": partial(BernoulliDropout, skip_first=False),
    "point": PointEstimate,
}


def pair(name: str, constraint: Any) -> tuple[nn.Module, nn.Module]:
    if name == "latent":
        model = AttributionConstrained(LatentClassifier(1, CLASSES, 2, 3), [constraint])
        return model, ConditionalNormal(GaussianEncoder(1, 2, 3, num_classes=2))
    model = AttributionConstrained(BayesianClassifier(net(), CLASSES), [constraint])
    return model, GUIDES[name](model)


@pytest.mark.parametrize("name", [*GUIDES, "latent"])
@pytest.mark.filterwarnings("ignore:posterior collapse")
def test_every_guide_trains_under_constraints(name: str) -> None:
    model, guide = pair(name, NoPositiveAttribution(0.1))
    values = {n: v for n, v in batch().items() if n != "irrelevant"}
    check_program(model, values)
    check_guide(model, guide, values)
    model, guide = pair(name, RightReasons(0.1))
    check_guide(model, guide, batch())
    history = fit(model, guide, [batch()], epochs=3, progress=False)
    assert np.isfinite(history["elbo"]).all()
    tree = predict(model, guide, [batch()], draws=2, progress=False)
    assert tree["posterior/probs"].sizes == {"chain": 1, "draw": 2, "case": 6, "class": 2}
    assert "right reasons" in tree.attrs["training_loss"]


@pytest.mark.parametrize("name", ["flipout", "auto", "dropout"])
def test_estimators_by_example_give_one_function_a_batch(name: str) -> None:
    """Equal images have equal factors, after the first pass too."""
    model, guide = pair(name, RightReasons(1.0, "log_odds"))
    values = {n: v[:1].expand(4, *v.shape[1:]) for n, v in batch().items()}
    values["irrelevant"] = torch.ones(4, SIZE, SIZE)
    model.train(), guide.train()
    for _ in range(3):
        replayed = poutine.replay(model, trace=poutine.trace(guide).get_trace(**values))
        node: Any = poutine.trace(replayed).get_trace(**values).nodes[SITE]
        found = node["fn"].log_prob(node["value"]).detach()
        torch.testing.assert_close(found, found[:1].expand(4))


def test_without_labels_and_in_evaluation_there_is_no_factor() -> None:
    model = pair("point", RightReasons(1.0))[0]
    values = batch()
    assert SITE in poutine.trace(model.train()).get_trace(**values).nodes
    assert SITE not in poutine.trace(model).get_trace(values["image"]).nodes
    assert SITE not in poutine.trace(model.eval()).get_trace(**values).nodes


# --- a planted tag


def tagged(cases: int, swapped: bool = False) -> dict[str, Tensor]:
    """Lesions are brighter in the middle; a bright corner goes with them, or with the healthy."""
    generator = torch.Generator().manual_seed(2 + swapped)
    label = torch.arange(cases) % 2
    image = 0.5 * torch.randn(cases, 1, SIZE, SIZE, generator=generator)
    image[:, :, 1:3, 1:3] += 0.5 * label.view(-1, 1, 1, 1)
    image[:, 0, 0, 0] += 3.0 * (1 - label if swapped else label)
    irrelevant = torch.zeros(cases, SIZE, SIZE)
    irrelevant[:, 0, 0] = 1.0
    return {"image": image, "label": label, "irrelevant": irrelevant}


def tag_share_and_accuracy(weight: float, guide: Callable[[Any], nn.Module]) -> tuple[float, float]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        constraint = RightReasons(weight, "log_odds")
        model = AttributionConstrained(BayesianClassifier(net(), CLASSES), [constraint])
        trained = guide(model)
    batches = Batches(tagged(128), batch_size=64, shuffle=True)
    fit(model, trained, batches, epochs=40, learning_rate=0.03, progress=False)
    draws = functions(model, trained, draws=4)
    data = tagged(100)
    lesions = data["image"][data["label"] == 1]
    maps = attribute(draws, lesions, 1, method="input_x_gradient")
    mask = np.zeros((len(lesions), SIZE, SIZE))
    mask[:, 0, 0] = 1
    share = mass_inside(maps, xr.DataArray(mask, dims=("case", "row", "col"))).mean_mass_share
    swapped = tagged(200, swapped=True)
    tree = predict(model, trained, [swapped], draws=8, progress=False)
    probs: Any = tree["posterior/probs"]
    chosen = probs.mean(("chain", "draw")).argmax("class").values
    return float(share), float((chosen == swapped["label"].numpy()).mean())


@pytest.mark.parametrize("guide", [PointEstimate, MeanFieldNormal])
def test_a_tag_is_unlearned(guide: Callable[[Any], nn.Module]) -> None:
    share, accuracy = tag_share_and_accuracy(0.0, guide)
    assert share > 0.5 and accuracy < 0.4, "without constraint the tag is what is learned"
    share_after, accuracy_after = tag_share_and_accuracy(5.0, guide)
    assert share_after < 0.1 * share and accuracy_after > 0.7


# --- refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttributionConstrained(nn.Identity(), []), "constraints is empty"),
        (lambda: RightReasons(-1.0), "weight must .* got -1"),
        (lambda: NoPositiveAttribution(float("nan")), "weight must .* got nan"),
        (lambda: NoPositiveAttribution(1.0, 1, 1), "another class than target"),
        (lambda: run_without("irrelevant"), "irrelevant is missing"),
        (lambda: run_with(irrelevant=torch.zeros(6, 2, 2)), r"irrelevant is of shape \(6, 2, 2\)"),
        (lambda: run_mixing(), "'network.net.1' mixes the cases"),
        (lambda: run_silent(), "returned NoneType; constraints need logits"),
    ],
)
def test_refuses(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def run_with(**changes: Any) -> None:
    pair("point", RightReasons(1.0))[0].train()(**batch() | changes)


def run_without(name: str) -> None:
    values = {n: v for n, v in batch().items() if n != name}
    pair("point", RightReasons(1.0))[0].train()(**values)


def run_mixing() -> None:
    mixing = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    model = AttributionConstrained(BayesianClassifier(mixing, CLASSES), [RightReasons(1.0)])
    model.train()(**batch())


class Silent(nn.Module):
    """A program that returns nothing to explain."""

    def forward(self, image: Tensor, label: Any = None, *, num_cases: Any = None) -> None:
        return None


def run_silent() -> None:
    values = {n: v for n, v in batch().items() if n != "irrelevant"}
    AttributionConstrained(Silent(), [NoPositiveAttribution(1.0)])(**values)
