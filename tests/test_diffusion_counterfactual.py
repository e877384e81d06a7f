"""Counterfactuals through a chain: steps in closed form, and two classes that differ by a blob."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from image_chains import KnownChain, NormalImages, TwoClasses, no_guide
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ppl_med.explain import (
    diffusion_counterfactual,
    minimal_perturbation,
    nearest_case,
    second_opinion,
)
from ppl_med.explain.counterfactuals.diffusion_steps import (
    Denoiser,
    generate,
    generate_towards,
    invert,
)
from ppl_med.inference import Guides, MeanFieldNormal, Noising, PointEstimate
from ppl_med.models import ImageDiffusion
from ppl_med.networks import DenoisingUNet
from ppl_med.programs.noising import NormalNoise

SHAPE, VARIANCE = (1, 4, 4), 0.5
BLOB = (slice(None), slice(2, 5), slice(3, 6))


def normal_denoiser(steps: int, depth: float = 1.0, num_steps: int = 1000) -> Any:
    process = NormalNoise(1, num_steps)
    images = NormalImages(torch.randn(SHAPE, dtype=torch.float64), VARIANCE)
    pairs = process.grid(steps, start=round(depth * num_steps))
    denoiser = Denoiser(
        lambda state, step: images.posterior_mean(state, process.kept[step]), process.kept, pairs
    )
    return denoiser, images


def some_images(images: NormalImages) -> Tensor:
    return images.mean + VARIANCE**0.5 * torch.randn(5, *SHAPE, dtype=torch.float64)


def spread(kept: Tensor) -> Tensor:
    """Standard deviation of the noise of x_t over its factor of the image."""
    return ((1 - kept) / kept).sqrt()


# --- up and down the chain


def factors(denoiser: Denoiser) -> tuple[float, float]:
    """By how much the way up and the way down stretch an image about its mean.

    Over its factor of the image, x_t moves by (change of spread) times the noise, which is
    spread / (variance + spread^2) times the distance from the mean.
    """
    up = down = 1.0
    for later, earlier in denoiser.pairs:
        above, below, asked = (
            float(spread(denoiser.kept[n])) for n in (later, earlier, max(earlier, 1))
        )
        up *= 1 + (above - below) * asked / (VARIANCE + asked**2)
        down *= 1 + (below - above) * above / (VARIANCE + above**2)
    return up, down


@pytest.mark.parametrize(("steps", "depth"), [(1, 0.3), (7, 0.5), (25, 1.0)])
def test_both_ways_are_those_of_the_linear_recursion(steps: int, depth: float) -> None:
    denoiser, images = normal_denoiser(steps, depth)
    x = some_images(images)
    up, down = factors(denoiser)
    signal = denoiser.kept[denoiser.pairs[0][0]].sqrt()
    code = invert(denoiser, x)
    torch.testing.assert_close(code, signal * (images.mean + up * (x - images.mean)))
    back = generate(denoiser, code)
    torch.testing.assert_close(back, images.mean + up * down * (x - images.mean))


def test_more_steps_lead_back_to_the_image_and_to_the_exact_code() -> None:
    """Of first order: twice the steps, half the error. The limit keeps an image's quantiles."""
    lost, missed = [], []
    for steps in (25, 50, 100, 200, 400):
        denoiser, images = normal_denoiser(steps)
        x, kept = some_images(images), denoiser.kept[-1]
        stretch = ((kept * VARIANCE + 1 - kept) / VARIANCE).sqrt()
        exact = kept.sqrt() * images.mean + stretch * (x - images.mean)
        code = invert(denoiser, x)
        scale = (x - images.mean).square().mean().sqrt()
        missed.append(float((code - exact).square().mean().sqrt() / scale))
        lost.append(float((generate(denoiser, code) - x).square().mean().sqrt() / scale))
    for errors in (lost, missed):
        ratios = np.divide(errors[1:], errors[:-1])
        assert (0.4 < ratios).all() and (ratios < 0.6).all() and errors[-1] < 0.02


def test_corrected_steps_lead_back_with_few_steps() -> None:
    """Each iteration shrinks the error by spread^2 / (variance + spread^2) or better."""
    denoiser, images = normal_denoiser(4, 0.5)
    x = some_images(images)
    errors = [
        float((generate(denoiser, invert(denoiser, x, n)) - x).abs().max()) for n in (0, 5, 80)
    ]
    assert errors[1] < 0.3 * errors[0] and errors[2] < 1e-9


