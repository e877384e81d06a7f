"""Radial normal guide: density, entropy and KL against quadrature, draws against their moments."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn

from ppl_med.inference import RadialNormal
from ppl_med.inference.guides.radial_normal import FlatRadial
from ppl_med.models import BayesianClassifier
from ppl_med.testing import assert_mean
from ppl_med.weights import FlatLaplace, FlatNormal, Normal, kl_divergence


def radial(sizes: list[int]) -> FlatRadial:
    total = sum(sizes)
    loc, scale = torch.linspace(-1, 1, total), torch.linspace(0.4, 1.2, total)
    return FlatRadial(loc.double(), scale.double(), sizes)


def mean_over_noise(function: Any) -> float:
    """E over r ~ |Normal(0, 1)| and a uniform angle, by quadrature in the plane."""
    angles = np.linspace(0, 2 * math.pi, 65)[:-1]

    def at(radius: float) -> float:
        u = radius * np.stack([np.cos(angles), np.sin(angles)], 1)
        return float(np.mean(function(radius, u)) * 2 * stats.norm.pdf(radius))

    return integrate.quad(at, 0, 10, limit=200)[0]


def test_the_kl_to_a_normal_prior_is_that_of_quadrature() -> None:
    """In the plane, with the density written down by hand."""
    q, prior_scale, prior_loc = radial([2]), 0.8, 0.3
    loc, scale = q.loc.numpy(), q.scale.numpy()

    def log_ratio(radius: float, u: np.ndarray) -> np.ndarray:
        log_q = math.log(2 * stats.norm.pdf(radius) / (2 * math.pi * radius))
        log_q -= np.log(scale).sum()
        return log_q - stats.norm.logpdf(loc + scale * u, prior_loc, prior_scale).sum(1)

    p = FlatNormal(torch.tensor(prior_loc).double(), torch.tensor(prior_scale).double(), 2)
    assert float(kl_divergence(q, p)) == pytest.approx(mean_over_noise(log_ratio), rel=1e-7)


def test_the_density_integrates_to_one_and_has_the_stated_entropy() -> None:
    q = radial([2])
    log_q = lambda u: q.log_prob(q.loc + q.scale * torch.as_tensor(u)).numpy()  # noqa: E731
    area = float(q.scale.prod())

    def mass(radius: float, u: np.ndarray) -> np.ndarray:
        plane = area * 2 * math.pi * radius  # of the ring, over the density of the radius
        return np.exp(log_q(u)) * plane / (2 * stats.norm.pdf(radius))

    assert mean_over_noise(mass) == pytest.approx(1, rel=1e-6)
    entropy = mean_over_noise(lambda radius, u: -log_q(u))
    assert float(q.entropy()) == pytest.approx(entropy, rel=1e-7)


def test_one_weight_is_a_normal() -> None:
    q = radial([1, 1, 1])
    same = torch.distributions.Normal(q.loc, q.scale)
    value = torch.tensor([0.2, -0.4, 3.0]).double()
    torch.testing.assert_close(q.log_prob(value), same.log_prob(value).sum())
    torch.testing.assert_close(q.entropy(), same.entropy().sum())


def test_draws_have_the_stated_moments_entropy_and_length() -> None:
    """False-alarm rate 1e-6 each; the tensors' lengths do not depend on each other."""
    torch.manual_seed(0)
    q = radial([5, 1, 3])
    draws = q.rsample(torch.Size([20000]))
    assert_mean(draws, q.loc)
    assert_mean((draws - q.loc).square(), q.variance)
    assert_mean(-q.log_prob(draws), q.entropy())
    lengths = torch.stack(
        [p.norm(dim=-1) for p in ((draws - q.loc) / q.scale).split(q.sizes, -1)], -1
    )
    assert_mean(lengths.square(), torch.ones(3))
    centred = lengths - math.sqrt(2 / math.pi)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert_mean(centred[:, first] * centred[:, second], 0.0)


def test_a_prior_of_another_kind_is_estimated_from_the_density() -> None:
    torch.manual_seed(1)
    q = radial([4, 2])
    p = FlatLaplace(torch.zeros(()).double(), torch.tensor(0.7).double(), 6)
    with pytest.raises(NotImplementedError):
        kl_divergence(q, p)
    draws = q.rsample(torch.Size([4000]))
    ratios = q.log_prob(draws) - p.log_prob(draws)
    normal = FlatNormal(torch.zeros(()).double(), torch.tensor(0.7).double(), 6)
    assert_mean(q.log_prob(draws) - normal.log_prob(draws), kl_divergence(q, normal))
    assert bool(ratios.isfinite().all())


def test_every_weight_starts_at_the_asked_standard_deviation() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model = BayesianClassifier(net, ["a", "b"], Normal(1.0))
    q: Any = RadialNormal(model, 0.2).distribution()
    fan_in: Tensor = torch.cat(
        [torch.full((e.num_weights,), e.fan_in) for e in model.network.layout.entries]
    )
    torch.testing.assert_close(q.variance.detach().sqrt(), 0.2 / fan_in.sqrt())
    with pytest.raises(ValueError, match="init_scale"):
        RadialNormal(model, 0.0)
