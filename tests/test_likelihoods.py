"""Likelihoods of numbers and of noisy logits, by closed forms, SciPy and numerical integration."""

import math
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy import integrate, special, stats
from torch import Tensor, nn

from ppl_med.analysis import uncertainty
from ppl_med.data import Batches
from ppl_med.inference import Ensemble, MeanFieldNormal, PointEstimate, fit, predict
from ppl_med.likelihoods import Gaussian, LaplaceNoise, LogitNormal, Quantiles, StudentT
from ppl_med.likelihoods.quantiles import QuantileDistribution
from ppl_med.models import BayesianClassifier, BayesianRegressor, BayesianSegmenter, DenseRegressor
from ppl_med.testing import assert_mean, assert_uniform

FALSE_ALARM = 1e-6


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def log_density(likelihood: Any, output: Tensor, value: Tensor) -> Tensor:
    """Of every case, in nats."""
    with pyro.plate("case", len(output)):
        trace = poutine.trace(likelihood).get_trace(output, value)
    fn: Any = trace.nodes[likelihood.site]["fn"]
    return fn.log_prob(value)


# --- numbers


def test_the_gaussian_attenuates_by_the_variance() -> None:
    """Kendall and Gal's eq. 8: exp(-s) (y - f)^2 / 2 + s/2, s the log-variance."""
    output, value = torch.randn(7, 2), torch.randn(7)
    f, s = output.unbind(1)
    expected = -0.5 * (-s).exp() * (value - f) ** 2 - 0.5 * s - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(log_density(Gaussian().train(), output, value), expected)


def test_laplace_and_student_agree_with_scipy() -> None:
    output, value = torch.randn(7, 2).double(), torch.randn(7).double()
    f, scale = output[:, 0].numpy(), output[:, 1].mul(0.5).exp().numpy()
    found = log_density(LaplaceNoise(), output, value)
    np.testing.assert_allclose(found, stats.laplace.logpdf(value, f, scale))
    found = log_density(StudentT(df=4.0), output, value)
    np.testing.assert_allclose(found, stats.t.logpdf(value, 4.0, f, scale), rtol=1e-6)


@pytest.mark.parametrize("kind", [Gaussian, LaplaceNoise, StudentT])
def test_maps_are_summed_over_pixels(kind: Any) -> None:
    output, value = torch.randn(3, 2, 4, 5), torch.randn(3, 4, 5)
    whole = log_density(kind(("row", "col")), output, value)
    pixels = log_density(kind(), output.movedim(1, -1).reshape(-1, 2), value.reshape(-1))
    torch.testing.assert_close(whole, pixels.view(3, -1).sum(1))


@pytest.mark.parametrize("kind", [Gaussian, LaplaceNoise, StudentT])
def test_what_was_not_measured_has_no_influence(kind: Any) -> None:
    output = torch.randn(3, 2, 4, 5, requires_grad=True)
    value = torch.randn(3, 4, 5)
    value[0, 0], value[2, :, 1] = float("nan"), float("nan")
    likelihood = kind(("row", "col"), partial=True).train()
    log_density(likelihood, output, value).sum().backward()
    gradient = output.grad
    assert gradient is not None and gradient.isfinite().all()
    missing = value.isnan()[:, None].expand_as(gradient)
    assert not gradient[missing].any() and gradient[~missing].all()
    filled = value.nan_to_num().reshape(-1)
    seen = log_density(kind().train(), output.movedim(1, -1).reshape(-1, 2), filled)
    by_case = torch.where(value.reshape(-1).isnan(), 0.0, seen).view(3, -1).sum(1)
    torch.testing.assert_close(log_density(likelihood, output, value), by_case)


def test_beta_weighs_gradients_and_not_predictions() -> None:
    """Seitzer et al.: the gradient of the mean is (y - mu) sigma^(2 beta - 2)."""
    for beta in (0.0, 0.5, 1.0):
        output, value = torch.randn(6, 2, requires_grad=True), torch.randn(6)
        likelihood = Gaussian(beta=beta).train()
        log_density(likelihood, output, value).sum().backward()
        f, s = output.detach().unbind(1)
        assert output.grad is not None
        expected = (value - f) * (s * (beta - 1)).exp()
        torch.testing.assert_close(output.grad[:, 0], expected)
        density = log_density(likelihood.eval(), output, value)
        torch.testing.assert_close(density, log_density(Gaussian().eval(), output, value))