def test_a_pull_tilts_normal_images() -> None:
    """p(x) exp(scale w x) has its mean moved by scale variance w; the chain goes part of the way.

    The code keeps what the noise at the depth leaves of the image: 1 - sqrt(v / (v + spread^2)).
    """
    denoiser, images = normal_denoiser(500, 0.6)
    x, weight = some_images(images), torch.randn(SHAPE, dtype=torch.float64)

    def loss_and_slope(image: Tensor) -> tuple[Tensor, Tensor]:
        return -(image * weight).flatten(1).sum(1), -weight.expand_as(image)

    code = invert(denoiser, x)
    found = generate_towards(denoiser, code, loss_and_slope, 3.0) - generate(denoiser, code)
    above = spread(denoiser.kept[denoiser.pairs[0][0]])
    part = 1 - (VARIANCE / (VARIANCE + above**2)).sqrt()
    expected = (3.0 * VARIANCE * part * weight).expand_as(found)
    assert 0.3 < float(part) < 0.95, "neither nothing nor everything"
    assert float((found - expected).abs().max() / expected.abs().max()) < 0.01


# --- two classes that differ by one blob


@pytest.fixture(scope="module")
def classes() -> TwoClasses:
    means = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    means[1][BLOB] = 2.0
    return TwoClasses(means, 0.25)


def net(classes: TwoClasses, bias: float = 0.0) -> Any:
    """Logits of the true classes."""
    return lambda x: torch.stack([torch.zeros(len(x)).to(x), classes.log_odds(x) + bias], 1)


@pytest.fixture(scope="module")
def judge(classes: TwoClasses) -> Any:
    """Logistic regression, trained on images of its own."""
    generator = torch.random.get_rng_state()
    torch.manual_seed(5)
    label = torch.arange(400) % 2
    fitted = LogisticRegression().fit(classes.sample(label).flatten(1), label)
    torch.random.set_rng_state(generator)
    weight, bias = torch.from_numpy(fitted.coef_).T, torch.from_numpy(fitted.intercept_)
    return lambda x: torch.cat([torch.zeros(len(x), 1).to(x), x.flatten(1) @ weight + bias], 1)


def found(classes: TwoClasses, x: Tensor, **settings: Any) -> xr.Dataset:
    label = (classes.log_odds(x) > 0).long()
    chain = KnownChain(classes, 200)
    nets = [net(classes, bias) for bias in (-1.0, 0.0, 1.0)]
    return diffusion_counterfactual(nets, x, 1 - label, diffusion=(chain, no_guide), **settings)


def test_the_blob_changes_and_nothing_else(classes: TwoClasses, judge: Any) -> None:
    label = torch.arange(8) % 2
    x = classes.sample(label)
    settings: dict[str, Any] = {"depth": 0.7, "steps": 40, "second": [judge]}
    result = found(classes, x, keep_residual=True, **settings)
    assert result.reached.all() and (result.flip_probability == 1).all()
    assert (result.transferred == 1).all(), "a judge trained apart agrees"
    change = result.change.values
    inside = change[:, *BLOB].copy()
    change[:, *BLOB] = 0
    assert np.abs(change).max() < 1e-12, "outside of the blob nothing tells the classes apart"
    sign = 1 - 2 * label.numpy()
    mean = sign * inside.mean((1, 2, 3))
    assert (mean > 0.8).all() and (mean < 3).all(), "a blob of height 2 comes or goes"
    plain = found(classes, x, **settings)
    assert (plain.round_trip > 0).all() and (plain.l2 > 0).all()
    lost = np.sqrt(((plain.image - plain.reconstruction) ** 2).mean(("channel", "row", "col")))
    np.testing.assert_allclose(plain.round_trip, lost)
    outside = plain.change.values.copy()
    outside[:, *BLOB] = 0
    loss = (plain.reconstruction - plain.image).values
    loss[:, *BLOB] = 0
    np.testing.assert_allclose(outside, loss, atol=1e-12)


