"""Samplers against normal posteriors whose moments are known exactly.

A linear regression with a known noise has a normal posterior. NUTS and HMC have its moments; SGLD
and SGHMC at a step size that is not small have those of their own linear recursion, also known
exactly, which tell a wrong temperature or a wrong weight of the cases from a right one. Every
moment is within ``BOUND`` Monte Carlo errors (by ArviZ's effective sizes): with some 50 moments, a
false alarm has a chance below 1e-3.
"""

from functools import cache
from typing import Any

import arviz_stats
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_discrete_lyapunov
from torch import nn

from ppl_med.data import Batches
from ppl_med.inference import HMC, NUTS, SGHMC, SGLD, sample
from ppl_med.inference.batches import as_loader, batch_spec, first_batch
from ppl_med.inference.sampling.prepared_target import prepare_target
from ppl_med.likelihoods import Gaussian
from ppl_med.models import BayesianRegressor
from ppl_med.weights import Normal

BOUND = 4.5
NOISE, CASES, PRIOR = 0.5, 40, 2.0
STEP, MOMENTUM = 1e-3, 0.6
Kernels = dict[str, tuple[Any, dict[str, Any]]]
HAMILTONIAN: dict[str, Any] = {"draws": 100, "warm_up": 40}
LANGEVIN: dict[str, Any] = {"draws": 500, "warm_up": 50, "thin": 2}
KERNELS: Kernels = {
    "nuts": (NUTS(), HAMILTONIAN),
    "nuts-float64": (NUTS(mass="dense"), HAMILTONIAN | {"dtype": "float64"}),
    "hmc": (HMC(), HAMILTONIAN),
    "sgld": (SGLD(STEP), LANGEVIN),
    "sghmc": (SGHMC(STEP / 4, momentum=MOMENTUM), LANGEVIN),
}


@cache
def data() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(CASES, 1, 1, 2, generator=generator)
    image[:, 0, 0, 1] += 0.7 * image[:, 0, 0, 0]
    value = image.flatten(1) @ torch.tensor([1.0, -2.0]) + 0.3
    return {"image": image, "value": value + NOISE * torch.randn(CASES, generator=generator)}


def model() -> BayesianRegressor:
    likelihood = Gaussian(heteroscedastic=False, init_scale=NOISE, loc=0.0, scale=1.0)
    likelihood.requires_grad_(False)
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 1))
    return BayesianRegressor(net, likelihood, Normal(PRIOR))


def precision(cases: float = 1.0) -> tuple[NDArray, NDArray]:
    """Mean and precision of the posterior where every case counts so many times."""
    design = np.c_[data()["image"].flatten(1).double().numpy(), np.ones(CASES)]
    inverse = np.eye(3) / PRIOR**2 + cases * design.T @ design / NOISE**2
    value = data()["value"].double().numpy()
    return np.linalg.solve(inverse, cases * design.T @ value / NOISE**2), inverse


def covariance(name: str) -> NDArray:
    """Of the stationary law of a kernel; the posterior's for those that are exact."""
    _, inverse = precision()
    if not name.startswith("sg"):
        return np.linalg.inv(inverse)
    kernel = KERNELS[name][0]
    step, kept, one = kernel.step_size, kernel.momentum, np.eye(3)
    # (w, v)' = A (w, v) + noise, with v' = m v - a H w + noise and w' = w + v'
    pull = np.block([[one - step * inverse, kept * one], [-step * inverse, kept * one]])
    noise = 2 * (1 - kept) * step * np.block([[one, one], [one, one]])
    return solve_discrete_lyapunov(pull, noise)[:3, :3]


def z_scores(draws: NDArray, mean: NDArray, covariance: NDArray) -> NDArray:
    """Deviations of mean, variances and covariances, in Monte Carlo errors."""
    away = draws - mean
    products = away[..., :, None] * away[..., None, :]
    upper = np.triu_indices(3)
    found = np.concatenate([away, products[..., *upper]], -1)
    expected = np.concatenate([np.zeros(3), covariance[upper]])
    size = arviz_stats.ess(found, chain_axis=0, draw_axis=1, method="mean")
    return (found.mean((0, 1)) - expected) / (found.std((0, 1)) / np.sqrt(size))


