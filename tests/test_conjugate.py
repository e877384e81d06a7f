"""Models whose posterior is known: every guide that can represent it finds it.

Where the error of optimisation dominates, the tolerance is stated in posterior standard deviations:
0.2 for locations, 10 per cent for scales, since a step sees one draw. The optimum itself is checked
without it: there the expected gradient is zero (z-test).
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from numpy.polynomial.hermite_e import hermegauss
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroSample
from scipy import optimize
from torch import Tensor, nn

from ppl_med.inference import (
    Ensemble,
    LowRankNormal,
    MeanFieldNormal,
    PointEstimate,
    elbo_terms,
    fit,
    predict,
)
from ppl_med.models import BayesianClassifier
from ppl_med.programs.elbo import total
from ppl_med.testing import assert_mean
from ppl_med.weights import FanInNormal, Laplace, Normal, Prior, RandomWeights

NOISE, PRIOR_SCALE, CASES = 0.6, 1.5, 24


class LinearRegression(nn.Module):
    """target ~ Normal(weights . features + bias, NOISE^2), priors over weights and bias."""

    def __init__(self, prior: Prior | None = None, num_features: int = 2) -> None:
        super().__init__()
        net = nn.Linear(num_features, 1).double()
        self.network = RandomWeights(net, prior or Normal(PRIOR_SCALE))

    def forward(
        self, features: Tensor, target: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        mean = self.network(features)[:, 0]
        with pyro.plate("case", num_cases or len(features), subsample=features):
            pyro.sample("target", dist.Normal(mean, NOISE), obs=target)
        return mean


class PyroRegression(PyroModule):
    """The same model with Pyro's own priors: two sites."""

    def __init__(self) -> None:
        super().__init__()
        linear: Any = PyroModule[nn.Linear]
        self.layer = linear(2, 1)
        zero = torch.zeros((), dtype=torch.float64)
        self.layer.weight = PyroSample(dist.Normal(zero, PRIOR_SCALE).expand([1, 2]).to_event(2))
        self.layer.bias = PyroSample(dist.Normal(zero, PRIOR_SCALE).expand([1]).to_event(1))

    def forward(
        self, features: Tensor, target: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        mean = self.layer(features)[:, 0]
        with pyro.plate("case", num_cases or len(features), subsample=features):
            pyro.sample("target", dist.Normal(mean, NOISE), obs=target)
        return mean


Data = dict[str, Tensor]


def design(kind: str) -> Data:
    """Two features and a target; orthogonal to each other and to the constant, or not."""
    features = torch.randn(CASES, 2, dtype=torch.float64)
    if kind == "orthogonal":
        columns = torch.cat([torch.ones(CASES, 1).double(), features], dim=1)
        features = torch.linalg.qr(columns).Q[:, 1:] * torch.tensor([3.0, 1.5])
    else:
        features = features @ torch.tensor([[1.0, 0.8], [0.0, 0.6]]).double() + 0.5
    target = features @ torch.tensor([1.0, -2.0]).double() + 0.4
    return {"features": features, "target": target + NOISE * torch.randn(CASES)}


def posterior(data: Data) -> tuple[Tensor, Tensor]:
    """Mean and precision of (weight, weight, bias)."""
    columns = torch.cat([data["features"], torch.ones(CASES, 1).double()], dim=1)
    precision = columns.T @ columns / NOISE**2 + torch.eye(3).double() / PRIOR_SCALE**2
    return torch.linalg.solve(precision, columns.T @ data["target"] / NOISE**2), precision


def trained(
    model: Any, guide: Any, data: Data | list[Data], steps: int = 900, **options: Any
) -> Any:
    """Fit with a step size that falls fast enough to average the noise of single draws out."""
    settings: Any = {"learning_rate": 0.05, "schedule": lambda done: (1 - done) ** 2, **options}
    batches = data if isinstance(data, list) else [data]
    fit(model, guide, batches, epochs=steps, progress=False, **settings)
    return guide


def assert_found(loc: Tensor, scale: Tensor, expected: tuple[Tensor, Tensor]) -> None:
    """Location within 0.2 posterior standard deviations, scale within 10 per cent."""
    mean, exact = expected
    assert ((loc - mean).abs() < 0.2 * exact).all(), (loc, mean, exact)
    assert ((scale / exact - 1).abs() < 0.1).all(), (scale, exact)


def mean_field(guide: MeanFieldNormal) -> tuple[Tensor, Tensor]:
    q: Any = guide.distribution()
    return q.loc.detach(), q.scale.detach()


@pytest.mark.parametrize(("kind", "estimator"), [("orthogonal", "shared"), ("correlated", "auto")])
def test_mean_field_finds_its_optimum(kind: str, estimator: Any) -> None:
    """Means are exact; variances are 1/diag(precision), the marginals' own if orthogonal."""
    data, model = design(kind), LinearRegression()
    guide = trained(model, MeanFieldNormal(model, 0.3, estimator), data)
    mean, precision = posterior(data)
    optimum = mean, precision.diagonal().rsqrt()
    assert_found(*mean_field(guide), optimum)
    if kind == "orthogonal":
        torch.testing.assert_close(optimum[1], torch.linalg.inv(precision).diagonal().sqrt())


def test_low_rank_normal_finds_the_whole_posterior() -> None:
    """With as many columns as weights, correlations too, which independent normals cannot have."""
    data, model = design("correlated"), LinearRegression()
    q: Any = trained(model, LowRankNormal(model, 3, 0.3), data, 1200).distribution()
    mean, precision = posterior(data)
    exact = torch.linalg.inv(precision)
    assert_found(q.loc.detach(), q.variance.detach().sqrt(), (mean, exact.diagonal().sqrt()))
    found = q.covariance_matrix.detach()
    correlations = [c / torch.outer(*[c.diagonal().sqrt()] * 2) for c in (found, exact)]
    torch.testing.assert_close(*correlations, atol=0.1, rtol=0)
    assert correlations[1].abs().tril(-1).max() > 0.5


def test_low_rank_normal_has_the_divergence_of_torch() -> None:
    model = LinearRegression(FanInNormal(1.3, bias_scale=0.7))
    q: Any = LowRankNormal(model, 2, 0.4).distribution()
    p: Any = model.network.prior_distribution()
    dense = dist.MultivariateNormal(p.loc.expand(3), torch.diag(p.scale.square()))
    expected = torch.distributions.kl_divergence(q, dense)
    torch.testing.assert_close(torch.distributions.kl_divergence(q, p), expected)


@pytest.mark.parametrize("estimator", ["shared", "flipout", "local", "auto"])
def test_the_gradient_is_zero_at_the_optimum(estimator: Any) -> None:
    data, model = design("correlated"), LinearRegression()
    guide = MeanFieldNormal(model, estimator=estimator)
    mean, precision = posterior(data)
    part: Any = guide.parts["weights"]
    scale = precision.diagonal().rsqrt()
    with torch.no_grad():
        part.loc.copy_(mean)
        part.raw_scale.copy_(scale + torch.log(-torch.expm1(-scale)))
    assert_mean(gradients(model, guide, [part.loc, part.raw_scale], data), torch.zeros(6))
    with torch.no_grad():
        part.loc[0] += 0.6 * scale[0]
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_mean(gradients(model, guide, [part.loc, part.raw_scale], data), torch.zeros(6))


def gradients(model: Any, guide: Any, parameters: list[Tensor], data: Data) -> Tensor:
    """Gradients of the negative ELBO, dims (draw, parameter)."""
    draws = []
    for _ in range(600):
        nll, kl = elbo_terms(model, guide, **data)
        draws.append(torch.cat(torch.autograd.grad(total(nll) + total(kl), parameters)))
    return torch.stack(draws)


def test_mini_batches_lead_to_the_same_optimum() -> None:
    data, model = design("correlated"), LinearRegression()
    halves = [{name: value[part::2] for name, value in data.items()} for part in range(2)]
    guide = MeanFieldNormal(model, 0.3)
    trained(model, guide, halves, steps=1000)
    mean, precision = posterior(data)
    assert_found(*mean_field(guide), (mean, precision.diagonal().rsqrt()))


def test_a_kl_weight_tempers_the_posterior() -> None:
    """Minimising NLL + w KL is minimising NLL/w + KL: the likelihood counts 1/w times."""
    weight, data, model = 0.3, design("orthogonal"), LinearRegression()
    guide = trained(model, MeanFieldNormal(model, 0.3), data, kl_weight=weight)
    columns = torch.cat([data["features"], torch.ones(CASES, 1).double()], dim=1)
    prior = torch.eye(3).double() / PRIOR_SCALE**2
    precision = columns.T @ columns / NOISE**2 / weight + prior
    mean = torch.linalg.solve(precision, columns.T @ data["target"] / NOISE**2 / weight)
    assert_found(*mean_field(guide), (mean, precision.diagonal().rsqrt()))


def test_point_estimates_are_the_posterior_mean_and_least_squares() -> None:
    data = design("correlated")
    columns = torch.cat([data["features"], torch.ones(CASES, 1).double()], dim=1)
    least_squares = torch.linalg.lstsq(columns, data["target"]).solution
    for use_prior, expected in ((True, posterior(data)[0]), (False, least_squares)):
        model = LinearRegression()
        guide = trained(
            model, PointEstimate(model, use_prior=use_prior), data, 600, learning_rate=0.2
        )
        q: Any = guide.distribution()
        torch.testing.assert_close(q.value.detach(), expected, rtol=1e-3, atol=1e-3)


def test_maximum_a_posteriori_under_a_laplace_prior_is_the_lasso() -> None:
    """At the optimum the subgradient condition holds; small weights are drawn to zero."""
    data, prior = design("correlated"), Laplace(0.05)
    model = LinearRegression(prior)
    guide = trained(model, PointEstimate(model), data, steps=1500)
    q: Any = guide.distribution()
    columns = torch.cat([data["features"], torch.ones(CASES, 1).double()], dim=1)
    force = columns.T @ (data["target"] - columns @ q.value.detach()) / NOISE**2
    away = q.value.detach().abs() > 0.02
    assert away.any()
    torch.testing.assert_close(
        force[away], q.value.detach().sign()[away] / 0.05, rtol=1e-2, atol=0.5
    )
    assert (force[~away].abs() < 1.05 / 0.05).all()


def test_members_of_an_ensemble_meet_in_the_one_maximum() -> None:
    data, model = design("correlated"), LinearRegression()
    guide = trained(model, Ensemble(model, PointEstimate, members=2), data, 600, learning_rate=0.2)
    for _, member in guide.members:
        torch.testing.assert_close(
            member.distribution().value.detach(), posterior(data)[0], rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("kind", ["orthogonal", "correlated"])
def test_mean_field_over_pyro_priors(kind: str) -> None:
    data, model = design(kind), PyroRegression()
    guide = MeanFieldNormal(model, 0.3, example=data)
    latents: Any = guide.latents
    assert latents.names == ["layer.weight", "layer.bias"]
    trained(model, guide, data)
    loc = torch.cat([site.loc.detach().flatten() for site in latents.sites])
    scale = torch.cat([F.softplus(site.raw_scale.detach()).flatten() for site in latents.sites])
    mean, precision = posterior(data)
    assert_found(loc, scale, (mean, precision.diagonal().rsqrt()))


@pytest.mark.parametrize("make", [LinearRegression, PyroRegression])
def test_stock_guides_find_the_posterior(make: Callable[[], nn.Module]) -> None:
    data, model = design("correlated"), make()
    mean, precision = posterior(data)
    covariance = torch.linalg.inv(precision)
    normal = trained(model, AutoNormal(model, init_scale=0.3), data, 1500)
    sites = ["weights"] if make is LinearRegression else ["layer.weight", "layer.bias"]

    def joined(values: Any) -> Tensor:
        return torch.cat([pick(values, name).detach().flatten() for name in sites])

    optimum = mean, precision.diagonal().rsqrt()
    assert_found(joined(normal.locs), joined(normal.scales), optimum)
    full = trained(model, AutoMultivariateNormal(model, init_scale=0.3), data, 1500)
    found = full.get_posterior()
    assert_found(
        found.mean.detach(), found.variance.detach().sqrt(), (mean, covariance.diagonal().sqrt())
    )
    whitened = torch.linalg.solve(torch.linalg.cholesky(covariance), found.scale_tril.detach())
    torch.testing.assert_close(whitened, torch.eye(3).double(), rtol=0, atol=0.1)


def pick(values: Any, name: str) -> Tensor:
    for part in name.split("."):
        values = getattr(values, part)
    return values


def mean_model(data: Tensor, *, num_cases: int | None = None) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()).double(), 2.0))
    with pyro.plate("case", num_cases or len(data), subsample=data):
        pyro.sample("data", dist.Normal(mean, 0.5), obs=data)


