"""Laplace: exact where the posterior is normal, and the matrices of other code elsewhere."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from test_conjugate import CASES, NOISE, LinearRegression, design
from torch import Tensor, nn

from ppl_med.inference import (
    Ensemble,
    FromPrior,
    Guides,
    Laplace,
    PointEstimate,
    fit,
    load,
    predict,
    save,
)
from ppl_med.likelihoods import Gaussian
from ppl_med.models import BayesianClassifier, BayesianRegressor
from ppl_med.testing import assert_mean, check_guide
from ppl_med.weights import FanInNormal, Normal, Prior, RandomWeights, ScaleMixture

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of what it imports
    from curvlinops import GGNLinearOperator, KFACLinearOperator

STRUCTURES: list[Any] = ["full", "kron", "diag", "last_layer"]


def covariance(guide: Any) -> Tensor:
    """Over all weights of the blocks, in order."""
    maps = []
    for block in guide.distribution().blocks:
        root = block.map(torch.eye(block.stop - block.start, dtype=torch.float64))
        maps.append(root.mT @ root)
    return torch.block_diag(*maps)


def around(model: Any, batches: Any, structure: Any, **options: Any) -> Laplace:
    """At the model's present values, whether they are a mode or not."""
    guide = Laplace(model, structure, start=PointEstimate(model))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the point is no mode")
        fit(model, guide, batches, epochs=0, progress=False, **options)
    return guide


# --------------------------------------------------------------------- a normal posterior


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("prior", [Normal(1.5), FanInNormal(1.0, bias_scale=3.0)])
def test_a_linear_model_has_its_exact_posterior(structure: Any, prior: Prior) -> None:
    """Covariance, offset from the mode and evidence, whatever the sizes of the batches."""
    data, model = design("correlated"), LinearRegression(prior)
    columns = torch.cat([data["features"], torch.ones(CASES, 1).double()], dim=1)
    scale = model.network.prior_distribution().stddev_vector
    precision = columns.T @ columns / NOISE**2 + scale.pow(-2).diag()
    exact = torch.linalg.inv(precision)
    mean = exact @ columns.T @ data["target"] / NOISE**2
    point = PointEstimate(model)
    with torch.no_grad():
        point.parts["weights"].value.copy_(mean)  # type: ignore[operator]
    batches = [{n: v[a:b] for n, v in data.items()} for a, b in ((0, 5), (5, 16), (16, CASES))]
    guide = Laplace(model, structure, start=point)
    assert math.isnan(guide.offset)
    history = fit(model, guide, batches, epochs=0, progress=False)
    assert history.sizes["step"] == 0
    assert guide.offset < 1e-12
    torch.testing.assert_close(guide.center(), mean)
    if structure == "diag":
        torch.testing.assert_close(covariance(guide), precision.diagonal().reciprocal().diag())
        return
    torch.testing.assert_close(covariance(guide), exact)
    marginal = columns @ scale.square().diag() @ columns.T + NOISE**2 * torch.eye(CASES).double()
    zero = torch.zeros(CASES).double()
    evidence = dist.MultivariateNormal(zero, marginal).log_prob(data["target"])
    assert guide.log_evidence == pytest.approx(float(evidence), rel=1e-10)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_fit_trains_to_the_mode_and_then_adds_up_the_curvature(structure: Any) -> None:
    data, model = design("correlated"), LinearRegression()
    guide = Laplace(model, structure)
    options: Any = {"learning_rate": 0.2, "schedule": "cosine", "progress": False}
    fit(model, guide, [data], epochs=400, **options)
    assert guide.offset < 1e-2
    q: Any = guide.distribution()
    exact = dist.MultivariateNormal(q.loc.detach(), covariance(guide))
    draws = q.rsample(torch.Size([4000])).detach()
    away = draws - q.loc.detach()
    assert_mean(away[:, :, None] * away[:, None], exact.covariance_matrix)
    torch.testing.assert_close(q.log_prob(draws[:7]).detach(), exact.log_prob(draws[:7]))


def test_a_curvature_of_an_earlier_training_is_forgotten(tmp_path: Path) -> None:
    """Held-out scores of a run that is trained further are those of the longer run."""
    data, scores = design("correlated"), []
    options: Any = {"validation": [data], "learning_rate": 0.3, "progress": False}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the point is no mode")
        for name, all_epochs in (("long.pt", [4]), ("short.pt", [2, 4])):
            for epochs in all_epochs:
                model: Any = LinearRegression()
                torch.nn.init.zeros_(model.network.net.weight)
                torch.nn.init.zeros_(model.network.net.bias)
                guide, path = Laplace(model, "full"), tmp_path / name
                options |= {"epochs": epochs, "checkpoint": path, "resume": True}
                history = fit(model, guide, [data], **options)
            scores.append(history["validation_nll"].values)
    np.testing.assert_array_equal(scores[1], scores[0])
    assert not math.isnan(guide.offset), "there is a new one at the end"


