"""Priors against torch.distributions and scipy; divergences against Monte Carlo and integration."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import integrate, stats
from torch import Tensor, nn
from torch import distributions as td

from ppl_med.inference import BernoulliDropout, MeanFieldNormal, PointEstimate
from ppl_med.inference.guides.mean_field import Estimator
from ppl_med.models import BayesianClassifier
from ppl_med.programs.elbo import elbo_terms
from ppl_med.testing import assert_mean, assert_uniform
from ppl_med.weights import (
    FanInNormal,
    FlatDistribution,
    FlatLaplace,
    FlatNormal,
    FlatPoint,
    FlatScaleMixture,
    Laplace,
    Layout,
    LearntNormal,
    Normal,
    Prior,
    RandomWeights,
    ScaleMixture,
    kl_divergence,
)

PRIORS: dict[str, Callable[[], Prior]] = {
    "normal": lambda: Normal(0.7),
    "normal-pretrained": lambda: Normal(0.3, loc="pretrained"),
    "normal-shifted": lambda: Normal(0.5, loc=-0.2),
    "fan-in": lambda: FanInNormal(1.3, bias_scale=0.6),
    "fan-in-pretrained": lambda: FanInNormal(0.5, loc="pretrained"),
    "laplace": lambda: Laplace(0.4),
    "scale-mixture": lambda: ScaleMixture(1.0, 0.05, 0.3),
}
LEARNT: dict[str, Callable[[], Prior]] = {
    "learnt-tensor": lambda: LearntNormal("tensor", 1.3),
    "learnt-weight": lambda: LearntNormal("weight", 0.7, loc="pretrained"),
    "learnt-all": lambda: LearntNormal("all"),
}
every_prior = pytest.mark.parametrize(
    "make", [*PRIORS.values(), *LEARNT.values()], ids=[*PRIORS, *LEARNT]
)
every_fixed_prior = pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS)


def tiny_net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def distribution(prior: Prior, net: nn.Module) -> FlatDistribution:
    return RandomWeights(net, prior).prior_distribution()


def oracle(prior: Prior, net: nn.Module) -> td.Distribution:
    """The same prior by torch.distributions, from its definition."""
    layout = Layout(net)
    flat = layout.flatten(net)
    if isinstance(prior, Normal):
        loc = flat if prior.loc == "pretrained" else torch.full_like(flat, float(prior.loc))
        return td.Normal(loc, torch.full_like(flat, prior.scale))
    if isinstance(prior, FanInNormal | LearntNormal):
        scales = []
        of_bias = prior.bias_scale if isinstance(prior, FanInNormal) else prior.gain
        for parameter in net.parameters():
            fan_in = parameter.shape[1] if parameter.dim() > 1 else None
            scale = prior.gain / math.sqrt(fan_in) if fan_in else of_bias
            scales.append(flat.new_full((parameter.numel(),), scale))
        loc = flat if prior.loc == "pretrained" else torch.zeros_like(flat)
        return td.Normal(loc, torch.cat(scales))
    if isinstance(prior, Laplace):
        return td.Laplace(torch.zeros_like(flat), torch.full_like(flat, prior.scale))
    assert isinstance(prior, ScaleMixture)
    both = flat.new_tensor([prior.wide, prior.narrow]).expand(len(flat), 2)
    mixing = flat.new_tensor([prior.mixing, 1 - prior.mixing]).expand(len(flat), 2)
    components = td.Normal(torch.zeros_like(both), both)
    return td.MixtureSameFamily(td.Categorical(mixing), components)


@every_prior
def test_log_density_equals_torch(make: Callable[[], Prior]) -> None:
    net = tiny_net()
    prior, expected = distribution(make(), net), oracle(make(), net)
    weights = torch.randn(5, prior.event_shape[0], dtype=torch.float64)
    torch.testing.assert_close(prior.log_density(weights), expected.log_prob(weights))
    torch.testing.assert_close(prior.log_prob(weights), expected.log_prob(weights).sum(-1))


@every_prior
def test_draws_follow_the_density(make: Callable[[], Prior]) -> None:
    net = tiny_net()
    draws = distribution(make(), net).rsample(torch.Size([400]))
    assert draws.shape == (400, 26)
    assert_uniform(oracle(make(), net).cdf(draws).reshape(-1))


@every_prior
def test_a_prior_is_part_of_the_state(make: Callable[[], Prior]) -> None:
    weights = RandomWeights(tiny_net(), make())
    tensors = {name for name in weights.state_dict() if name.startswith("prior_")}
    assert tensors == {f"prior_{name}" for name in weights._prior_names} != set()
    assert weights.float().prior_distribution().rsample().dtype == torch.float32


def test_normal_divergence_equals_torch() -> None:
    for p_loc, p_scale in ((0.0, 1.3), (0.4, 0.2)):
        loc, scale = torch.randn(7).double(), torch.rand(7).double() + 0.1
        prior = FlatNormal(torch.tensor(p_loc).double(), torch.tensor(p_scale).double(), 7)
        expected = td.kl_divergence(td.Normal(loc, scale), td.Normal(p_loc, p_scale)).sum()
        torch.testing.assert_close(kl_divergence(FlatNormal(loc, scale), prior), expected)


def test_divergence_of_equal_normals_is_zero() -> None:
    loc, scale = torch.randn(5), torch.rand(5) + 0.1
    value = kl_divergence(FlatNormal(loc, scale), FlatNormal(loc.clone(), scale.clone()))
    torch.testing.assert_close(value, torch.zeros(()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("make", [PRIORS["normal-shifted"], PRIORS["fan-in"], PRIORS["laplace"]])
def test_closed_form_divergence_equals_monte_carlo(make: Callable[[], Prior]) -> None:
    net = tiny_net()
    prior = distribution(make(), net)
    guide = FlatNormal(Layout(net).flatten(net), 0.05 + 0.4 * torch.rand(26).double())
    draws = guide.rsample(torch.Size([20_000]))
    samples = guide.log_prob(draws) - prior.log_prob(draws)
    assert_mean(samples, kl_divergence(guide, prior))


@pytest.mark.parametrize("prior", ["laplace", "scale-mixture"])
@pytest.mark.parametrize(("loc", "scale"), [(0.0, 0.3), (-0.8, 0.05), (0.02, 1.5)])
def test_divergence_equals_numerical_integration(prior: str, loc: float, scale: float) -> None:
    q, laplace = stats.norm(loc, scale), stats.laplace(0, 0.4)
    wide, narrow = stats.norm(0, 1.0), stats.norm(0, 0.05)

    def log_p(weight: float) -> float:
        if prior == "laplace":
            return float(laplace.logpdf(weight))
        parts = np.log(0.3) + wide.logpdf(weight), np.log(0.7) + narrow.logpdf(weight)
        return float(np.logaddexp(*parts))

    def integrand(weight: float) -> float:
        return float(q.pdf(weight) * (q.logpdf(weight) - log_p(weight)))

    limits, kinks = (loc - 12 * scale, loc + 12 * scale), [0.0, loc]
    expected, error = integrate.quad(integrand, *limits, points=kinks, epsabs=1e-9, limit=200)
    assert error < 1e-7
    for samples in divergences(PRIORS[prior](), loc, scale):
        if prior == "laplace":
            np.testing.assert_allclose(samples, expected, rtol=1e-6)  # closed form
        else:
            assert_mean(samples, expected)


def divergences(prior: Prior, loc: float, scale: float) -> Iterator[list[float]]:
    """KL a weight as ``elbo_terms`` gives it: of plain draws, then of the draws of an estimator."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 400, bias=False), Mean()).double()
    model = BayesianClassifier(net, ["no", "yes"], prior, likelihood="bernoulli")
    image, label = torch.ones(2, 1, 1, 1).double(), torch.tensor([0, 1])
    estimators: tuple[Estimator, ...] = ("shared", "flipout")
    for estimator in estimators:
        guide = MeanFieldNormal(model, estimator=estimator)
        part: Any = guide.parts["weights"]
        with torch.no_grad():
            part.loc.fill_(loc)
            part.raw_scale.fill_(math.log(math.expm1(scale)))
            terms = (elbo_terms(model, guide, image, label)[1] for _ in range(60))
            yield [float(kl["weights"]) / 400 for kl in terms]


