"""``functions``: each posterior draw as a plain network, the same one that ``predict`` uses."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from posterior_trees import array
from torch import Tensor, nn

from ppl_med.explain.attribution import attribute, attribute_uncertainty
from ppl_med.explain.attribution.score import class_logits
from ppl_med.explain.confounding import swap_test
from ppl_med.inference import (
    BernoulliDropout,
    ConditionalNormal,
    Ensemble,
    MeanFieldNormal,
    PointEstimate,
    functions,
    predict,
)
from ppl_med.likelihoods import OF_CASES, OF_PIXELS, class_likelihood
from ppl_med.models import BayesianClassifier, BayesianSegmenter, LatentClassifier
from ppl_med.networks import GaussianEncoder

CLASSES = ["a", "b", "c"]
Pair = tuple[nn.Module, nn.Module]


def classifier(guide: Callable[[Any], nn.Module]) -> Pair:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3))
    model = BayesianClassifier(net, CLASSES)
    return model, guide(model)


def latent() -> Pair:
    model = LatentClassifier(1, CLASSES, width=3)
    return model, ConditionalNormal(GaussianEncoder(1, 2, 3, num_classes=3))


WEIGHTS: dict[str, Callable[[], Pair]] = {
    "point": lambda: classifier(PointEstimate),
    "mean-field": lambda: classifier(lambda model: MeanFieldNormal(model, init_scale=0.5)),
    "dropout": lambda: classifier(lambda model: BernoulliDropout(model, 0.4)),
    "ensemble": lambda: classifier(lambda model: Ensemble(model, MeanFieldNormal, members=2)),
}
ALL = {**WEIGHTS, "latent": latent}


def images(cases: int = 5) -> Tensor:
    return torch.randn(cases, 1, 6, 6)


@pytest.mark.parametrize("make", WEIGHTS.values(), ids=WEIGHTS)
def test_functions_are_the_draws_of_predict(make: Callable[[], Pair]) -> None:
    model, guide = make()
    image = images()
    tree = predict(model, guide, [{"image": image}], draws=4, seed=7, progress=False)
    probs = array(tree, "posterior/probs")
    made = functions(model, guide, draws=4, seed=7)
    assert len(made) == probs.sizes["chain"] * 4
    for function in made:
        expected = probs.sel(chain=function.chain, draw=function.draw)
        found = function(image).softmax(-1).detach()
        np.testing.assert_allclose(found, expected.values, atol=1e-6)


def test_a_code_per_case_takes_one_noise_a_draw() -> None:
    """The first case's noise serves all, so the first case agrees with ``predict``."""
    model, guide = latent()
    image = images()
    tree = predict(model, guide, [{"image": image}], draws=4, seed=7, progress=False)
    for function in functions(model, guide, draws=4, seed=7):
        expected = array(tree, "posterior/probs").isel(chain=0, draw=function.draw, case=0)
        found = function(image).softmax(-1).detach()[0]
        np.testing.assert_allclose(found, expected.values, atol=1e-6)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_an_image_gives_one_output_wherever_it_stands(make: Callable[[], Pair]) -> None:
    image, order = images(), torch.tensor([4, 2, 0, 3, 1])
    for function in functions(*make(), draws=2):
        output = function(image)
        torch.testing.assert_close(function(image), output, rtol=0, atol=0)
        torch.testing.assert_close(function(image[order]), output[order], rtol=0, atol=1e-6)
        torch.testing.assert_close(function(image[3:4]), output[3:4], rtol=0, atol=1e-6)
        same = function(image[:1].expand(4, -1, -1, -1))
        torch.testing.assert_close(same, output[:1].expand(4, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_a_function_is_differentiable_in_the_image(make: Callable[[], Pair]) -> None:
    """Against central differences, in float64."""
    model, guide = make()
    function = functions(model.double(), guide.double(), draws=1, seed=3)[0]
    image = images(2).double().requires_grad_()
    direction = torch.randn_like(image)
    (gradient,) = torch.autograd.grad(function(image)[:, 1].sum(), image)
    step = 1e-6
    with torch.no_grad():
        high, low = (function(image + sign * step * direction)[:, 1].sum() for sign in (1, -1))
    expected = (high - low) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-8)
    assert gradient.flatten(1).norm(dim=1).min() > 0


def test_draws_differ_and_a_seed_repeats_them() -> None:
    pair, image = WEIGHTS["mean-field"](), images()
    made = functions(*pair, draws=3, seed=1)
    outputs = torch.stack([function(image) for function in made])
    assert torch.pdist(outputs.flatten(1)).min() > 1e-3
    again = torch.stack([function(image) for function in functions(*pair, draws=3, seed=1)])
    assert torch.equal(again, outputs)
    other = torch.stack([function(image) for function in functions(*pair, draws=3, seed=2)])
    assert not torch.isclose(other, outputs).any(dim=-1).all()
    # In any order, and one alone.
    assert torch.equal(made[-1](image), outputs[2])
    assert torch.equal(made[0](image), outputs[0])


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize("method", ["integrated_gradients", "saliency"])
def test_attribution_takes_functions(make: Callable[[], Pair], method: Any) -> None:
    model, guide = make()
    made = functions(model, guide, draws=2)
    options: dict[str, Any] = {"steps": 64, "tolerance": 0.2} if "integrated" in method else {}
    maps = attribute(made, images(3), 1, method=method, **options)
    assert dict(maps["mean"].sizes) == {"case": 3, "channel": 1, "row": 6, "col": 6}
    assert np.isfinite(maps["mean"]).all()
    if method == "integrated_gradients":
        assert float(abs(maps["completeness_delta"]).max()) < 0.05


def test_generators_and_parameters_are_left_as_they_were() -> None:
    model, guide = WEIGHTS["mean-field"]()
    before = {name: value.clone() for name, value in guide.named_parameters()}
    image, state = images(), torch.get_rng_state()
    functions(model, guide, draws=2)[1](image)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in guide.named_parameters())