@pytest.mark.parametrize(
    ("likelihood", "named"),
    [
        (Gaussian(beta=0.5), "beta-NLL, beta 0.5"),
        (Gaussian(), None),
        (Quantiles((0.1, 0.9)), "mean pinball loss of 2 quantiles"),
        (Quantiles((0.5,)), None),
    ],
)
def test_a_tree_says_what_was_trained_in_the_place_of_a_density(
    likelihood: Any, named: str | None
) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, likelihood.num_outputs))
    model = BayesianRegressor(net, likelihood=likelihood)
    batches = [{"image": torch.randn(6, 1, 2, 2), "value": torch.randn(6)}]
    guide = MeanFieldNormal(model)
    tree = predict(model, guide, batches, draws=2, progress=False, log_likelihood_of="training")
    assert tree.attrs.get("training_loss") == named
    assert (tree.attrs["log_likelihood_of"] == "training") == (named is None)


@pytest.mark.parametrize(
    "likelihood",
    [
        Gaussian(heteroscedastic=False, init_scale=0.4),
        LaplaceNoise(heteroscedastic=False),
        StudentT(),
        StudentT(heteroscedastic=False, init_scale=2.0),
        Quantiles((0.1, 0.9), init_scale=3.0),
    ],
)
def test_members_of_an_ensemble_start_where_the_likelihood_does(likelihood: Any) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, likelihood.num_outputs))
    model = BayesianRegressor(net, likelihood=likelihood)
    start = [value.item() for value in likelihood.parameters()]
    with torch.no_grad():
        for value in likelihood.parameters():
            value += 1
    ensemble = Ensemble(model, lambda member: PointEstimate(member, use_prior=False), 2)
    for member, _ in ensemble.members:
        found: Any = member
        assert [v.item() for v in found.likelihood.parameters()] == pytest.approx(start)


def test_one_learned_scale_is_the_residuals() -> None:
    value = 3 + 0.2 * torch.randn(400)
    model = BayesianRegressor(constant(1), Gaussian(heteroscedastic=False))
    guide = PointEstimate(model, use_prior=False)
    train(model, guide, value)
    learnt: Any = model.likelihood
    found = learnt.scale * learnt.log_scale.exp()
    assert found.item() == pytest.approx(value.std(correction=0).item(), rel=0.01)


def constant(num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(1, num_outputs))


def train(model: Any, guide: Any, value: Tensor, epochs: int = 250) -> None:
    arrays = {"image": torch.zeros(len(value), 1, 1, 1), "value": value}
    fit(
        model,
        guide,
        Batches(arrays, batch_size=len(value)),
        epochs=epochs,
        learning_rate=0.05,
        schedule="cosine",
        progress=False,
    )


def test_outliers_move_laplace_and_student_less_than_the_gaussian() -> None:
    clean = torch.randn(400)
    spoiled = torch.cat([clean[:380], torch.full((20,), 30.0)])
    moved = {}
    for name, kind in {"gaussian": Gaussian, "laplace": LaplaceNoise, "t": StudentT}.items():
        model = BayesianRegressor(constant(2), kind())
        guide = PointEstimate(model, use_prior=False)
        train(model, guide, spoiled)
        tree = predict(model, guide, [{"image": torch.zeros(1, 1, 1, 1)}], draws=1, progress=False)
        loc: Any = tree["posterior/loc"]
        moved[name] = abs(loc.item() - clean.median().item())
    assert moved["gaussian"] > 1.0
    assert moved["laplace"] < 0.25 and moved["t"] < 0.25


# --- quantiles

LEVELS = (0.1, 0.5, 0.9)


def law(levels: tuple[float, ...] = LEVELS, number: int = 1) -> QuantileDistribution:
    quantiles = torch.tensor([[-1.0, 0.5, 4.0]]).double()[:, : len(levels)].expand(number, -1)
    return QuantileDistribution(
        quantiles, torch.ones(number).double(), torch.tensor(levels).double()
    )


def test_one_level_is_a_density() -> None:
    one = law((0.2,))
    total, _ = integrate.quad(
        lambda y: float(one.log_prob(torch.tensor([y]).double()).exp()), -200, 200, points=[-1.0]
    )
    assert total == pytest.approx(1.0, abs=1e-6)
    below, _ = integrate.quad(
        lambda y: float(one.log_prob(torch.tensor([y]).double()).exp()), -200, -1.0
    )
    assert below == pytest.approx(0.2, abs=1e-6)