def test_without_a_pull_the_result_is_what_the_chain_makes_of_the_image(
    classes: TwoClasses,
) -> None:
    x = classes.sample(torch.zeros(3, dtype=torch.int64))
    result = found(classes, x, scale=0.0)
    np.testing.assert_allclose(result.counterfactual, result.reconstruction, atol=1e-12)
    assert not result.reached.any() and (result.scale == 0).all()
    kept = found(classes, x, scale=0.0, keep_residual=True)
    np.testing.assert_allclose(kept.change, 0, atol=1e-12)


def test_the_least_scale_that_reaches_the_margin_is_taken(classes: TwoClasses) -> None:
    x = classes.sample(torch.zeros(4, dtype=torch.int64))
    x[0] += 0.4 * classes.means[1]  # nearer to the other class: a smaller scale will do
    x[1] -= 0.6 * classes.means[1]
    settings: dict[str, Any] = {"depth": 0.7, "margin": 50.0}
    result = found(classes, x, **settings)
    assert result.reached.all() and len(np.unique(result.scale)) > 1
    for scale in np.unique(result.scale):
        alone = found(classes, x, **settings, scale=float(scale))
        own = (result.scale == scale).values
        np.testing.assert_allclose(alone.counterfactual[own], result.counterfactual[own])
        if scale > 1:
            less = found(classes, x, **settings, scale=float(scale) / 2)
            assert not less.reached[own].any()


def test_the_pull_is_at_the_image_with_what_the_chain_loses(classes: TwoClasses) -> None:
    """A net that adds that by itself pulls the same way; unsure ones, whose slope varies."""

    def unsure(image: Tensor) -> Tensor:
        return 0.02 * net(classes)(image)

    x = classes.sample(torch.zeros(1, dtype=torch.int64))
    settings: dict[str, Any] = {"diffusion": (KnownChain(classes, 200), no_guide), "depth": 0.7}
    settings |= {"scale": 50.0}
    kept = diffusion_counterfactual([unsure], x, 1, **settings, keep_residual=True)
    lost = torch.from_numpy((kept.image - kept.reconstruction).values)
    assert float(lost.abs().max()) > 0.1
    same = diffusion_counterfactual([lambda image: unsure(image + lost)], x, 1, **settings)
    np.testing.assert_allclose(kept.counterfactual, same.counterfactual + lost.numpy(), atol=1e-9)


def test_the_result_says_what_it_is(classes: TwoClasses, judge: Any) -> None:
    x = classes.sample(torch.zeros(2, dtype=torch.int64))
    result = found(classes, x, scale=2.0, case=["a", "b"])
    assert "follows the law of no model" in result.law and result.second_judge == "not judged"
    assert result.method == "diffusion" and "transferred" not in result
    assert all({"units", "long_name"} <= set(v.attrs) for v in result.data_vars.values())
    judged = second_opinion(result, [judge, judge])
    assert judged.second_judge == "2 draws of another network" and judged.law == result.law
    assert found(classes, x, scale=2.0, second=[judge]).second_judge.startswith("1 draws")


def test_an_attack_does_not_transfer_where_the_chain_does(classes: TwoClasses, judge: Any) -> None:
    """A net that also reads pixels in which the classes do not differ is fooled by these."""
    weight = torch.zeros(1, 8, 8, dtype=torch.float64)
    weight[0, 6:, :2] = 200.0

    def fooled(image: Tensor) -> Tensor:
        extra = (image * weight).flatten(1).sum(1)
        return net(classes)(image) + torch.stack([torch.zeros_like(extra), extra], 1)

    x = classes.sample(torch.zeros(20, dtype=torch.int64))
    x = x[(fooled(x)[:, 1] < -1) & (judge(x)[:, 1] < 0)]
    assert len(x) >= 3
    attack = second_opinion(minimal_perturbation([fooled], x, 1), [judge])
    assert (attack.flip_probability == 1).all() and (attack.transferred == 0).all()
    made = found(classes, x, depth=0.7, second=[judge])
    assert (made.transferred == 1).all()


# --- the model, and its programs


def image_model() -> tuple[ImageDiffusion, Guides]:
    model = ImageDiffusion(DenoisingUNet(0, 1, 2, (8, 8)), 1, num_steps=10)
    guide = Guides(
        PointEstimate(model, use_prior=False), Noising(model.noising, observation="image")
    )
    return model, guide