@pytest.mark.parametrize("kind", ["MeanFieldNormal", "AutoNormal"])
def test_normal_normal(kind: str) -> None:
    data = {"data": 0.7 + 0.5 * torch.randn(10).double()}
    precision = 1 / 4 + 10 / 0.25
    expected = data["data"].sum() / 0.25 / precision, torch.tensor(precision**-0.5).double()
    if kind == "AutoNormal":
        stock = trained(mean_model, AutoNormal(mean_model, init_scale=0.3), data)
        assert_found(stock.locs.mean.detach(), stock.scales.mean.detach(), expected)
        return
    guide = trained(mean_model, MeanFieldNormal(mean_model, 0.3, example=data), data)
    site = guide.latents.sites[0]
    assert_found(site.loc.detach(), F.softplus(site.raw_scale.detach()), expected)


def test_predictions_follow_the_posterior() -> None:
    """Mean and variance over draws are those of a linear map of independent normals."""
    data, model = design("orthogonal"), LinearRegression()
    guide = trained(model, MeanFieldNormal(model, 0.3), data)
    loc, scale = mean_field(guide)
    columns = torch.cat([data["features"], torch.ones(CASES, 1).double()], dim=1)
    mean, variance = columns @ loc, columns.square() @ scale.square()
    tree = predict(model, guide, [data], draws=500, progress=False)
    for path, noise in (("posterior/loc", 0.0), ("posterior_predictive/target", NOISE**2)):
        drawn = np.asarray(tree[path])[0]
        assert_mean(drawn, mean)
        assert_mean((drawn - mean.numpy()) ** 2, variance + noise)
    np.testing.assert_allclose(np.asarray(tree["posterior/scale"]), NOISE)


