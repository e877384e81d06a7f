"""Conditional VAE: densities against a Gaussian oracle, bounds, and codes that keep their case."""

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
from scipy import stats
from torch import Tensor

from ppl_med import storage
from ppl_med.analysis import scoring, uncertainty
from ppl_med.data import Batches
from ppl_med.explain import latent_counterfactual, minimal_perturbation
from ppl_med.explain.counterfactuals import class_probabilities
from ppl_med.explain.counterfactuals.realism import log_density
from ppl_med.inference import (
    ConditionalNormal,
    ImportanceWeighted,
    MeanFieldNormal,
    fit,
    predict,
)
from ppl_med.models import BayesianClassifier, ConditionalVAE, LatentClassifier
from ppl_med.networks import GaussianEncoder
from ppl_med.testing import assert_mean

CLASSES = ("dark", "bright")
SIZE = 8


def vae(**settings: Any) -> tuple[ConditionalVAE, ConditionalNormal]:
    model = ConditionalVAE(1, CLASSES, (SIZE, SIZE), latent_dim=2, width=4, **settings)
    return model, ConditionalNormal(model.posterior_net())


def test_density_of_image_and_label_is_the_gaussian_one() -> None:
    model = vae(class_probs=(1, 3))[0].eval()
    with torch.no_grad():
        model.log_scale.fill_(-0.4)
    image, label = torch.randn(5, 1, SIZE, SIZE), torch.arange(5) % 2
    z = torch.randn(5, 2)
    chances = np.array([0.25, 0.75])
    with torch.no_grad(), pyro.condition(data={"z": z}):
        trace = poutine.trace(model).get_trace(image, label, num_cases=10)
        joint = model(image)
        means = [model.decode(z, torch.full((5,), k)) for k in range(2)]
        given = trace.nodes["label"]["fn"].log_prob(label)  # type: ignore[attr-defined]
    both = np.stack(
        [
            stats.norm.logpdf(image, mean, np.exp(-0.4)).sum((1, 2, 3)) + np.log(chances[k])
            for k, mean in enumerate(means)
        ],
        axis=1,
    )
    np.testing.assert_allclose(joint, both, rtol=1e-5)
    np.testing.assert_allclose(given, both[np.arange(5), label], rtol=1e-5)
    assert trace.nodes["label"]["scale"] == 2


def test_decode_takes_particles_in_front() -> None:
    model, _ = vae()
    z, label = torch.randn(3, 5, 2), torch.arange(5) % 2
    with torch.no_grad():
        found = model.decode(z, label)
        one_by_one = torch.stack([model.decode(part, label) for part in z])
    assert found.shape == (3, 5, 1, SIZE, SIZE)
    torch.testing.assert_close(found, one_by_one)


def test_predicted_classes_are_bayes_rule_under_a_code_of_the_prior() -> None:
    pair = vae()
    image = torch.randn(6, 1, SIZE, SIZE)
    tree = predict(*pair, [{"image": image}], draws=3, progress=False)
    z: Any = tree["posterior/z"]
    with torch.no_grad(), pyro.condition(data={"z": torch.tensor(z.values[0, 1])}):
        expected = pair[0](image).softmax(-1)
    probs: Any = tree["posterior/probs"]
    np.testing.assert_allclose(probs[0, 1], expected, rtol=1e-4, atol=1e-6)


def squares(cases: int) -> dict[str, Tensor]:
    """Above a bar, left or right, which all classes share; below a square, dark or bright."""
    generator = torch.Generator().manual_seed(1)
    label, side = (torch.randint(2, (cases,), generator=generator) for _ in range(2))
    image = 0.1 * torch.randn(cases, 1, SIZE, SIZE, generator=generator)
    image[:, :, 4:8, 2:6] += (2.0 * label - 1).view(-1, 1, 1, 1)
    for at in range(cases):
        start = 4 * int(side[at])
        image[at, :, :3, start : start + 4] += 1.0
    return {"image": image, "label": label, "side": side}


@pytest.fixture(scope="module")
def trained() -> tuple[ConditionalVAE, ConditionalNormal]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pair = vae()
    data = squares(256)
    batches = Batches({n: data[n] for n in ("image", "label")}, batch_size=64, shuffle=True)
    fit(*pair, batches, epochs=40, learning_rate=0.01, progress=False)
    return pair


def tone(image: Tensor) -> Tensor:
    """A classifier of the intensities below."""
    return image[:, 0, 4:].flatten(1).sum(1, keepdim=True)


def test_a_counterfactual_keeps_the_bar_and_changes_the_tone(trained: Any) -> None:
    data = squares(20)
    target = (tone(data["image"])[:, 0] < 0).long()
    result = latent_counterfactual([tone], data["image"], target, vae=trained)
    assert (result.flip_probability == 1).all()
    found = result.counterfactual.values[:, 0]
    halves = found[:, :3].reshape(20, 3, 2, 4).mean((1, 3))
    side = data["side"].numpy()
    own, other = halves[np.arange(20), side], halves[np.arange(20), 1 - side]
    assert (own > 0.75).all() and (np.abs(other) < 0.25).all()
    wanted = 2 * target.numpy() - 1
    assert (wanted * found[:, 4:8, 2:6].mean((1, 2)) > 0.75).all()


