"""Rectified flows against nets whose best output is known: paths, frequencies, losses."""

import itertools
import math
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
from known_flows import HALF_LOG_ODDS, SHARE, Known, flow, mask_mean
from scipy import stats
from torch import Tensor

from ppl_med.models import RectifiedFlow
from ppl_med.testing import assert_mean


def normal_mean(variance: float) -> Any:
    """E[x_0 | x_u] where x_0 ~ Normal(0, variance): the best output of a net."""

    def mean(state: Tensor, time: Tensor) -> Tensor:
        return (1 - time) * variance / ((1 - time) ** 2 * variance + time**2) * state

    return mean


def velocity_of(mean: Any) -> Any:
    """The best velocity, E[x_1 - x_0 | x_u]."""
    return lambda state, time: (state - mean(state, time)) / time


def path_factor(variance: float, times: list[float], solver: str) -> tuple[float, float]:
    """End over start of a path where the velocity is c_u x_u, and the path's deviation at 1."""

    def rate(u: float) -> float:
        return (u - (1 - u) * variance) / ((1 - u) ** 2 * variance + u**2)

    at, velocities = 1.0, []
    for u, s in itertools.pairwise(times):
        velocity = rate(u) * at
        if solver == "heun" and s > 0:
            velocity = (velocity + rate(s) * (at + (s - u) * velocity)) / 2
        at += (s - u) * velocity
        velocities.append((u - s, velocity))
    return at, sum(length * (v - (1 - at)) ** 2 for length, v in velocities)


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("target", ["x", "v"])
@pytest.mark.parametrize(("steps", "hardening"), [(1, 1.0), (2, 1.0), (4, 0.3), (25, 1.0)])
def test_normal_data_end_where_their_closed_form_says(
    solver: Any, target: Any, steps: int, hardening: float
) -> None:
    mean = normal_mean(0.25)
    model = flow(
        mean if target == "x" else velocity_of(mean),
        **{"sampling_steps": steps, "solver": solver, "target": target, "hardening": hardening},
    )
    start = torch.randn(5, 1, 3, 4)
    places = np.linspace(1, 0, steps + 1)
    times = (places / (places + hardening * (1 - places))).tolist()
    factor, deviation = path_factor(0.25, times, solver)
    end, found = model.follow(model.network.net, start, start)
    torch.testing.assert_close(end, factor * start, rtol=1e-4, atol=1e-5)
    expected = deviation * start.square().flatten(1).mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_more_steps_come_to_the_law_of_the_data_at_the_order_of_the_solver(
    solver: Any, order: int
) -> None:
    """The exact path takes Normal(0, 1) to Normal(0, v): it multiplies by v^(1/2)."""
    start, errors = torch.ones(1, 1, 1, 1), []
    for steps in (40, 80):
        model = flow(normal_mean(0.25), sampling_steps=steps, solver=solver)
        end, _ = model.follow(model.network.net, start, start)
        errors.append(abs(float(end) - 0.5))
    assert errors[1] < 0.01
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_masks_are_as_frequent_as_in_the_data_and_their_pixels_agree(solver: Any) -> None:
    """A z-test, false-alarm rate 1e-6: 20000 masks tell a share that is off by .02."""
    model = flow(mask_mean, sampling_steps=200, solver=solver, hardening=0.5)
    pyro.set_rng_seed(0)
    trace = poutine.trace(model).get_trace(torch.zeros(20_000, 1, 1, 2))
    mask: Any = trace.nodes["mask"]["value"]
    assert_mean(mask[:, 0, 0].double(), SHARE)
    assert (mask[:, 0, 0] != mask[:, 0, 1]).double().mean() < 2e-3


def best_loss(target: str, hardening: float, *, logit_normal: bool) -> float:
    """Half the mean squared error of the best net for one pixel, by quadrature."""

    noise, share = np.polynomial.hermite_e.hermegauss(200)
    share = share / share.sum()

    def error(place: float) -> float:
        place = float(stats.logistic.cdf(stats.norm.ppf(place))) if logit_normal else place
        u, total = place / (place + hardening * (1 - place)), 0.0
        for sign, weight in ((1.0, SHARE), (-1.0, 1 - SHARE)):
            told = (1 - u) * ((1 - u) * sign + u * noise) / u**2 + HALF_LOG_ODDS
            total += weight * float(share @ (sign - np.tanh(told)) ** 2)
        return 0.5 * total / (u**2 if target == "v" else 1.0)

    nodes, weights = np.polynomial.legendre.leggauss(200)
    parts = [w * error((node + 1) / 2) for node, w in zip(nodes, weights, strict=True)]
    return sum(parts) / 2


@pytest.mark.parametrize(
    ("target", "times", "hardening"),
    [("x", "uniform", 1.0), ("v", "uniform", 1.0), ("x", "logit_normal", 0.3)],
)
def test_the_loss_of_the_best_net_is_its_closed_form(
    target: Any, times: Any, hardening: float
) -> None:
    """Of one pixel; false-alarm rate 1e-6, and 40000 cases tell a loss that is off by a tenth."""
    output = mask_mean if target == "x" else velocity_of(mask_mean)
    model = flow(output, target=target, times=times, hardening=hardening)
    pyro.set_rng_seed(1)
    mask = (torch.rand(40_000, 1, 1) < SHARE).long()
    trace = poutine.trace(model).get_trace(torch.zeros(40_000, 1, 1, 1), mask)
    node: Any = trace.nodes["mask"]
    found = -node["fn"].log_prob(mask)
    assert_mean(found, best_loss(target, hardening, logit_normal=times == "logit_normal"))


def test_places_are_spread_evenly_over_a_batch() -> None:
    model = flow(mask_mean)
    trace = poutine.trace(model).get_trace(torch.zeros(50, 1, 1, 2), torch.ones(50, 1, 2).long())
    place: Any = trace.nodes["place"]["value"]
    assert (place.sort().values * 50).floor().tolist() == list(range(50))
    assert place.argsort().tolist() != list(range(50))


def test_means_of_the_mask_are_its_probabilities() -> None:
    probs = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]).view(2, 3, 1, 1)
    model = RectifiedFlow(Known(mask_mean), ("a", "b", "c"))
    torch.testing.assert_close(model.read_mask(2 * probs - 1).exp(), probs)
    two = flow(mask_mean).read_mask(torch.tensor([0.4, -3.0]).view(2, 1, 1, 1)).exp()
    torch.testing.assert_close(two.flatten(1), torch.tensor([[0.3, 0.7], [0.9999, 1e-4]]))