def logistic_optimum(inputs: np.ndarray, labels: np.ndarray, scale: float) -> tuple[float, float]:
    """Location and scale of the best normal for one logistic weight, by quadrature."""
    nodes, weights = hermegauss(60)
    weights = weights / weights.sum()

    def loss(parameters: np.ndarray) -> float:
        loc, spread = parameters[0], np.exp(parameters[1])
        logits = (loc + spread * nodes)[:, None] * inputs
        nll = (np.logaddexp(0, logits) - labels * logits).sum(1) @ weights
        ratio = spread / scale
        return float(nll + 0.5 * (ratio**2 + (loc / scale) ** 2 - 1) - np.log(ratio))

    found = optimize.minimize(loss, np.array([0.0, -1.0]), method="BFGS", options={"gtol": 1e-8})
    return float(found.x[0]), float(np.exp(found.x[1]))


def test_logistic_regression_finds_the_optimum_of_quadrature() -> None:
    inputs = torch.randn(30, 1, 1, 1).double()
    labels = (torch.rand(30) < torch.sigmoid(2 * inputs.flatten())).long()
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False)).double()
    model = BayesianClassifier(net, ["no", "yes"], Normal(1.2), likelihood="bernoulli")
    optimum = logistic_optimum(inputs.flatten().numpy(), labels.numpy(), 1.2)
    expected = torch.tensor(optimum).double()
    guide = MeanFieldNormal(model, 0.3)
    part: Any = guide.parts["weights"]
    with torch.no_grad():
        part.loc.fill_(optimum[0])
        part.raw_scale.fill_(np.log(np.expm1(optimum[1])))
    data = {"image": inputs, "label": labels}
    assert_mean(gradients(model, guide, [part.loc, part.raw_scale], data), torch.zeros(2))
    with torch.no_grad():
        part.loc.fill_(-1.0)
        part.raw_scale.fill_(-3.0)
    trained(model, guide, data)
    assert_found(*mean_field(guide), (expected[:1], expected[1:]))


