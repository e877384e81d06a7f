"""Concrete dropout: objective, relaxed and hard masks, and the rates that it learns."""

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import optimize
from scipy.special import expit
from torch import Tensor, nn

from ppl_med.inference import BernoulliDropout, ConcreteDropout, elbo_terms, fit
from ppl_med.models import BayesianClassifier
from ppl_med.programs.elbo import total
from ppl_med.testing import assert_mean
from ppl_med.weights import Normal, RandomWeights, ScaleMixture
from ppl_med.weights.estimators import DropoutEstimator

RATES = {"1.weight": 0.3, "3.weight": 0.6}
PRIOR_SCALE = 0.7


def classifier(prior: Any = None) -> BayesianClassifier:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)]
    net = nn.Sequential(*layers).double()
    return BayesianClassifier(net, ["a", "b"], prior or Normal(PRIOR_SCALE))


def kl_of(model: Any, guide: Any) -> Tensor:
    image, label = torch.randn(2, 1, 2, 2).double(), torch.arange(2)
    return total(elbo_terms(model, guide, image, label)[1])


def entropy(rate: float, units: int) -> float:
    return -units * (rate * math.log(rate) + (1 - rate) * math.log(1 - rate))


@pytest.mark.parametrize("prior", [Normal(PRIOR_SCALE), ScaleMixture()])
def test_the_quasi_kl_is_that_of_fixed_rates_less_the_entropy_of_the_masks(prior: Any) -> None:
    """Four input units at .3 and three at .6."""
    model = classifier(prior)
    fixed = kl_of(model, BernoulliDropout(model, RATES))
    learnt = kl_of(model, ConcreteDropout(model, RATES))
    expected = fixed - entropy(0.3, 4) - entropy(0.6, 3)
    torch.testing.assert_close(learnt, expected, rtol=1e-6, atol=1e-6)


def test_the_penalty_is_gals() -> None:
    """Eq. 3: |loc|^2 / (2 s^2 (1 - rate)) of every layer, in inverted scaling."""
    model = classifier()
    guide = ConcreteDropout(model, RATES)
    views, penalty = guide.layout().views(guide.center()), 0.0
    for name, view in views.items():
        penalty += float(view.square().sum()) / (1 - RATES.get(name, 0.0)) / (2 * PRIOR_SCALE**2)
    constant = 23 * math.log(PRIOR_SCALE * math.sqrt(2 * math.pi))
    expected = penalty + constant - entropy(0.3, 4) - entropy(0.6, 3)
    assert kl_of(model, guide).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rate", [0.05, 0.4, 0.9])
def test_relaxed_masks_become_those_of_zero_and_one(rate: float) -> None:
    """Above a half with probability 1 - rate at any temperature; all near 0 or 1 when it is low."""
    torch.manual_seed(0)
    weight, given = torch.ones(1, 20000), torch.tensor(rate)
    for temperature in (1.0, 0.1, 1e-3):
        mask = DropoutEstimator(weight, given, False, 1, temperature).draw()
        assert_mean((mask > 0.5).double().flatten(), 1 - rate)
    assert float((mask * (1 - mask) > 1e-6).double().mean()) < 0.01
    hard = DropoutEstimator(weight, given, False, 1).draw()
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert_mean(hard.flatten(), 1 - rate)


def test_predictions_draw_hard_masks_and_training_relaxed_ones() -> None:
    model = classifier()
    guide = ConcreteDropout(model, 0.4, per_example=False)
    part: Any = guide.parts["weights"]
    second = lambda: guide.distribution().rsample()[15:21] / part.weights[15:21]  # noqa: E731
    guide.eval()
    assert set(second().detach().round(decimals=6).tolist()) <= {0.0, 1.0}
    guide.train()
    masks = torch.cat([second() for _ in range(50)])
    assert bool(((masks > 1e-6) & (masks < 1 - 1e-6)).any())
    assert masks.requires_grad


def test_a_rate_that_moves_leaves_the_mean_of_the_weights() -> None:
    model = classifier()
    guide = ConcreteDropout(model, 0.2)
    before, part = guide.center(), guide.parts["weights"]
    with torch.no_grad():
        part.raw_rates.add_(1.0)  # type: ignore[operator]
    assert guide.rates()["3.weight"] == pytest.approx(1 / (1 + math.exp(math.log(4) - 1)))
    torch.testing.assert_close(guide.center(), before)


class TwoInputs(nn.Module):
    """One linear layer for features that tell the target, and one for those that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.telling, self.noise = nn.Linear(4, 1), nn.Linear(4, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return (self.telling(features[:, :4]) + self.noise(features[:, 4:]))[:, 0]


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = RandomWeights(TwoInputs(), Normal(1.0))

    def forward(
        self, features: Tensor, target: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        mean = self.network(features)
        with pyro.plate("case", num_cases or len(features), subsample=features):
            pyro.sample("target", dist.Normal(mean, NOISE), obs=target)
        return mean


NOISE, CASES = 2.0, 24


def best_rates(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rates of both layers at the optimum; the expected objective is a closed form here."""

    def objective(values: np.ndarray) -> float:
        loc, bias, rates = values[:8], values[8], expit(values[9:])
        residual = target - features @ loc - bias
        odds = np.repeat(rates / (1 - rates), 4)
        squares = residual @ residual + (loc**2 * odds) @ (features**2).sum(0)
        penalty = (loc**2 * (1 + odds)).sum() + bias**2
        entropies = sum(entropy(rate, 4) for rate in rates)
        return float(squares / (2 * NOISE**2) + penalty / 2 - entropies)

    start = np.r_[np.linalg.lstsq(features, target)[0], 0.0, -3.0, -1.0]
    bounds = [(None, None)] * 9 + [(-9.0, 2.0)] * 2
    return expit(optimize.minimize(objective, start, method="L-BFGS-B", bounds=bounds).x[9:])


def test_rates_are_high_where_inputs_are_noise_and_low_where_they_tell() -> None:
    """Those of the optimum, up to the error of relaxed masks and of single draws (fixed seeds)."""
    torch.manual_seed(0)
    features = torch.randn(CASES, 8)
    target = features[:, :4].sum(1) + NOISE * torch.randn(CASES)
    telling, noise = best_rates(features.numpy().astype(float), target.numpy().astype(float))
    assert telling < 0.1 and noise > 0.3
    model = Regression()
    guide = ConcreteDropout(model, 0.1, skip_first=False)
    batches = [{"features": features, "target": target}]
    fit(
        *(model, guide, batches),
        epochs=400,
        learning_rate=0.1,
        schedule="cosine",
        progress=False,
    )
    rates = guide.rates()
    assert abs(rates["noise.weight"] - noise) < 0.1
    assert abs(rates["telling.weight"] - telling) < 0.03
