"""The proportional-odds likelihood: against Pyro's, at extremes, and by what it recovers."""

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from ppl_med.analysis import calibration, conformal, scoring, uncertainty
from ppl_med.data import Batches
from ppl_med.inference import MeanFieldNormal, PointEstimate, fit, predict
from ppl_med.likelihoods import Ordinal
from ppl_med.models import BayesianClassifier, BayesianSegmenter

CLASSES = ("none", "mild", "moderate", "severe")
FALSE_ALARM = 1e-6


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def log_probs(likelihood: Ordinal, location: Tensor) -> Tensor:
    """Of every class, dims (case, class)."""
    with pyro.plate("case", len(location)):
        trace: Any = poutine.trace(likelihood).get_trace(location[:, None], None)
    logits: Tensor = trace.nodes["label"]["fn"].logits
    return logits


def with_cutpoints(raw: Any, **settings: Any) -> Ordinal:
    likelihood = Ordinal(CLASSES[: len(raw) + 1], **settings)
    with torch.no_grad():
        likelihood.raw_cutpoints.copy_(torch.tensor(raw))
    return likelihood


@pytest.mark.parametrize("raw", [(0.4,), (-1.0, 0.3), (-1.0, 0.3, 2.0)])
def test_probabilities_are_those_of_pyro(raw: tuple[float, ...]) -> None:
    likelihood = with_cutpoints(raw).double()
    location = torch.linspace(-6, 6, 25, dtype=torch.float64)
    expected = dist.OrderedLogistic(location, likelihood.cutpoints).probs
    torch.testing.assert_close(log_probs(likelihood, location).exp(), expected)


def test_at_the_start_all_classes_are_equally_probable() -> None:
    for number in (2, 3, 4):
        found = log_probs(Ordinal(CLASSES[:number]), torch.zeros(1)).exp()
        torch.testing.assert_close(found.double(), torch.full_like(found.double(), 1 / number))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("raw", [(-40.0, -60.0, 80.0), (0.0, -60.0, -60.0), (50.0, 50.0, 50.0)])
def test_extreme_locations_and_cutpoints_stay_finite(raw: Any, dtype: torch.dtype) -> None:
    likelihood = with_cutpoints(raw).to(dtype).train()
    location = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4], dtype=dtype, requires_grad=True)
    found = log_probs(likelihood, location)
    assert found.isfinite().all()
    found.sum().backward()
    for gradient in (location.grad, likelihood.raw_cutpoints.grad):
        assert gradient is not None and gradient.isfinite().all()
    assert (likelihood.cutpoints.diff() >= 0).all()


def test_one_unit_of_location_multiplies_every_odds_by_e() -> None:
    location = torch.tensor([0.3, 1.3], dtype=torch.float64)
    probs = log_probs(with_cutpoints((-1.0, 0.3, 2.0)).double(), location).exp()
    above = probs.flip(1).cumsum(1).flip(1)[:, 1:]
    odds = above / (1 - above)
    torch.testing.assert_close(odds[1] / odds[0], torch.full((3,), math.e, dtype=torch.float64))


def test_known_cutpoints_and_slope_are_recovered() -> None:
    """Maximum likelihood less the truth, by the observed information: chi-squared of 4 numbers."""
    truth = with_cutpoints((-1.0, 0.5, 1.0))
    feature, slope = torch.randn(4000), 1.5
    label = dist.Categorical(logits=log_probs(truth, slope * feature)).sample()
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False))
    model = BayesianClassifier(net, CLASSES, likelihood="ordinal")
    guide = PointEstimate(model, use_prior=False)
    batches = Batches({"image": feature.view(-1, 1, 1, 1), "label": label}, batch_size=4000)
    fit(model, guide, batches, epochs=600, learning_rate=0.05, schedule="cosine", progress=False)
    fitted: Any = model.likelihood
    weights = next(value for value in guide.parameters() if value.numel() == 1)
    found = torch.cat([fitted.raw_cutpoints, weights.view(1)]).detach().double()

    def loss(numbers: Tensor) -> Tensor:
        lowest, first, second, slope = numbers
        rises = torch.stack([first, second])
        cutpoints = torch.cat([lowest.view(1), nn.functional.softplus(rises)]).cumsum(0)
        law: Any = dist.OrderedLogistic(slope * feature.double(), cutpoints)
        return -law.log_prob(label).sum()

    information: Any = torch.autograd.functional.hessian(loss, found)
    gradient: Any = torch.autograd.functional.jacobian(loss, found)
    left = gradient @ torch.linalg.solve(information, gradient)
    assert left < 1e-3, "the optimum was not reached"
    apart = found - torch.cat([truth.raw_cutpoints, torch.tensor([slope])]).detach().double()
    distance = float(apart @ information @ apart)
    assert stats.chi2.sf(distance, 4) > FALSE_ALARM
    assert distance > 1e-6, "a fit to random labels is never exact"


@pytest.mark.parametrize("space", [(), (3, 3)])
def test_analyses_take_its_classes(space: tuple[int, ...]) -> None:
    """One label per case, or one per pixel of which some are missing."""
    image = torch.randn(12, 1, 3, 3)
    net: nn.Module = nn.Conv2d(1, 1, 1)
    kind: Any = BayesianSegmenter
    if not space:
        net, kind = nn.Sequential(nn.Flatten(), nn.Linear(9, 1)), BayesianClassifier
    model = kind(net, CLASSES, likelihood="ordinal")
    value = torch.arange(12 * 9 if space else 12).remainder(4).view(12, *space)
    if space:
        value[:, 0, 0] = -1
    batches = [{"image": image, "mask" if space else "label": value}]
    guide = MeanFieldNormal(model)
    fit(model, guide, batches, epochs=2, progress=False)
    tree = predict(model, guide, batches, draws=8, progress=False)
    probs: Any = tree["posterior/probs"]
    assert probs.coords["class"].values.tolist() == list(CLASSES)
    np.testing.assert_allclose(probs.sum("class"), 1, rtol=1e-6)
    assert np.isfinite(scoring.score(tree)["nll"])
    assert 0 < uncertainty.summary(tree)["total"] < 0.25
    if not space:
        assert np.isfinite(calibration.errors(tree, replicates=0)["ece"])
        rule = conformal.calibrate(tree.isel(case=slice(None, 8)), 0.2)
        sets = conformal.predict_sets(rule, tree.isel(case=slice(8, None)))
        assert sets.sizes["class"] == 4