class Mean(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values.mean(-1, keepdim=True)


@every_fixed_prior
def test_quasi_divergence_of_dropout_equals_monte_carlo(make: Callable[[], Prior]) -> None:
    """E_q[-log p(W)], over draws of M diag(z)."""
    model = BayesianClassifier(tiny_net(), ["a", "b"], make())
    guide = BernoulliDropout(model, {"0.weight": 0.25, "2.weight": 0.6}).eval()
    prior, q = model.network.prior_distribution(), guide.distribution()
    draws = q.rsample(torch.Size([4000]))
    assert 100 < len(draws.unique(dim=0)) <= 2**7  # 3 and 4 input units
    assert_mean(-prior.log_prob(draws), kl_divergence(q, prior))


@every_fixed_prior
def test_point_estimates_pay_the_prior_or_nothing(make: Callable[[], Prior]) -> None:
    model = BayesianClassifier(tiny_net(), ["a", "b"], make())
    prior, start = model.network.prior_distribution(), model.network.initial()
    penalised = kl_divergence(PointEstimate(model).distribution(), prior)
    torch.testing.assert_close(penalised, -prior.log_prob(start))
    free = kl_divergence(PointEstimate(model, use_prior=False).distribution(), prior)
    assert free.shape == () and float(free) == 0


def test_point_draws_are_the_point() -> None:
    point = FlatPoint(torch.arange(3.0), use_prior=True)
    assert torch.equal(point.rsample(torch.Size([2])), torch.arange(3.0).expand(2, 3))


def test_fan_in_keeps_the_scale_through_relu_layers() -> None:
    """He et al. 2015: the second moment of a ReLU net's outputs does not depend on its width."""
    images = torch.randn(1, 50).double()
    images = images / images.square().mean().sqrt()
    for width in (8, 64):
        layers = [nn.Linear(50, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
        net = nn.Sequential(*layers, nn.Linear(width, 1)).double()
        model = RandomWeights(net, FanInNormal(bias_scale=1e-6))
        with torch.no_grad():
            outputs = torch.stack([model(images) for _ in range(3000)])
        assert_mean(outputs.square().reshape(-1), 2.0)


def test_normal_around_pretrained_weights_starts_there() -> None:
    net = tiny_net()
    model = RandomWeights(net, Normal(0.1, loc="pretrained"))
    prior = model.prior_distribution()
    assert torch.equal(prior.loc, torch.cat([p.detach().reshape(-1) for p in net.parameters()]))
    with torch.no_grad():
        next(model.net.parameters()).zero_()
    assert torch.equal(model.prior_distribution().loc, prior.loc)  # a copy, not a view


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Normal(0.0), "scale must be a finite number above 0"),
        (lambda: Normal(math.nan), "scale must be a finite number above 0"),
        (lambda: FanInNormal(-1.0), "gain must be a finite number above 0"),
        (lambda: FanInNormal(1.0, bias_scale=0.0), "bias_scale must be"),
        (lambda: Laplace(math.inf), "scale must be a finite number above 0"),
        (lambda: ScaleMixture(mixing=1.0), "mixing must be strictly"),
        (lambda: ScaleMixture(narrow=0.0), "narrow must be a finite number above 0"),
    ],
)
def test_wrong_arguments_are_named(make: Callable[[], Prior], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_densities_survive_extreme_weights() -> None:
    """Values and gradients stay finite far out, where one component's density underflows."""
    weights = torch.tensor([0.0, 1e-4, 3.0, -40.0], requires_grad=True)
    one, narrow = torch.tensor(1.0), torch.tensor(math.exp(-6))
    for prior in (
        FlatScaleMixture(one, narrow, torch.tensor(0.5), 4),
        FlatLaplace(torch.tensor(0.0), one, 4),
        FlatNormal(torch.tensor(0.0), one, 4),
    ):
        value: Tensor = prior.log_prob(weights)
        (gradient,) = torch.autograd.grad(value, weights)
        assert value.isfinite() and gradient.isfinite().all(), prior


def test_a_prior_draw_is_the_model_without_a_guide() -> None:
    model = RandomWeights(tiny_net(), Normal(2.0))
    node: Any = poutine.trace(model).get_trace(torch.zeros(1, 3).double()).nodes["weights"]
    assert node["value"].shape == (26,) and not node["is_observed"]
    expected = td.Normal(0.0, 2.0).log_prob(node["value"]).sum()
    torch.testing.assert_close(node["fn"].log_prob(node["value"]), expected)
