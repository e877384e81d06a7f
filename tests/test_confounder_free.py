"""Confounder-free classifier: its factor in closed form, gradients, and a tag that is unlearned."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor, nn

from ppl_med.data import Batches
from ppl_med.explain.confounding import dependence
from ppl_med.inference import (
    BernoulliDropout,
    MeanFieldNormal,
    PointEstimate,
    fit,
    functions,
    predict,
)
from ppl_med.models import BayesianClassifier, ConfounderFreeClassifier
from ppl_med.models.confounder_free import SITE

CLASSES = ("healthy", "lesion")
SIZE = 4


def model(weight: float = 1.0, **options: Any) -> ConfounderFreeClassifier:
    features = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 6), nn.Tanh())
    given: dict[str, Any] = {"num_features": 6} | options
    return ConfounderFreeClassifier(features, nn.Linear(6, 2), CLASSES, weight=weight, **given)


def batch(cases: int = 12) -> dict[str, Tensor]:
    return {
        "image": torch.randn(cases, 1, SIZE, SIZE),
        "label": torch.arange(cases) % 2,
        "confounder": torch.randn(cases),
    }


def site_of(program: nn.Module, values: dict[str, Tensor], **options: Any) -> dict[str, Any]:
    return dict(poutine.trace(program.train()).get_trace(**values, **options).nodes[SITE])


# --- what the factor is


@pytest.mark.parametrize("control", [0, 1])
def test_the_factor_is_the_squared_correlation_among_controls(control: int) -> None:
    program, values = model(2.5, control=control), batch()
    weights = torch.randn(program.network.layout.num_weights)
    with pyro.condition(data={"weights": weights}):
        node = site_of(program, values, num_cases=60)
        features = program.feature_program()(values["image"])
    chosen = (values["label"] == control).numpy()
    with torch.no_grad():
        output = program.adversary(features)[:, 0].numpy()[chosen]
    expected = np.corrcoef(output, values["confounder"].numpy()[chosen])[0, 1] ** 2
    found = node["fn"].log_prob(node["value"])
    assert node["scale"] == 5 and found.shape == (12,)
    np.testing.assert_allclose(found.detach(), -2.5 * expected, rtol=1e-3)


def test_gradients_of_the_adversary_are_reversed_and_those_of_features_are_not() -> None:
    """Against finite differences of r²: down for features, up for the adversary, under descent."""
    program, values = model().double(), batch()
    features = torch.randn(12, 6, dtype=torch.float64, requires_grad=True)
    pairs = values["label"], values["confounder"].double()

    def loss() -> Tensor:
        return program.squared_correlation(features, *pairs)

    loss().backward()
    step = 1e-3  # r² is float32 there, so that a smaller step finds rounding
    for tensor, sign in ((features, 1), (next(program.adversary.parameters()), -1)):
        assert tensor.grad is not None
        for at in ((0, 0), (2, 3)):
            slopes = []
            for move in (step, -step):
                with torch.no_grad():
                    tensor[at] += move
                    slopes.append(float(loss()))
                    tensor[at] -= move
            slope = (slopes[0] - slopes[1]) / (2 * step)
            assert float(tensor.grad[at]) == pytest.approx(sign * slope, rel=0.02, abs=1e-3)
    assert features.grad is not None and not features.grad[1::2].any(), (
        "a case of the other class was looked at"
    )


def test_a_confounder_that_is_the_same_everywhere_gives_no_loss() -> None:
    program, values = model(), batch()
    for confounder in (torch.ones(12), values["label"]):
        node = site_of(program, values | {"confounder": confounder})
        assert (node["fn"].log_prob(node["value"]) == 0).all()
    node = site_of(program, values | {"label": torch.ones(12, dtype=torch.int64)})
    assert (node["fn"].log_prob(node["value"]) == 0).all(), "a batch without controls"


def test_in_prediction_it_is_the_classifier() -> None:
    program, values = model(), batch()
    assert SITE not in poutine.trace(program.eval()).get_trace(**values).nodes
    assert SITE not in poutine.trace(program.train()).get_trace(values["image"]).nodes
    net: Any = program.network.net
    plain = BayesianClassifier(nn.Sequential(net.features, net.predictor), CLASSES)
    weights = torch.randn(program.network.layout.num_weights)
    with pyro.condition(data={"weights": weights}):
        expected = plain.eval()(values["image"])
        torch.testing.assert_close(program.eval()(values["image"]), expected)


# --- with every guide

GUIDES: dict[str, Callable[[Any], nn.Module]] = {
    "auto": MeanFieldNormal,
    "shared": partial(MeanFieldNormal, estimator="shared"),
    "dropout": partial(BernoulliDropout, skip_first=False),
    "point": PointEstimate,
}


@pytest.mark.parametrize("name", GUIDES)
def test_every_guide_trains_it(name: str) -> None:
    program = model()
    guide = GUIDES[name](program)
    before = [p.detach().clone() for p in program.adversary.parameters()]
    history = fit(program, guide, [batch()], epochs=3, progress=False)
    assert np.isfinite(history["elbo"]).all()
    moved = zip(before, program.adversary.parameters(), strict=True)
    assert all(not torch.equal(*pair) for pair in moved)
    tree = predict(program, guide, [batch()], draws=2, progress=False)
    assert tree["posterior/probs"].sizes == {"chain": 1, "draw": 2, "case": 12, "class": 2}
    assert "within class 0, weight 1" in tree.attrs["training_loss"]


def test_a_tree_names_every_loss_once() -> None:
    program = model(likelihood="focal")
    tree = predict(program, PointEstimate(program), [batch()], draws=2, progress=False)
    parts = tree.attrs["training_loss"].split("; ")
    assert sorted(part.split()[0] for part in parts) == ["adversary", "focal"]


def test_a_batch_is_seen_by_one_function() -> None:
    program, values = model(), batch()
    guide = MeanFieldNormal(program)  # local reparameterization on linear layers
    alike = {name: value[:1].expand(12, *value.shape[1:]) for name, value in values.items()}
    program.train(), guide.train()
    for _ in range(3):
        proposed = poutine.trace(guide).get_trace(**alike)
        trace = poutine.trace(poutine.replay(program, trace=proposed)).get_trace(**alike)
        logits: Any = trace.nodes["_RETURN"]["value"]
        torch.testing.assert_close(logits, logits[:1].expand(12, 2))


# --- what it is for


def tagged(cases: int, seed: int, swapped: bool = False) -> dict[str, Any]:
    """Lesions are brighter in the middle; a bright corner goes with them, nine times in ten."""
    random = np.random.default_rng(seed)
    label = np.arange(cases) % 2
    tag = (random.random(cases) < np.where(label ^ swapped, 0.9, 0.1)).astype(int)
    image = random.normal(0, 0.8, (cases, 1, SIZE, SIZE)).astype(np.float32)
    image[:, :, 1:3, 1:3] += label[:, None, None, None]
    image[:, 0, 0, 0] += 3 * tag
    return {"image": image, "label": label, "confounder": tag}


def accuracy_and_dependence(weight: float) -> tuple[float, float]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        program = model(weight)
        guide = PointEstimate(program, use_prior=False)
    batches = Batches(tagged(600, 0), batch_size=200, shuffle=True)
    fit(program, guide, batches, epochs=80, learning_rate=0.01, progress=False)
    test = tagged(300, 1, swapped=True)
    probs: Any = predict(program, guide, Batches(test), draws=1, progress=False)["posterior/probs"]
    chosen = probs.isel(chain=0, draw=0).argmax("class").values
    odds = np.log(probs.isel({"class": 1}) / probs.isel({"class": 0}))
    found = dependence(
        odds,
        test["confounder"],
        controls=test["label"] == 0,
        permutations=19,
        mutual_information=False,
    )
    return float((chosen == test["label"]).mean()), float(
        found["expected_distance_correlation"].item()
    )


def test_a_tag_is_unlearned() -> None:
    accuracy, told = accuracy_and_dependence(0.0)
    assert accuracy < 0.75, "with no weight the tag is learned"
    accuracy_after, told_after = accuracy_and_dependence(3.0)
    assert accuracy_after > 0.8 and told_after < 0.3 * told


def test_features_are_functions_of_their_draws() -> None:
    program = model()
    guide = MeanFieldNormal(program)
    image = torch.randn(5, 1, SIZE, SIZE)
    draws = functions(program, guide, draws=2)
    extractors = functions(program.feature_program(), guide, draws=2)
    for logits, features in zip(draws, extractors, strict=True):
        assert features(image).shape == (5, 6)
        weights = logits._member.prepare(image).draw(logits.draw)["weights"]
        with pyro.condition(data={"weights": weights}):
            expected = program.feature_program().eval()(image)
        torch.testing.assert_close(features(image), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: model(-1.0), "weight must .* got -1"),
        (lambda: model(float("nan")), "weight must .* got nan"),
        (lambda: model(control=2), "control must .* got 2"),
        (lambda: model(num_features=5)(torch.randn(2, 1, SIZE, SIZE)), "num_features=5"),
        (lambda: model()(torch.randn(2, 1, SIZE, SIZE), torch.zeros(2)), "confounder is missing"),
        (
            lambda: model()(torch.randn(2, 1, SIZE, SIZE), torch.zeros(2), torch.zeros(2, 1)),
            r"confounder is of shape \(2, 1\)",
        ),
    ],
)
def test_refuses(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