def test_a_categorical_pair_is_a_bernoulli() -> None:
    """Two logits that differ by one are the same likelihood as one logit, to the last digits."""
    image, label = torch.randn(5, 1, 2, 2).double(), torch.tensor([0, 1, 1, 0, 1])
    one = nn.Sequential(nn.Flatten(), nn.Linear(4, 1)).double()
    two = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for parameter, source in zip(two.parameters(), one.parameters(), strict=True):
            parameter.copy_(torch.cat([torch.zeros_like(source), source]))
    terms, probs = [], []
    for net, kind in ((one, "bernoulli"), (two, "categorical")):
        model = BayesianClassifier(net, ["no", "yes"], FanInNormal(), likelihood=kind)
        guide = PointEstimate(model)
        terms.append(elbo_terms(model, guide, image, label)[0]["label"])
        tree = predict(model, guide, [{"image": image}], draws=1, progress=False)
        probs.append(np.asarray(tree["posterior/probs"])[0, 0])
    positive = torch.sigmoid(one(image)).detach().numpy()
    for found in probs:
        np.testing.assert_allclose(found, np.concatenate([1 - positive, positive], 1), rtol=1e-9)
    torch.testing.assert_close(terms[0], terms[1])
    expected = F.binary_cross_entropy_with_logits(one(image)[:, 0], label.double(), reduction="sum")
    torch.testing.assert_close(terms[0], expected)


def test_no_warning_comes_from_a_plain_fit() -> None:
    data, model = design("orthogonal"), LinearRegression()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(model, MeanFieldNormal(model), data, steps=3)