def test_draws_have_the_stated_quantiles() -> None:
    number = 40000
    many = law(number=number)
    draws = many.rsample()
    for level, quantile in zip(LEVELS, (-1.0, 0.5, 4.0), strict=True):
        assert_mean((draws < quantile).double().numpy() - level, 0.0, FALSE_ALARM)
    u = torch.linspace(1e-3, 1 - 1e-3, 2001).double()
    line = law(number=2001).icdf(u)
    assert (line.diff() > 0).all(), "quantiles rise with their level"
    assert (line.diff() < 5).all(), "and do not jump"
    torch.testing.assert_close(
        law(number=3).icdf(torch.tensor(LEVELS).double()), law().quantiles[0]
    )
    inverse = np.interp(draws.numpy(), line.numpy(), u.numpy())
    assert_uniform(inverse, FALSE_ALARM)


def test_fitted_quantiles_are_those_of_the_data_and_never_cross() -> None:
    value = torch.distributions.Gamma(2.0, 1.0).sample((2000,))
    model = BayesianRegressor(constant(3), Quantiles(LEVELS))
    guide = PointEstimate(model, use_prior=False)
    train(model, guide, value, epochs=600)
    tree = predict(model, guide, [{"image": torch.zeros(1, 1, 1, 1)}], draws=1, progress=False)
    quantile: Any = tree["posterior/quantile"]
    assert quantile.coords["level"].values.tolist() == pytest.approx(LEVELS)
    expected = torch.quantile(value, torch.tensor(LEVELS))
    np.testing.assert_allclose(quantile.values.ravel(), expected, atol=0.06)
    wild = BayesianRegressor(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), Quantiles(LEVELS))
    images = [{"image": 100 * torch.randn(50, 1, 2, 2)}]
    crossed: Any = predict(wild, MeanFieldNormal(wild), images, draws=5, progress=False)
    assert (np.diff(crossed["posterior/quantile"].values, axis=-1) >= 0).all()


# --- noisy logits


def exact_probs(mean: Tensor, variance: Tensor) -> np.ndarray:
    """Of two logit-normal classes, by quadrature over the difference of the logits."""
    nodes, weights = hermegauss(60)
    scale = variance.sum(-1).sqrt().numpy()[..., None]
    difference = (mean[..., 1] - mean[..., 0]).numpy()[..., None]
    second = 1 / (1 + np.exp(-(difference + scale * nodes))) @ weights / weights.sum()
    return np.stack([1 - second, second], -1)


def test_noise_turns_27_to_73_into_30_to_70() -> None:
    """The worked example of the seed: logits 1 and 2, variance 0.5 each."""
    mean, variance = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.5]])
    without = mean.softmax(-1).numpy()
    np.testing.assert_allclose(without, [[0.269, 0.731]], atol=5e-4)
    expected = exact_probs(mean, variance)
    np.testing.assert_allclose(expected, [[0.30, 0.70]], atol=0.01)
    likelihood = LogitNormal(("a", "b")).eval()
    fn = likelihood.distribution(torch.cat([mean, variance.log()], 1))
    np.testing.assert_allclose(fn.probs, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("event", "scale", "tolerance"), [((), 1.0, 1e-4), ((), 30.0, 1 / 1024), (("row",), 3.0, 1e-3)]
)
def test_prediction_integrates_two_noisy_logits(event: Any, scale: float, tolerance: float) -> None:
    """Against the trapezoidal rule, also where the noise hides the logits."""
    mean = 3 * torch.randn(40, 2, *[1] * len(event), dtype=torch.float64)
    spread = scale * (0.5 + torch.rand_like(mean))
    output = torch.cat([mean, 2 * spread.log()], 1)
    likelihood = LogitNormal(("a", "b"), event=event).eval()
    found = likelihood.distribution(output).probs.reshape(40, 2)[:, 1]
    nodes = np.linspace(-9, 9, 20_001)
    of_noise = np.exp(-(nodes**2) / 2)
    between = (mean[:, 1] - mean[:, 0]).reshape(40, 1).numpy()
    both = spread.square().sum(1).sqrt().reshape(40, 1).numpy()
    expected = special.expit(between + both * nodes) @ of_noise / of_noise.sum()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_prediction_integrates_several_noisy_logits() -> None:
    """Within eight standard errors of a simulation plus the stated error of the points."""
    output = torch.randn(30, 6, dtype=torch.float64)
    found = LogitNormal(("a", "b", "c")).eval().prediction(output).exp()
    noise = torch.randn(20_000, 1, 3, dtype=torch.float64)
    simulated = (output[:, :3] + (0.5 * output[:, 3:]).exp() * noise).softmax(-1)
    error = 8 * simulated.std(0) / math.sqrt(20_000) + 4e-3
    assert ((found - simulated.mean(0)).abs() < error).all()


