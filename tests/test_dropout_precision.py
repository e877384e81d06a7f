"""Gal's identity between weight decay and noise: tau = k l^2 / (N lambda).

Dropout training on half the mean squared error plus half lambda |W|^2, at the keep probability k,
is that of a Gaussian process of precision tau and length scale l (Gal and Ghahramani, "Dropout as a
Bayesian approximation", ICML 2016, eq. 7, whose penalty lacks the half). Here it is our objective.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ppl_med.inference import BernoulliDropout, elbo_terms, predict
from ppl_med.likelihoods import Gaussian
from ppl_med.models import BayesianRegressor
from ppl_med.programs.elbo import total
from ppl_med.testing import assert_mean
from ppl_med.weights import Normal

CASES, KEEP = 9, 0.8


def setting(tau: float, length: float) -> tuple[Any, Any, Tensor, Tensor]:
    layers = [nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False)]
    net = nn.Sequential(nn.Flatten(), *layers).double()
    likelihood = Gaussian(heteroscedastic=False, init_scale=tau**-0.5, loc=0.0, scale=1.0)
    model = BayesianRegressor(net, likelihood, Normal(1 / length))
    guide = BernoulliDropout(model, 1 - KEEP, skip_first=False)
    image, value = torch.randn(CASES, 1, 2, 2).double(), torch.randn(CASES).double()
    return model, guide, image, value


@pytest.mark.parametrize(("tau", "length"), [(4.0, 1.0), (0.3, 2.5)])
def test_weight_decay_and_noise_are_the_same_choice(tau: float, length: float) -> None:
    """Gradients by M of the two objectives, mask for mask; the constants differ."""
    model, guide, image, value = setting(tau, length)
    weights: Any = guide.parts["weights"].weights
    decay = KEEP * length**2 / (CASES * tau)
    assert tau == pytest.approx(KEEP * length**2 / (CASES * decay))
    elbo_terms(model, guide, image, value)  # counts the uses of every weight
    for seed in range(10):
        torch.manual_seed(seed)
        nll, kl = elbo_terms(model, guide, image, value)
        ours = (total(nll) + total(kl)) / (CASES * tau)
        torch.manual_seed(seed)
        first, second = weights[:12].view(3, 4), weights[12:].view(1, 3)
        hidden = image.flatten(1) * (torch.rand(CASES, 4) >= 1 - KEEP)
        hidden = torch.relu(hidden @ first.T)
        output = (hidden * (torch.rand(CASES, 3) >= 1 - KEEP)) @ second.T
        loss = 0.5 * (value - output[:, 0]).square().mean() + 0.5 * decay * weights.square().sum()
        gradients = [torch.autograd.grad(one, weights)[0] for one in (ours, loss)]
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


def test_the_predictive_variance_is_the_noise_and_that_of_the_draws() -> None:
    tau = 4.0
    model, guide, image, value = setting(tau, 1.0)
    batches = [{"image": image, "value": value}]
    tree = predict(model, guide, batches, draws=400, progress=False)
    np.testing.assert_allclose(tree["posterior/scale"], tau**-0.5, rtol=1e-6)
    loc = np.asarray(tree["posterior/loc"])[0]
    drawn = np.asarray(tree["posterior_predictive/value"])[0]
    assert_mean((drawn - loc) ** 2, 1 / tau)
    assert_mean((drawn - loc.mean(0)) ** 2, 1 / tau + loc.var(0))