def test_a_point_that_is_no_mode_is_told() -> None:
    """A tenth of a step is told by its length: one posterior standard deviation a weight."""
    data, model = design("correlated"), LinearRegression()
    guide = around(model, [data], "full")
    shift = torch.linalg.cholesky(torch.linalg.inv(covariance(guide))).T
    columns = torch.cat([data["features"], torch.ones(CASES, 1).double()], dim=1)
    right = columns.T @ data["target"] / NOISE**2
    away = shift @ (covariance(guide) @ right - guide.center())
    assert guide.offset == pytest.approx(float(away.square().mean().sqrt()), rel=1e-9)
    with pytest.warns(UserWarning, match="no mode of the posterior"):
        fit(model, Laplace(model, "full"), [data], epochs=1, progress=False)


def test_a_kl_weight_tempers_mode_and_curvature() -> None:
    data, model = design("correlated"), LinearRegression()
    guide = around(model, [data], "full", kl_weight=0.2)
    columns = torch.cat([data["features"], torch.ones(CASES, 1).double()], dim=1)
    precision = columns.T @ columns / NOISE**2 + 0.2 * torch.eye(3).double() / 1.5**2
    torch.testing.assert_close(covariance(guide), torch.linalg.inv(precision))


# --------------------------------------------------------------------- nets, against other code

NETS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Tanh(), nn.Linear(3, 3)),
    "conv": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(8, 3, bias=False),
    ),
    "two": lambda: nn.Sequential(nn.Flatten(), nn.Linear(2, 1)),
    "dilated": lambda: nn.Sequential(nn.Conv2d(1, 2, 2, dilation=2), nn.Flatten(), nn.Linear(8, 3)),
}