def test_it_is_more_realistic_than_the_smallest_change(trained: Any) -> None:
    image = squares(20)["image"]
    target = (tone(image)[:, 0] < 0).long()
    settings: dict[str, Any] = {"vae": trained, "particles": 32}
    attack = minimal_perturbation([tone], image, target, **settings)
    for keep in (False, True):
        made = latent_counterfactual([tone], image, target, keep_residual=keep, **settings)
        assert (made.realism > attack.realism).all()
    assert (attack.realism < attack.realism_of_image).all()


def test_the_bound_rises_with_particles_and_is_the_objectives(trained: Any) -> None:
    model, guide = trained
    data = squares(64)
    image, label = data["image"], data["label"]
    few, _ = log_density(model, guide, image, label, particles=1)
    many, error = log_density(model, guide, image, label, particles=64, seed=1)
    assert float(many.mean()) > float(few.mean()) and (error >= 0).all()
    draws = []
    values = {"image": image, "label": label}
    for _ in range(20):
        with torch.no_grad():
            loss = ImportanceWeighted(64)(model.eval(), guide.eval(), values, 64, 1.0)
        draws.append(-float(loss.value) / 64)
    own = [
        float(log_density(model, guide, image, label, particles=64, seed=s)[0].mean())
        for s in range(20)
    ]
    assert_mean(np.array(draws) - np.array(own), 0.0, 1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConditionalVAE(1, CLASSES, (8, 9)), "multiples of 4"),
        (lambda: ConditionalVAE(1, ("a",), (8, 8)), "two or more"),
        (lambda: vae(class_probs=(1.0, 0.0)), "class_probs must be 2"),
        (lambda: vae(class_probs=(1.0,)), "class_probs must be 2"),
        (lambda: vae()[0](torch.zeros(2, 1, 12, 12)), "image must be"),
    ],
)
def test_settings_that_make_no_sense_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def by_quadrature(model: ConditionalVAE, image: Tensor) -> np.ndarray:
    """p(class | image) (case, class), by a sum over a grid of codes."""
    axis = torch.linspace(-6, 6, 161)
    codes = torch.cartesian_prod(axis, axis)
    prior = -0.5 * codes.square().sum(1).double()
    with torch.no_grad():
        scale = model.log_scale.exp().double()
        evidence = []
        for k in range(len(CLASSES)):
            mean = model.decode(codes, torch.full((len(codes),), k)).double().flatten(1)
            errors = torch.cdist(image.double().flatten(1), mean).square() / scale.square()
            evidence.append((prior - 0.5 * errors).logsumexp(1) + model.log_class_probs[k])
    return torch.stack(evidence, 1).softmax(1).numpy()


def test_the_class_given_the_image_is_bayes_rule_over_all_codes() -> None:
    """Where images tell little of code and class; eight standard errors."""
    torch.manual_seed(0)
    model, guide = vae(class_probs=(1, 2))
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(1.5)
        model.log_scale.fill_(0.0)
        codes, label = torch.randn(12, 2), torch.arange(12) % 2
        image = model.eval().decode(codes, label) + 0.7 * torch.randn(12, 1, SIZE, SIZE)
    expected = by_quadrature(model, image)
    assert np.ptp(expected[:, 1]) > 0.3 and ((expected > 0.1) & (expected < 0.9)).any()
    probs, error = class_probabilities(model, guide, image, particles=4096)
    assert error.max() < 0.03
    assert ((probs - torch.from_numpy(expected)).abs() < 1e-3 + 8 * error).all()


def test_the_class_given_the_image_is_that_of_the_images(trained: Any) -> None:
    data = squares(200)
    model, guide = trained
    found, _ = class_probabilities(model, guide, data["image"])
    assert (found.argmax(1) == data["label"]).double().mean() > 0.97


def test_what_is_given_a_code_of_the_prior_is_not_scored(trained: Any, tmp_path: Path) -> None:
    data = {n: squares(8)[n] for n in ("image", "label")}
    model, guide = trained
    tree = predict(model, guide, [data], draws=3, progress=False, store=tmp_path / "tree.nc")
    for tried in (tree, storage.load(tmp_path / "tree.nc"), tree["posterior/probs"]):
        with pytest.raises(ValueError, match="given z, drawn from the prior"):
            uncertainty.variance(tried)
    for refused in (scoring.score, scoring.elpd_heldout):
        with pytest.raises(ValueError, match="class_probabilities"):
            refused(tree)


def test_uncertainty_names_what_differs_between_draws() -> None:
    model = LatentClassifier(1, CLASSES, width=3)
    guide = ConditionalNormal(GaussianEncoder(1, 2, 3, num_classes=2))
    coded = predict(model, guide, [{"image": torch.randn(3, 1, 6, 6)}], draws=4, progress=False)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 2))
    plain = BayesianClassifier(net, CLASSES)
    settings: dict[str, Any] = {"draws": 4, "progress": False}
    tree = predict(plain, MeanFieldNormal(plain), [{"image": torch.randn(3, 1, 6, 6)}], **settings)
    for figure in (uncertainty.variance, uncertainty.entropy, uncertainty.summary):
        assert figure(coded).attrs["epistemic_of"] == "of each case z"
        assert figure(tree).attrs["epistemic_of"] == "weights"