def test_a_model_of_the_zoo_goes_through_its_chain_and_stays_as_it_was(
    classes: TwoClasses,
) -> None:
    pair = image_model()
    x = classes.sample(torch.zeros(2, dtype=torch.int64)).float()
    settings: dict[str, Any] = {"diffusion": pair, "steps": 4, "scale": 4.0, "seed": 3}
    before = torch.random.get_rng_state()
    values = {n: p.clone() for n, p in pair[0].state_dict().items()}
    first = diffusion_counterfactual([net(classes)], x, 1, **settings)
    assert torch.equal(before, torch.random.get_rng_state())
    assert pair[0].training and pair[1].training
    torch.randn(7)
    xr.testing.assert_identical(first, diffusion_counterfactual([net(classes)], x, 1, **settings))
    assert all(torch.equal(p, values[n]) for n, p in pair[0].state_dict().items())
    assert first.counterfactual.dtype == np.float32 and (first.l2 > 0).all()


def test_the_seed_draws_the_weights_of_the_chain(classes: TwoClasses) -> None:
    model, _ = image_model()
    guide = Guides(MeanFieldNormal(model, init_scale=0.3), Noising(model.noising, "image"))
    x = classes.sample(torch.zeros(1, dtype=torch.int64)).float()
    one, again, other = (
        diffusion_counterfactual(
            [net(classes)], x, 1, diffusion=(model, guide), steps=2, scale=1.0, seed=seed
        )
        for seed in (3, 3, 4)
    )
    xr.testing.assert_identical(one, again)
    assert (one.code != other.code).any()


# --- the trivial baseline


def test_nearest_case_is_that_of_all_pairs(classes: TwoClasses) -> None:
    label = torch.arange(30) % 2
    references = classes.sample(label)
    x = classes.sample(torch.zeros(4, dtype=torch.int64))
    result = nearest_case([net(classes)], x, 1, references=references, reference_label=label)
    for image, place, own in zip(x, result.reference.values, result.counterfactual, strict=True):
        far = [
            float((image - one).norm()) if k == 1 else np.inf
            for one, k in zip(references, label, strict=True)
        ]
        assert place == np.argmin(far)
        np.testing.assert_array_equal(own, references[place])
    np.testing.assert_allclose(
        result.l2, (x - references[result.reference.values]).flatten(1).norm(dim=1)
    )


# --- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 1.5}, "depth must be"),
        ({"depth": 0.0}, "steps must be from 1"),
        ({"steps": 101}, "steps must be from 1 to 100"),
        ({"steps": 0}, "steps must"),
        ({"scale": -1.0}, "scale must"),
        ({"corrections": -1}, "corrections must"),
        ({"scale": float("nan")}, "scale must"),
        ({"target": 0}, "target is the present class"),
        ({"diffusion": (torch.nn.Identity(), no_guide)}, "no mean_image, network, noising"),
        ({"second": []}, "functions is empty"),
    ],
)
def test_refuses(classes: TwoClasses, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "functions": [net(classes)],
        "image": classes.sample(torch.zeros(2, dtype=torch.int64)),
        "target": 1,
        "diffusion": (KnownChain(classes, 200), no_guide),
    } | change
    with pytest.raises((TypeError, ValueError), match=message):
        diffusion_counterfactual(**arguments)


def test_refuses_images_that_do_not_fit(classes: TwoClasses) -> None:
    model, _ = image_model()
    with pytest.raises(ValueError, match="image has shape"):
        model(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="noised channels"):
        ImageDiffusion(DenoisingUNet(0, 1, 1, (8, 8)), 1, num_steps=4)(torch.zeros(2, 1, 8, 8))
    x = classes.sample(torch.zeros(2, dtype=torch.int64))
    label = torch.zeros(2, dtype=torch.int64)
    for references, message in {x: "no image of the targets", x[..., :4]: "one size"}.items():
        with pytest.raises(ValueError, match=message):
            nearest_case([net(classes)], x, 1, references=references, reference_label=label)
    with pytest.raises(ValueError, match="result has no counterfactual"):
        second_opinion(xr.Dataset({"image": ("case", [1.0]), "target": ("case", [1])}), [])