def classifier(name: str) -> tuple[BayesianClassifier, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = BayesianClassifier(NETS[name]().double(), ["a", "b", "c"], Normal(0.7))
    return model, {"image": torch.randn(11, 1, 4, 4).double(), "label": torch.arange(11) % 3}


def split(data: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """Batches in double precision, the last one smaller."""
    parts = {name: values.split(size) for name, values in data.items()}
    return [dict(zip(parts, batch, strict=True)) for batch in zip(*parts.values(), strict=True)]


def oracle(model: Any, data: dict[str, Tensor], operator: Any, **options: Any) -> Tensor:
    """A matrix of curvlinops for the sum of the losses over the cases."""
    net = model.network.net
    named = dict(net.named_parameters())
    parameters = [named[name].requires_grad_() for name in model.network.layout.names]
    loss = nn.CrossEntropyLoss(reduction="sum")
    batches = [(data["image"], data["label"])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = operator(net, loss, parameters, batches, check_deterministic=False, **options)
        return found @ torch.eye(model.network.layout.num_weights, dtype=torch.float64)


@pytest.mark.parametrize("name", ["linear", "conv", "dilated"])
def test_full_and_diagonal_are_those_of_other_code(name: str) -> None:
    model, data = classifier(name)
    batches = split(data, 4)
    expected = oracle(model, data, GGNLinearOperator)
    prior = torch.eye(len(expected), dtype=torch.float64) / 0.7**2
    found = torch.linalg.inv(covariance(around(model, batches, "full"))) - prior
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    variances = covariance(around(model, batches, "diag")).diagonal()
    torch.testing.assert_close(variances, (expected + prior).diagonal().reciprocal())


@pytest.mark.parametrize("name", ["linear", "conv", "dilated"])
def test_kronecker_factors_are_those_of_other_code(name: str) -> None:
    model, data = classifier(name)
    options = {"fisher_type": "type-2", "kfac_approx": "expand", "separate_weight_and_bias": False}
    expected = oracle(model, data, KFACLinearOperator, **options)
    prior = torch.eye(len(expected), dtype=torch.float64) / 0.7**2
    guide = around(model, split(data, 11), "kron")
    found = torch.linalg.inv(covariance(guide)) - prior
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    q: Any = guide.distribution()
    for block in q.blocks:
        eye = torch.eye(block.stop - block.start, dtype=torch.float64)
        torch.testing.assert_close(block.unmap(block.map(eye)), eye)


def test_the_last_layer_is_a_corner_of_the_whole_matrix() -> None:
    model, data = classifier("linear")
    expected = oracle(model, data, GGNLinearOperator)[-12:, -12:]
    guide = around(model, [data], "last_layer")
    prior = torch.eye(12, dtype=torch.float64) / 0.7**2
    torch.testing.assert_close(torch.linalg.inv(covariance(guide)) - prior, expected)
    draws = guide.distribution().rsample(torch.Size([3]))
    assert torch.equal(draws[:, :-12], guide.center()[:-12].expand(3, -1))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_batches_do_not_matter_nor_does_an_ensemble(structure: Any) -> None:
    """Kronecker factors too: each is a sum over cases."""
    model, data = classifier("conv")
    whole = covariance(around(model, [data], structure))
    for size in (4, 1):
        part = covariance(around(model, split(data, size), structure))
        torch.testing.assert_close(part, whole, rtol=1e-7, atol=1e-9)
    guide = Ensemble(model, lambda own: Laplace(own, structure), members=2, start="keep")
    fit(model, guide, [data], epochs=0, progress=False)
    for _, member in guide.members:
        torch.testing.assert_close(covariance(member), whole)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_file_holds_the_curvature(structure: Any, tmp_path: Any) -> None:
    model, data = classifier("linear")
    guide = around(model, [data], structure, checkpoint=tmp_path / "run.pt")
    check_guide(model, guide, data)
    tree = predict(model, guide, [data], draws=3, progress=False)
    save(tmp_path / "laplace.safetensors", model, guide)
    for file in ("laplace.safetensors", "run.pt"):
        other, _ = classifier("linear")
        again = Laplace(other, structure)
        load(tmp_path / file, other, again)
        same = predict(other, again, [data], draws=3, progress=False)
        np.testing.assert_array_equal(same["posterior/probs"], tree["posterior/probs"])
        assert again.log_evidence == guide.log_evidence


# --------------------------------------------------------------------- what it cannot do


def test_a_maximum_likelihood_point_is_refused() -> None:
    model = LinearRegression()
    with pytest.raises(ValueError, match="maximum-likelihood"):
        Laplace(model, start=PointEstimate(model, use_prior=False))
    with pytest.raises(TypeError, match="PointEstimate"):
        Laplace(model, start=Laplace(model))
    with pytest.raises(ValueError, match="other weights"):
        Laplace(model, start=PointEstimate(classifier("linear")[0]))


def test_a_guide_that_learns_in_training_alone_needs_an_epoch() -> None:
    model = LinearRegression()
    with pytest.raises(ValueError, match="epochs"):
        fit(model, PointEstimate(model), [design("correlated")], epochs=0, progress=False)


def image_model(net: nn.Module, likelihood: Any = "categorical", prior: Any = None) -> Any:
    return BayesianClassifier(net, ["a", "b", "c"], prior, likelihood=likelihood)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: image_model(NETS["linear"](), prior=ScaleMixture()), "normal prior"),
        (lambda: image_model(NETS["linear"](), "focal"), "trained by"),
        (
            lambda: image_model(
                nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 2, groups=2), nn.Flatten())
            ),
            "groups",
        ),
    ],
)
def test_models_that_are_refused_at_once(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Laplace(make())


def test_a_noise_that_the_network_gives_is_no_log_concave_likelihood() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    model = BayesianRegressor(net, Gaussian())
    data = {"image": torch.randn(8, 1, 4, 4), "value": 30 * torch.randn(8)}
    with pytest.raises(ValueError, match="log-concave"):
        fit(model, Laplace(model), [data], epochs=1, progress=False)


class OwnLevels(nn.Module):
    """Has a latent of every case besides the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.network = RandomWeights(NETS["two"](), Normal(1.0))

    def forward(self, image: Tensor, label: Any = None, *, num_cases: int | None = None) -> None:
        mean = self.network(image)[:, 0]
        with pyro.plate("case", num_cases or len(image), subsample=image):
            level = pyro.sample("level", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("label", dist.Normal(mean + level, 1.0), obs=label)


def test_latents_besides_the_weights_are_refused() -> None:
    model, data = OwnLevels(), {"image": torch.randn(4, 1, 1, 2), "label": torch.randn(4)}
    guide = Guides(Laplace(model), FromPrior("level"))
    with pytest.raises(ValueError, match="latent 'level'"):
        fit(model, guide, [data], epochs=0, progress=False)