def test_a_fixed_network_with_noisy_logits_has_no_epistemic_part() -> None:
    model = BayesianClassifier(constant(4), ("a", "b"), likelihood="logit_normal")
    tree = predict(
        model, PointEstimate(model), [{"image": torch.zeros(3, 1, 1, 1)}], draws=4, progress=False
    )
    parts = uncertainty.variance(tree)
    assert (parts["epistemic"] == 0).all() and (parts["aleatoric"] > 0.1).all()


def test_the_likelihood_is_the_mean_over_noise_samples() -> None:
    output, label = torch.randn(5, 6), torch.tensor([0, 2, 1, 1, 0])
    likelihood = LogitNormal(("a", "b", "c"), samples=7).train()
    with pyro.plate("case", 5):
        trace = poutine.trace(likelihood).get_trace(output, label)
    noise: Any = trace.nodes["label_noise"]["value"]
    fn: Any = trace.nodes["label"]["fn"]
    assert noise.shape == (5, 7, 3)
    logits = output[:, None, :3] + (0.5 * output[:, None, 3:]).exp() * noise
    by_hand = logits.softmax(-1).mean(1)[torch.arange(5), label].log()
    torch.testing.assert_close(fn.log_prob(label), by_hand)


def test_extreme_logits_stay_finite() -> None:
    output = torch.tensor([[1e4, -1e4, 100.0, 100.0]], requires_grad=True)
    likelihood = LogitNormal(("a", "b"), samples=8).train()
    density = log_density(likelihood, output, torch.tensor([1]))
    density.sum().backward()
    assert density.isfinite().all() and output.grad is not None and output.grad.isfinite().all()


def test_pixels_have_noise_of_their_own() -> None:
    net = nn.Conv2d(1, 4, 1)
    model = BayesianSegmenter(net, ("a", "b"), likelihood="logit_normal")
    guide = MeanFieldNormal(model)
    image = torch.randn(4, 1, 3, 3)
    mask = torch.randint(-1, 2, (4, 3, 3))
    mask[:, 0, 0] = 0
    fit(model, guide, [{"image": image, "mask": mask}], epochs=3, progress=False)
    tree = predict(model, guide, [{"image": image, "mask": mask}], draws=3, progress=False)
    posterior: Any = tree["posterior"]
    assert set(posterior.data_vars) == {"probs", "weight_norm"}, "noise is not stored"
    np.testing.assert_allclose(posterior["probs"].sum("class"), 1, rtol=1e-6)


# --- depth, and what is refused


def test_depth_may_have_holes() -> None:
    model = DenseRegressor(nn.Conv2d(1, 2, 1))
    guide = MeanFieldNormal(model)
    image, depth = torch.randn(4, 1, 3, 3), torch.randn(4, 3, 3)
    depth[1, 0] = float("nan")
    history = fit(model, guide, [{"image": image, "depth": depth}], epochs=3, progress=False)
    assert np.isfinite(history["nll"]).all()
    depth[2] = float("nan")
    with pytest.raises(ValueError, match="depth is NaN everywhere in a case"):
        fit(model, guide, [{"image": image, "depth": depth}], progress=False)
    strict = DenseRegressor(nn.Conv2d(1, 2, 1), Gaussian(("row", "col"), site="depth"))
    depth[2] = 0.0
    with pytest.raises(ValueError, match="depth holds NaN"):
        fit(strict, MeanFieldNormal(strict), [{"image": image, "depth": depth}], progress=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(init_scale=0.0), "init_scale must be"),
        (lambda: Gaussian(beta=1.5), "beta must be"),
        (lambda: StudentT(df=2.0), "df must be above 2"),
        (lambda: Quantiles((0.5, 0.4)), "levels must be rising"),
        (lambda: Quantiles((0.0, 0.4)), "levels must be rising"),
        (lambda: LogitNormal(("a", "b"), samples=0), "samples must be"),
        (
            lambda: BayesianRegressor(constant(2), Gaussian(("row", "col"))),
            r"axes \(\), got site 'value' and axes \('row', 'col'\)",
        ),
        (lambda: DenseRegressor(constant(2), Gaussian()), "site='depth'"),
        (
            lambda: BayesianSegmenter(constant(2), ("a", "b"), likelihood="gaussian"),
            "likelihood must be one of",
        ),
        (
            lambda: BayesianClassifier(constant(2), ("a", "b"), likelihood="gaussian"),
            "likelihood must be one of",
        ),
        (
            lambda: BayesianRegressor(constant(3))(torch.zeros(2, 1, 1, 1)),
            "Gaussian takes 2 output",
        ),
    ],
)
def test_arguments_that_make_no_sense_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
