"""The evidence lower bound: its terms against closed forms, integration and stock Pyro."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from scipy import integrate, stats
from torch import Tensor, nn

from ppl_med.inference import (
    BernoulliDropout,
    ConditionalNormal,
    Guides,
    MeanFieldNormal,
    PointEstimate,
    elbo_terms,
)
from ppl_med.models import BayesianClassifier, LatentClassifier
from ppl_med.networks import GaussianEncoder
from ppl_med.programs.elbo import total
from ppl_med.testing import assert_mean
from ppl_med.weights import Normal

OBSERVED = torch.tensor([0.3, -0.7, 1.9, 0.4], dtype=torch.float64)


def classifier() -> BayesianClassifier:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    return BayesianClassifier(net, ["a", "b"], Normal(0.8))


def data(cases: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(cases, 1, 2, 2).double(), torch.arange(cases) % 2


GUIDES: dict[str, Callable[[Any], nn.Module]] = {
    "point": PointEstimate,
    "mean-field": lambda model: MeanFieldNormal(model, 0.3, "shared"),
    "dropout": lambda model: BernoulliDropout(model, 0.4, per_example=False),
}


@pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_mini_batches_stand_for_the_data_set(guide: Callable[[Any], nn.Module], size: int) -> None:
    """At fixed weights, over all mini-batches of a size: mean NLL and each KL are the full ones."""
    model, (image, label) = classifier(), data()
    q = guide(model)

    def terms(cases: list[int]) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)  # the same weights each time
        nll, kl = elbo_terms(model, q, image[cases], label[cases], num_cases=6)
        return nll["label"], kl["weights"]

    full_nll, full_kl = terms(list(range(6)))
    batches = [terms(list(cases)) for cases in itertools.combinations(range(6), size)]
    mean = torch.stack([nll for nll, _ in batches]).mean()
    torch.testing.assert_close(mean, full_nll, rtol=1e-12, atol=0)
    assert all(torch.equal(kl, full_kl) for _, kl in batches)


def test_mini_batches_stand_for_the_data_set_with_a_code_per_case() -> None:
    model = LatentClassifier(1, ["a", "b"], latent_dim=2, width=2).double()
    guide = ConditionalNormal(GaussianEncoder(1, 2, 2, num_classes=2)).double()
    image, label = torch.randn(6, 1, 4, 4).double(), torch.arange(6) % 2
    kl = elbo_terms(model, guide, image, label)[1]["z"]
    parts = [
        elbo_terms(model, guide, image[i : i + 2], label[i : i + 2], num_cases=6)[1]["z"]
        for i in (0, 2, 4)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), kl, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["point", "mean-field"])
def test_terms_agree_with_stock_pyro(name: str) -> None:
    """Trace_ELBO gives the same expectation; for a point (no KL of its own) the same value."""
    model, (image, label) = classifier(), data()
    guide = GUIDES[name](model).eval()
    model.eval()
    ours, theirs = [], []
    for _ in range(400 if name == "mean-field" else 10):
        with torch.no_grad():
            nll, kl = elbo_terms(model, guide, image, label, num_cases=18)
        ours.append(float(total(nll) + total(kl)))
        theirs.append(Trace_ELBO().loss(model, guide, image, label, num_cases=18))
    if name == "point":
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    assert_mean(np.subtract(ours, theirs), 0.0)


def scale_model(data: Tensor | None = None, *, num_cases: int | None = None) -> None:
    scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.3).double(), 0.7))
    with pyro.plate("case", len(OBSERVED)):
        pyro.sample("data", dist.Normal(0.0, scale), obs=data)


def gamma_model(data: Tensor | None = None, *, num_cases: int | None = None) -> None:
    scale = pyro.sample("scale", dist.Gamma(torch.tensor(2.0).double(), 3.0))
    with pyro.plate("case", len(OBSERVED)):
        pyro.sample("data", dist.Normal(0.0, scale), obs=data)


PRIORS = {
    scale_model: stats.lognorm(0.7, scale=np.exp(0.3)),
    gamma_model: stats.gamma(2, scale=1 / 3),
}


@pytest.mark.parametrize("model", PRIORS)
@pytest.mark.parametrize("kind", ["AutoNormal", "MeanFieldNormal"])
def test_constrained_latents_have_the_right_divergence(model: Any, kind: str) -> None:
    """TraceMeanField_ELBO counts the Jacobian of such sites twice; here it is integrated."""
    batch = {"data": OBSERVED}
    if kind == "AutoNormal":
        guide: Any = AutoNormal(model, init_scale=0.4)
        guide(OBSERVED)
        with torch.no_grad():
            guide.locs.scale.fill_(0.6)  # at 0 the mean Jacobian is 0, and could be lost
        loc, spread = guide.locs.scale.item(), guide.scales.scale.item()
    else:
        guide = MeanFieldNormal(model, 0.4, example=batch)
        site = guide.latents.sites[0]
        with torch.no_grad():
            site.loc.fill_(0.6)
        loc, spread = site.loc.item(), 0.4
    log_scale = stats.norm(loc, spread)

    def divergence(value: float) -> float:
        log_p = PRIORS[model].logpdf(np.exp(value)) + value
        return float(log_scale.pdf(value) * (log_scale.logpdf(value) - log_p))

    def loss(value: float) -> float:
        log_prob = stats.norm(0, np.exp(value)).logpdf(OBSERVED.numpy()).sum()
        return float(-log_scale.pdf(value) * log_prob)

    limits = loc - 10 * spread, loc + 10 * spread
    with torch.no_grad():
        terms = [elbo_terms(model, guide, **batch) for _ in range(2000)]
    kl = [float(total(kl)) for _, kl in terms]
    expected = integrate.quad(divergence, *limits)[0]
    if np.ptp(kl) < 1e-9:  # LogNormal against LogNormal has a closed form
        np.testing.assert_allclose(kl, expected, rtol=1e-6)
    else:
        assert_mean(kl, expected)
    assert_mean([float(nll["data"]) for nll, _ in terms], integrate.quad(loss, *limits)[0])


def mean_model(data: Tensor | None = None, *, num_cases: int | None = None) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()).double(), 2.0))
    with pyro.plate("case", num_cases or len(OBSERVED), subsample=data):
        pyro.sample("data", dist.Normal(mean, 0.5), obs=data)


def test_at_the_exact_posterior_the_bound_is_the_evidence() -> None:
    precision = 1 / 4 + len(OBSERVED) / 0.25
    loc, scale = OBSERVED.sum() / 0.25 / precision, torch.tensor(precision).double().rsqrt()

    def guide(data: Tensor | None = None, *, num_cases: int | None = None) -> None:
        pyro.sample("mean", dist.Normal(loc, scale))

    covariance = 0.25 * np.eye(len(OBSERVED)) + 4.0
    evidence = stats.multivariate_normal(cov=covariance).logpdf(OBSERVED.numpy())
    terms = [elbo_terms(mean_model, guide, data=OBSERVED) for _ in range(1000)]
    assert_mean([float(total(nll) + total(kl)) for nll, kl in terms], -evidence)


def test_a_delta_inside_other_distributions_keeps_its_density() -> None:
    def model(data: Tensor) -> None:
        weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("data", dist.Normal(weights.sum(), 1.0), obs=data)

    value, density = torch.tensor([0.1, -2.0, 0.7]), torch.tensor([1.0, 2.0, 3.5])
    for delta in (
        dist.Delta(value, density).to_event(1),
        dist.Delta(value, density).mask(True).to_event(1),
        dist.Delta(value, density.sum(), event_dim=1),
    ):

        def guide(data: Tensor, delta: Any = delta) -> None:
            pyro.sample("weights", delta)

        kl = elbo_terms(model, guide, torch.tensor(0.0))[1]["weights"]
        expected = density.sum() - dist.Normal(0.0, 1.0).log_prob(value).sum()
        torch.testing.assert_close(kl, expected)


def test_masked_cases_count_neither_way() -> None:
    mask: Any = torch.tensor([True, False, True, False])

    def model(data: Tensor) -> None:
        with pyro.plate("case", 4, subsample=data), poutine.mask(mask=mask):
            code = pyro.sample("code", dist.Normal(torch.zeros(4).double(), 1.0))
            pyro.sample("data", dist.Normal(code, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        with pyro.plate("case", 4, subsample=data), poutine.mask(mask=mask):
            pyro.sample("code", dist.Delta(torch.ones(4).double()) if point else unit)

    unit = dist.Normal(torch.ones(4).double(), 1.0)
    point = False
    torch.testing.assert_close(
        elbo_terms(model, guide, OBSERVED)[1]["code"], OBSERVED.new_tensor(1)
    )
    point = True
    nll, kl = elbo_terms(model, guide, OBSERVED)
    torch.testing.assert_close(nll["data"], -unit.log_prob(OBSERVED)[mask].sum())
    torch.testing.assert_close(
        kl["code"], -2 * dist.Normal(0.0, 1.0).log_prob(torch.tensor(1.0)), check_dtype=False
    )


def test_guides_are_added_up() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = classifier(), classifier()
            self.second.network.site = "other"

        def forward(self, image: Tensor, label: Tensor | None = None, **options: Any) -> None:
            logits = self.first.network(image) + self.second.network(image)
            with pyro.plate("case", len(image)):
                pyro.sample("label", dist.Categorical(logits=logits), obs=label)

    model, (image, label) = Both(), data()
    guide = Guides(PointEstimate(model.first), MeanFieldNormal(model.second))
    nll, kl = elbo_terms(model, guide, image, label)
    assert set(nll) == {"label"} and set(kl) == {"weights", "other"}
    torch.testing.assert_close(total(kl), kl["weights"] + kl["other"])
    with pytest.raises(ValueError, match="two guides or more"):
        Guides(PointEstimate(model.first))


def propose(name: str, fn: Any, **options: Any) -> Callable[..., None]:
    def guide(data: Tensor | None = None, *, num_cases: int | None = None) -> None:
        pyro.sample(name, fn, **options)

    return guide


LEARNING = torch.tensor(0.5, requires_grad=True)
STANDARD = dist.Normal(torch.tensor(0.0).double(), 1.0)


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (propose("other", STANDARD), "does not propose the latent site 'mean'"),
        (propose("mean", dist.Geometric(LEARNING)), "cannot be reparameterised"),
    ],
)
def test_a_guide_that_does_not_fit_is_named(guide: Callable[..., None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        elbo_terms(mean_model, guide, data=OBSERVED)


def test_an_unknown_site_must_be_auxiliary() -> None:
    def guide(data: Tensor | None = None, *, num_cases: int | None = None) -> None:
        pyro.sample("mean", STANDARD)
        pyro.sample("extra", STANDARD, infer={"is_auxiliary": auxiliary})

    auxiliary = False
    with pytest.raises(ValueError, match="proposes 'extra', which is no latent site"):
        elbo_terms(mean_model, guide, data=OBSERVED)
    auxiliary = True
    assert set(elbo_terms(mean_model, guide, data=OBSERVED)[1]) == {"mean", "extra"}


def test_plates_of_different_scale_are_refused() -> None:
    model = LatentClassifier(1, ["a", "b"], latent_dim=2, width=2)
    encoder = GaussianEncoder(1, 2, 2, num_classes=2)

    def guide(image: Tensor, label: Tensor, *, num_cases: int | None = None) -> None:
        with pyro.plate("case", len(image)):  # forgets num_cases
            pyro.sample("z", encoder(image, label))

    image, label = torch.randn(2, 1, 4, 4), torch.tensor([0, 1])
    elbo_terms(model, guide, image, label, num_cases=2)
    with pytest.raises(ValueError, match=r"scales its log-density by 1.0, the model by 5.0"):
        elbo_terms(model, guide, image, label, num_cases=10)


def test_without_observations_there_is_no_bound() -> None:
    model, (image, _) = classifier(), data()
    with pytest.raises(ValueError, match=r"observed no 'label': pass it in the batch"):
        elbo_terms(model, PointEstimate(model), image)

    def prior_only(data: Tensor) -> None:
        pyro.sample("mean", STANDARD)

    with pytest.raises(ValueError, match="the model observed nothing"):
        elbo_terms(prior_only, propose("mean", STANDARD), OBSERVED)