def test_bad_arguments_are_named() -> None:
    model, guide = WEIGHTS["point"]()
    with pytest.raises(ValueError, match="draws must be"):
        functions(model, guide, draws=0)
    with pytest.raises(IndexError):
        functions(model, guide, draws=2)[2]


# --- one definition of the probability: what predict stores is what explanations differentiate


def of_likelihood(name: str, event: tuple[str, ...]) -> Pair:
    probe = class_likelihood(name, CLASSES if name != "bernoulli" else CLASSES[:2], event, "label")
    if event:
        segmenter = BayesianSegmenter(
            nn.Conv2d(1, probe.num_outputs, 3, padding=1), probe.classes, likelihood=name
        )
        return segmenter, MeanFieldNormal(segmenter, init_scale=0.3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, probe.num_outputs))
    model = BayesianClassifier(net, probe.classes, likelihood=name)
    return model, MeanFieldNormal(model, init_scale=0.3)


OF_LIKELIHOODS: dict[str, Callable[[], Pair]] = {
    **{name: partial(of_likelihood, name, ()) for name in OF_CASES},
    **{f"{name}-mask": partial(of_likelihood, name, ("row", "col")) for name in OF_PIXELS},
}


def own_program(output: str) -> Callable[..., Any]:
    """A user's classifier whose labels are tempered, and what it returns: no likelihood says it."""

    def model(image: Tensor, label: Any = None, *, num_cases: Any = None) -> Any:
        slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        means = image.flatten(1).mean(1)
        logits = 3 * means[:, None] * slope
        with pyro.plate("case", num_cases or len(image), subsample=image):
            law: Any = dist.Categorical(logits=logits / 2)
            if output == "of a Bernoulli":
                law = dist.Bernoulli(logits=logits[:, 0])
            pyro.sample("label", law, obs=label)
        return {"logits": logits, "nothing": None, "of a Bernoulli": logits}[output]

    return model


@pytest.mark.parametrize("make", OF_LIKELIHOODS.values(), ids=OF_LIKELIHOODS)
def test_functions_give_the_probability_of_predict(make: Callable[[], Pair]) -> None:
    model, guide = make()
    check_probability(model, guide, images(3))


@pytest.mark.parametrize("output", ["logits", "nothing", "of a Bernoulli"])
def test_own_programs_are_explained_by_their_site(output: str) -> None:
    def guide(image: Tensor, label: Any = None, *, num_cases: Any = None) -> None:
        pyro.sample("slope", dist.Normal(torch.ones(2), 0.5).to_event(1))

    check_probability(own_program(output), guide, images(3))


def check_probability(model: Any, guide: Any, image: Tensor) -> None:
    """Functions, the swap test and the entropy that is attributed, against ``predict``."""
    tree = predict(model, guide, [{"image": image}], draws=3, seed=5, progress=False)
    probs = array(tree, "posterior/probs")
    made = functions(model, guide, draws=3, seed=5)
    for function in made:
        found = class_logits(function(image)).softmax(1).detach()
        expected = probs.sel(chain=function.chain, draw=function.draw)
        np.testing.assert_allclose(found, expected.values, atol=1e-5)
    if probs.ndim > 4:
        return
    swap = swap_test(made, image, lambda x: x + 0.3, 1)
    np.testing.assert_allclose(swap["before"], probs.isel({"class": 1}), atol=1e-5)
    mean = probs.mean(("chain", "draw"))
    entropy = attribute_uncertainty(made, image, "entropy", steps=64, tolerance=0.2)["quantity"]
    np.testing.assert_allclose(entropy, -(mean * np.log(mean)).sum("class"), atol=1e-5)
    target = probs.sizes["class"]
    with pytest.raises(ValueError, match=f"classes 0 to {target - 1}"):
        attribute(made, image, target, method="saliency")
