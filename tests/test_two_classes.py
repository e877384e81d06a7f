"""The first example: Bayes' rule, a printed figure, and the posterior of that figure."""

import importlib
from typing import Any

import numpy as np
import pyro.poutine as poutine
import pytest
import torch
from example_runs import ROOT
from scipy import stats

PRINTED_LOC = np.array([[6.03, 0.03], [2.12, 4.78]])  # as printed: B, R
PRINTED_SIGMA = np.array([[1.00, 1.00], [0.46, 0.43]])
SHARE, PRINTED_ANSWER = 0.02, 0.0165


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("two_classes.run")


def bayes(loc: np.ndarray, variance: np.ndarray, share: float) -> float:
    """p(R | (4, 3)) by scipy's densities."""
    parts = [
        stats.multivariate_normal.pdf((4.0, 3.0), loc[k], np.diag(variance[k])) * weight
        for k, weight in ((0, 1 - share), (1, share))
    ]
    return float(parts[1] / sum(parts))


def test_bayes_rule_is_that_of_scipy(study):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        loc, variance = rng.normal(3, 2, (2, 2)), rng.uniform(0.3, 2, (2, 2))
        found = study.probability((4.0, 3.0), 0.1, loc, variance)
        np.testing.assert_allclose(found, bayes(loc, variance, 0.1), rtol=1e-10)
    stacked = study.probability(
        np.zeros((3, 2)), np.full(5, 0.1), np.zeros((5, 2, 2)), np.ones((5, 2, 2))
    )
    np.testing.assert_allclose(stacked, np.full((3, 5), 0.1))


def test_the_printed_answer_follows_from_the_printed_estimates_as_variances(study):
    """.0165 lies within their rounding if sigma is a variance: .0133 to .0185, .0157 as printed.

    As standard deviations, which the notation N(mu, sigma^2) says, they give 3.0e-6.
    """
    exact = study.probability((4.0, 3.0), SHARE, PRINTED_LOC, PRINTED_SIGMA)
    assert exact == pytest.approx(0.0157, abs=5e-5)
    half = 0.005  # two decimals are printed
    towards = half * np.array([[1, -1], [1, -1]])  # R nearer to (4, 3), B further away
    wider = half * np.array([[-1, -1], [1, 1]])  # R wider, B narrower
    low, high = (
        bayes(PRINTED_LOC + sign * towards, PRINTED_SIGMA + sign * wider, SHARE) for sign in (-1, 1)
    )
    assert low < PRINTED_ANSWER < high and low < exact < high
    np.testing.assert_allclose((low, high), (0.0133, 0.0185), atol=5e-5)
    assert bayes(PRINTED_LOC, PRINTED_SIGMA**2, SHARE) == pytest.approx(3.0e-6, rel=0.02)


def test_the_program_has_the_density_of_scipy(study):
    batch = study.simulate(200, 0)
    trace = poutine.trace(study.generative).get_trace(**batch)
    nodes: dict[str, Any] = dict(trace.nodes)
    loc, variance = nodes["loc"]["value"].numpy(), nodes["variance"]["value"].numpy()
    color = batch["color"].long().numpy()
    expected = stats.norm.logpdf(batch["point"].numpy(), loc[color], variance[color] ** 0.5).sum()
    found = nodes["point"]["fn"].log_prob(nodes["point"]["value"]).sum()
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_exact_draws_are_the_conjugate_posterior(study):
    """Prior times likelihood of the program over the closed density is one number at all draws."""
    batch = study.simulate(300, 1)
    draws = study.exact_draws(batch, 6, 0)
    red = int(batch["color"].sum())
    gaps = []
    for s in range(6):
        values = {n: torch.as_tensor(v[s]) for n, v in draws.items()}
        conditioned = poutine.condition(study.generative, data=values)
        joint = float(poutine.trace(conditioned).get_trace(**batch).log_prob_sum())
        density = stats.beta.logpdf(draws["share"][s], 1 + red, 1 + len(batch["color"]) - red)
        for k in (0, 1):
            points = batch["point"][batch["color"] == k].numpy()
            weight, shape = len(points) + 0.01, 2 + len(points) / 2
            mean = points.sum(0) / weight
            rate = 1 + 0.5 * ((points - points.mean(0)) ** 2).sum(0)
            rate = rate + 0.5 * len(points) * 0.01 / weight * points.mean(0) ** 2
            variance = draws["variance"][s, k]
            density += stats.invgamma.logpdf(variance, shape, scale=rate).sum()
            density += stats.norm.logpdf(draws["loc"][s, k], mean, (variance / weight) ** 0.5).sum()
        gaps.append(joint - density)
    np.testing.assert_allclose(gaps, gaps[0], atol=1e-6)


def test_estimates_are_the_moments(study):
    batch = study.simulate(500, 2)
    found = study.estimates(batch)
    red = batch["point"][batch["color"] == 1].numpy()
    np.testing.assert_allclose(found["loc"][1], red.mean(0))
    np.testing.assert_allclose(found["variance"][1], red.var(0))
    assert found["share"] == len(red) / 500


@pytest.mark.slow
def test_svi_and_nuts_agree_with_the_exact_posterior(study, tmp_path):
    """Log-odds of R at (4, 3): means within 0.2 sd, sd within 20 per cent (500 draws)."""
    options = study.Options(out=tmp_path)
    batch = study.simulate(options.points, 0)
    exact = _log_odds(study, study.exact_draws(batch, 20_000, 0))
    for tree in (
        study.by_svi(batch, options, tmp_path),
        study.by_nuts(batch, options, tmp_path),
    ):
        found = _log_odds(study, study.stacked(tree))
        assert abs(found.mean() - exact.mean()) < 0.2 * exact.std()
        assert abs(found.std() / exact.std() - 1) < 0.2


def _log_odds(study: Any, draws: Any) -> np.ndarray:
    found = study.probability(study.POINT, **draws)
    return np.log(found) - np.log1p(-found)