def draws_of(name: str, **options: Any) -> NDArray:
    kernel, settings = KERNELS[name]
    guide = sample(model(), [data()], kernel, chains=2, progress=False, **settings, **options)
    return guide.posterior()["posterior"].dataset["weights"].values


@pytest.mark.parametrize("name", KERNELS)
def test_moments_are_those_of_the_posterior(name: str) -> None:
    mean, _ = precision()
    z = z_scores(draws_of(name), mean, covariance(name))
    assert np.abs(z).max() < BOUND, z


def test_the_recursion_is_near_the_posterior() -> None:
    """What the documentation says of the step's bias, at the step sizes tested here."""
    _, inverse = precision()
    exact = np.linalg.inv(inverse)
    for name in ("sgld", "sghmc"):
        step = KERNELS[name][0].step_size
        largest = np.linalg.eigvalsh(inverse).max()
        excess = np.linalg.eigvals(np.linalg.solve(exact, covariance(name))).real - 1
        assert 0 < excess.min() and excess.max() < 0.6 * step * largest / (1 - step * largest / 2)


@pytest.mark.parametrize("fault", ["temperature", "number of cases"])
def test_a_wrong_temperature_and_a_wrong_number_of_cases_are_seen(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"num_cases": 2 * CASES} if fault == "number of cases" else {}
    if fault == "temperature":
        noise = torch.randn_like
        monkeypatch.setattr(torch, "randn_like", lambda like: noise(like) / np.sqrt(2))
    mean, _ = precision()
    z = z_scores(draws_of("sgld", **options), mean, covariance("sgld"))
    assert np.abs(z).max() > 2 * BOUND


@pytest.mark.parametrize("size", [7, 16, CASES])
def test_the_batches_of_an_epoch_have_the_gradient_of_all_cases(size: int) -> None:
    """Also where they are of unequal sizes; and the potential is the negative log-density."""
    arrays = {name: value.double().numpy() for name, value in data().items()}
    program, batches = model().double().eval(), Batches(arrays, batch_size=size, shuffle=True)
    loader, spec = as_loader(batches, None), batch_spec(program)
    loader.see(first_batch(batches))
    cpu = torch.device("cpu")
    target, starts = prepare_target(program, None, loader, spec, cpu, "float64", full_batch=True)
    vector = starts.of_chain(0).double().requires_grad_(True)
    (whole,) = torch.autograd.grad(target.potential(vector), vector)
    mean, inverse = precision()
    expected = inverse @ (vector.detach().numpy() - mean)
    np.testing.assert_allclose(whole, expected, rtol=1e-5)
    found = []
    for batch, factor in loader.open(0, 0, 0):
        inputs = target.converted({n: batch[n] for n in ("image", "value")})
        found.append(torch.autograd.grad(target.estimate(vector, inputs, factor), vector)[0])
    assert len(found) == -(-CASES // size)
    np.testing.assert_allclose(torch.stack(found).mean(0), whole, rtol=1e-5)


def test_a_cycle_keeps_draws_of_its_sampling_stage_only() -> None:
    """Cosine of Zhang et al., equation 1; draws from 60 % of a cycle of 10 steps on."""
    kernel = SGLD(0.2, cycle=10, explore=0.6)
    rates, explores = zip(*map(kernel.rate, range(20)), strict=True)
    assert np.allclose(rates, 0.1 * (np.cos(np.pi * (np.arange(20) % 10) / 10) + 1))
    assert list(explores) == ([True] * 6 + [False] * 4) * 2
    assert [step for step in range(20) if kernel.keeps(step, 2)] == [7, 9, 17, 19]
    assert [kernel.num_steps(draws, 2) for draws in (1, 2, 3, 4)] == [8, 10, 18, 20]
    assert kernel.rate(-1) == (0.2, False)
