"""Conditional VAE: densities against a Gaussian oracle, bounds, and codes that keep their case."""

from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
from scipy import stats
from torch import Tensor

from ppl_med.data import Batches
from ppl_med.explain import latent_counterfactual, minimal_perturbation
from ppl_med.explain.counterfactuals.realism import log_density
from ppl_med.inference import ConditionalNormal, ImportanceWeighted, fit, predict
from ppl_med.models import ConditionalVAE
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
