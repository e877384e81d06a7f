"""Counterfactuals against closed forms: linear nets, soft thresholds, a linear-Gaussian VAE."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from attribution_nets import conv_net, images
from linear_vae import ExactPosterior, LinearVAE
from scipy.optimize import minimize
from sklearn.linear_model import Lasso
from torch import Tensor

from ppl_med.explain import latent_counterfactual, minimal_perturbation, sparse_additive
from ppl_med.explain.counterfactuals.posterior_predictive import PosteriorPredictive
from ppl_med.explain.counterfactuals.proximal_gradient import sparse_map
from ppl_med.explain.counterfactuals.realism import log_density
from ppl_med.explain.counterfactuals.tangent_search import Smooth, nearest_point

SHAPE = (1, 3, 4)
Net = Callable[[Tensor], Tensor]


def logistic(weight: Tensor, bias: float = 0.0) -> Net:
    """Log-odds of class 1: weight · image + bias."""
    return lambda x: x.flatten(1) @ weight.flatten()[:, None] + bias


def of_class_0(weight: Tensor, cases: int = 5) -> Tensor:
    x = torch.randn(cases, *weight.shape, dtype=torch.float64)
    odds = logistic(weight)(x)[:, 0]
    return torch.where((odds < 0).view(-1, 1, 1, 1), x, -x)


def along(weight: Tensor, x: Tensor, wanted: float) -> Tensor:
    """The nearest images whose log-odds are as wanted."""
    short = wanted - logistic(weight)(x)[:, 0]
    return x + (short / weight.square().sum()).view(-1, 1, 1, 1) * weight


# --- the smallest change


@pytest.mark.parametrize("draws", [1, 3])
def test_smallest_change_of_a_logistic_model(draws: int) -> None:
    weight = torch.randn(SHAPE).double()
    x = of_class_0(weight)
    result = minimal_perturbation([logistic(weight)] * draws, x, 1, margin=0.5)
    expected = along(weight, x, 0.5)
    np.testing.assert_allclose(result.counterfactual, expected, atol=1e-3)
    np.testing.assert_allclose(result.l2, (expected - x).flatten(1).norm(dim=1), rtol=2e-3)
    np.testing.assert_allclose(result.log_odds, 0.5, atol=2e-3)
    assert result.reached.all() and (result.flip_probability == 1).all()


def test_smallest_change_in_a_box_is_that_of_a_general_solver() -> None:
    weight = torch.randn(SHAPE).double()
    x = of_class_0(weight, 3).clamp(-1, 1)
    x = torch.where((logistic(weight)(x) < 0).view(-1, 1, 1, 1), x, -x)
    result = minimal_perturbation([logistic(weight)], x, 1, margin=1.0, bounds=(-1, 1))
    assert np.abs(result.counterfactual).max() == 1, "no pixel at its bound: no test of the box"
    flat = weight.flatten().numpy()
    for start, found in zip(x.flatten(1).numpy(), result.counterfactual.values, strict=True):
        solved = minimize(
            lambda v, start=start: 0.5 * np.sum((v - start) ** 2),
            start,
            jac=lambda v, start=start: v - start,
            bounds=[(-1, 1)] * len(start),
            constraints={"type": "ineq", "fun": lambda v: flat @ v - 1, "jac": lambda v: flat},
            options={"ftol": 1e-12},
        )
        np.testing.assert_allclose(found.ravel(), solved.x, atol=2e-3)


def test_nearest_point_of_a_sphere() -> None:
    start = torch.randn(6, 3, dtype=torch.float64)
    edge = torch.full_like(start, torch.inf)
    sphere = Smooth(lambda v: v.square().sum(1), lambda v: (v.square().sum(1), 2 * v))
    found, reached = nearest_point(
        sphere, start, 25.0, low=-edge, high=edge, stride=torch.ones(6).double(), steps=40
    )
    assert reached.all()
    np.testing.assert_allclose(found, 5 * start / start.norm(dim=1, keepdim=True), rtol=1e-3)


def test_parts_that_must_change_together_are_changed_together() -> None:
    """g is the least coordinate: every tangent sees one of them, and from 0 they take turns."""
    start = torch.zeros(3, 6, dtype=torch.float64)
    start[1, 2], start[2] = 0.4, -1.0

    def value_and_slope(points: Tensor) -> tuple[Tensor, Tensor]:
        value, place = points.min(1)
        return value, torch.nn.functional.one_hot(place, 6).to(points)

    constraint = Smooth(lambda points: points.min(1).values, value_and_slope)
    box = {"low": torch.full_like(start, -torch.inf), "high": torch.full_like(start, torch.inf)}
    stride = torch.full((3,), 2.0, dtype=torch.float64)
    found, reached = nearest_point(constraint, start, 1.0, **box, stride=stride, steps=40)
    assert reached.all()
    torch.testing.assert_close(found, torch.ones_like(start), rtol=0, atol=0.02)


def test_where_nothing_reaches_the_margin_the_result_says_so() -> None:
    """A probability that never passes one half."""
    weight = torch.randn(SHAPE).double()
    result = minimal_perturbation(
        [lambda x: -logistic(weight)(x).square() - 1], of_class_0(weight), 1
    )
    assert not result.reached.any() and (result.flip_probability == 0).all()


def test_slopes_of_the_predictive_probability_are_those_of_autograd() -> None:
    nets, x = [conv_net() for _ in range(4)], images()
    target = torch.tensor([0, 2, 1])
    predictive = PosteriorPredictive(nets, target)
    point = x.clone().requires_grad_()
    log_probs = torch.stack([net(point).softmax(1) for net in nets]).mean(0).log()
    mine = log_probs[torch.arange(3), target]
    others = log_probs.scatter(1, target[:, None], -torch.inf).amax(1)
    for name, expected in {"log_odds": mine - others, "log_loss": -mine}.items():
        (wanted,) = torch.autograd.grad(expected.sum(), point, retain_graph=True)
        value, slope = getattr(predictive, f"{name}_and_slope")(x)
        np.testing.assert_allclose(value, expected.detach(), rtol=1e-9)
        np.testing.assert_allclose(getattr(predictive, name)(x), value, rtol=1e-12)
        np.testing.assert_allclose(slope, wanted, rtol=1e-6, atol=1e-9)


# --- what every result says


def test_flip_probability_counts_draws_and_judges_may_be_others() -> None:
    weight = torch.ones(SHAPE).double()
    x = of_class_0(weight)
    biases = (-9.0, -9.0, 0.0, 9.0)
    judges = [logistic(weight, bias) for bias in biases]
    result = minimal_perturbation([logistic(weight)], x, 1, margin=1.0, judges=judges)
    # Log-odds are 1 + bias; the last judge said the target already, so it does not flip.
    assert not result.flipped[0, [0, 1, 3]].any() and result.flipped[0, 2].all()
    assert result.already[0, 3].all() and not result.already[0, :3].any()
    np.testing.assert_allclose(result.flip_probability, 1 / 3)
    np.testing.assert_allclose(result.flip_probability_se, np.sqrt(1 / 3 * 2 / 3 / 3))
    sure = minimal_perturbation([logistic(weight)], x, 1, margin=1.0, judges=judges[3:])
    assert sure.flip_probability.isnull().all(), "none can flip"
    assert result.flipped.dims == ("chain", "draw", "case") and result.flipped.sizes["draw"] == 4
    expected = [[1 / (1 + np.exp(-1 - bias))] * len(x) for bias in biases]
    np.testing.assert_allclose(result.probability[0], expected, rtol=2e-3)


def test_distances_and_sparsity() -> None:
    """Only two of twelve pixels have a weight, so only they change."""
    weight = torch.zeros(SHAPE).double()
    weight[0, 1, 1], weight[0, 2, 2] = 3.0, -4.0
    x = of_class_0(weight)
    result = minimal_perturbation([logistic(weight)], x, 1, margin=1.0)
    length = (1 - logistic(weight)(x)[:, 0]) / 25
    for name, factor in {"l1": 7, "l2": 5, "linf": 4}.items():
        np.testing.assert_allclose(result[name], factor * length, rtol=2e-3)
    np.testing.assert_allclose(result.sparsity, 10 / 12)
    assert all({"units", "long_name"} <= set(v.attrs) for v in result.data_vars.values())


@pytest.mark.parametrize(("period", "share"), [(8, 0.0), (2, 1.0)])
def test_share_of_high_frequencies_of_a_wave(period: int, share: float) -> None:
    wave = torch.cos(2 * torch.pi * torch.arange(16.0) / period).double().expand(1, 16, 16)
    result = minimal_perturbation([logistic(wave)], of_class_0(wave), 1)
    np.testing.assert_allclose(result.high_frequency_share, share, atol=1e-9)


def test_a_net_without_structure_is_attacked_by_white_noise() -> None:
    """The power of white noise is the same at all frequencies; 40 nets, 64 frequencies of each."""
    shares = []
    for _ in range(40):
        weight = torch.randn(1, 8, 8).double()
        result = minimal_perturbation([logistic(weight)], of_class_0(weight, 1), 1, steps=8)
        shares.append(float(result.high_frequency_share[0]))
    error = np.std(shares, ddof=1) / np.sqrt(len(shares))
    assert abs(np.mean(shares) - result.white_noise_share) < 4 * error


# --- sparse additive maps


def test_sparse_map_of_a_quadratic_is_a_soft_threshold() -> None:
    f = 2 * torch.randn(4, *SHAPE, dtype=torch.float64)
    smooth = Smooth(
        lambda a: 0.5 * (f - a).flatten(1).square().sum(1),
        lambda a: (0.5 * (f - a).flatten(1).square().sum(1), a - f),
    )
    penalty = torch.tensor([0.1, 0.5, 1.0, 9.0]).double()
    width = penalty.view(-1, 1, 1, 1)
    for limit in (torch.inf, 0.7):
        edge = torch.full_like(f, limit)
        found, gap = sparse_map(
            smooth, torch.zeros_like(f), penalty, low=-edge / 2, high=edge, steps=200
        )
        expected = torch.sign(f) * (f.abs() - width).clamp(min=0)
        np.testing.assert_allclose(found, expected.clamp(-limit / 2, limit), atol=1e-4)
        assert gap.max() < 1e-3 and (found[3] == 0).all()


def test_sparse_map_of_a_linear_functional_is_an_end_of_its_box() -> None:
    weight = torch.randn(1, *SHAPE, dtype=torch.float64)
    smooth = Smooth(
        lambda a: -(weight * a).flatten(1).sum(1),
        lambda a: (-(weight * a).flatten(1).sum(1), -weight.expand_as(a)),
    )
    edge = torch.ones_like(weight)
    found, _ = sparse_map(
        smooth, 0 * edge, torch.tensor([0.5]).double(), low=-edge, high=2 * edge, steps=100
    )
    expected = torch.where(weight > 0.5, 2.0, torch.where(weight < -0.5, -1.0, 0.0))
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_sparse_map_is_the_lasso() -> None:
    design, response = torch.randn(30, 8).double(), torch.randn(30).double()

    def value(a: Tensor) -> Tensor:
        return 0.5 * (a @ design.T - response).square().mean(1)

    def both(a: Tensor) -> tuple[Tensor, Tensor]:
        return value(a), (a @ design.T - response) @ design / 30

    oracle = Lasso(alpha=0.05, fit_intercept=False, tol=1e-12).fit(design, response).coef_
    edge = torch.full((1, 8), torch.inf).double()
    start = torch.zeros(1, 8).double()
    penalty = torch.tensor([0.05]).double()
    found, gap = sparse_map(Smooth(value, both), start, penalty, low=-edge, high=edge, steps=500)
    assert 0 < (oracle == 0).sum() < 8
    np.testing.assert_allclose(found[0], oracle, atol=1e-4)
    assert gap[0] < 1e-3


def test_sparse_change_is_sparser_than_the_smallest_one() -> None:
    weight = torch.randn(1, 8, 8).double()
    x = of_class_0(weight)
    naive = minimal_perturbation([logistic(weight)], x, 1)
    sparse = sparse_additive([logistic(weight)], x, 1, bounds=(-4, 4))
    assert sparse.reached.all() and (sparse.sparsity > naive.sparsity).all()
    assert (sparse.l1 < naive.l1).all() and (sparse.l2 > naive.l2).all()
    assert np.abs(sparse.counterfactual).max() <= 4
    # The largest weights go first: each changed pixel outweighs each unchanged one of its sign.
    lost = sparse_additive([logistic(weight)], x, 1, map_bounds=(0, np.inf))
    assert (lost.change <= 0).all() and lost.reached.all()


def test_a_penalty_above_the_steepest_slope_changes_nothing() -> None:
    weight = torch.randn(SHAPE).double()
    x = of_class_0(weight)
    steepest = float((logistic(weight)(x).neg().sigmoid()[:, 0] * weight.abs().max()).max())
    above = sparse_additive([logistic(weight)], x, 1, penalty=1.001 * steepest)
    assert (above.l1 == 0).all() and not above.reached.any()
    below = sparse_additive([logistic(weight)], x, 1, penalty=0.5 * steepest)
    assert (below.l1 > 0).any() and below.stationarity.max() < 0.02 * steepest


# --- through the latent


@pytest.fixture
def vae() -> tuple[LinearVAE, ExactPosterior]:
    model = LinearVAE(SHAPE, 2, latent=2, scale=0.5)
    return model, ExactPosterior(model)


def test_latent_counterfactual_of_a_linear_vae(vae: Any) -> None:
    """Without search, the class's offset changes; with it, the code moves along weight^T w."""
    model = vae[0]
    weight = torch.randn(SHAPE).double()
    x, net = of_class_0(weight), logistic(weight)
    target, present = torch.ones(5, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)
    code = vae[1].encoder(x, present).mean
    found = latent_counterfactual([net], x, 1, vae=vae, search=False)
    np.testing.assert_allclose(found.code, code, rtol=1e-9)
    np.testing.assert_allclose(found.counterfactual, model.decode(code, target).detach())
    kept = latent_counterfactual([net], x, 1, vae=vae, search=False, keep_residual=True)
    offset = (model.offset[1] - model.offset[0]).detach().view(SHAPE)
    np.testing.assert_allclose(kept.counterfactual, x + offset, rtol=1e-9)

    other = latent_counterfactual([net], x, 1, vae=vae, search=False, encode_as="target")
    nearest = vae[1].encoder(x, target).mean
    np.testing.assert_allclose(other.counterfactual, model.decode(nearest, target).detach())

    margin = 30.0  # more than the offset gives
    moved = latent_counterfactual([net], x, 1, vae=vae, margin=margin, steps=60)
    direction = model.weight.T.detach() @ weight.flatten()
    short = margin - net(model.decode(code, target))[:, 0].detach()
    assert (short > 0).all() and moved.reached.all()
    expected = code + short[:, None] * direction / direction.square().sum()
    np.testing.assert_allclose(moved.counterfactual_code, expected, atol=1e-2)


def test_realism_is_the_density_where_the_guide_is_exact(vae: Any) -> None:
    model = vae[0]
    image, label = torch.randn(7, *SHAPE).double(), torch.arange(7) % 2
    before = torch.random.get_rng_state()
    value, error = log_density(vae[0], vae[1], image, label, particles=5, batch_size=12)
    assert torch.equal(before, torch.random.get_rng_state())
    np.testing.assert_allclose(value, model.log_density(image, label), rtol=1e-8)
    np.testing.assert_allclose(error, 0, atol=1e-8)
    assert vae[0].training and vae[1].training


def test_generated_counterfactuals_are_more_realistic_than_attacks(vae: Any) -> None:
    """The classifier is the VAE's own: the log-odds of its two classes, which are linear."""
    model = vae[0]
    with torch.no_grad():
        label = torch.zeros(20, dtype=torch.int64)
        mean = model.decode(torch.randn(20, 2).double(), label)
        x = mean + model.scale * torch.randn_like(mean)
        weight = model.weight
        covariance = weight @ weight.T + model.scale**2 * torch.eye(len(weight)).double()
        slope = torch.linalg.solve(covariance, model.offset[1] - model.offset[0])
        bias = float(-slope @ (model.offset[0] + model.offset[1]) / 2)
    net = logistic(slope.view(SHAPE), bias)
    x = x[net(x)[:, 0] < 0]
    settings: dict[str, Any] = {"margin": 1.0, "vae": vae, "particles": 4}
    attack = minimal_perturbation([net], x, 1, **settings)
    made = latent_counterfactual([net], x, 1, keep_residual=True, **settings)
    assert (made.flip_probability > 0.5).all() and (attack.flip_probability == 1).all()
    assert float((made.realism > attack.realism).mean()) >= 0.9
    np.testing.assert_allclose(
        made.realism_of_image, model.log_density(x, torch.zeros(len(x), dtype=torch.int64))
    )
    assert (made.realism - made.realism_of_image).mean() > (
        attack.realism - attack.realism_of_image
    ).mean()


# --- refusals


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (minimal_perturbation, {"target": 0}, "target is the present class of cases"),
        (sparse_additive, {"target": 0}, "target is the present class"),
        (minimal_perturbation, {"target": 2}, "the functions know classes 0 to 1"),
        (minimal_perturbation, {"target": 1.0}, "target must"),
        (
            minimal_perturbation,
            {"functions": [lambda x: (x.flatten(1).sum(1, keepdim=True) > 0).double() - 0.5]},
            "carry no gradient",
        ),
        (minimal_perturbation, {"functions": [lambda x: x.detach().flatten(1)[:, :1]]}, "gradient"),
        (minimal_perturbation, {"functions": [lambda x: x]}, "region="),
        (minimal_perturbation, {"functions": []}, "functions is empty"),
        (minimal_perturbation, {"margin": 0.0}, "margin must"),
        (minimal_perturbation, {"bounds": (0.0, 0.1)}, "hold the image"),
        (minimal_perturbation, {"steps": 0}, "steps must"),
        (sparse_additive, {"map_bounds": (1.0, 2.0)}, "map_bounds must"),
        (sparse_additive, {"penalty": -1.0}, "penalty must"),
        (latent_counterfactual, {"vae": (torch.nn.Identity(), torch.nn.Identity())}, "no|decode"),
        (
            latent_counterfactual,
            {"vae": "fitting", "encode_as": "other"},
            "encode_as must",
        ),
        (latent_counterfactual, {"vae": "small"}, "vae decodes images"),
    ],
)
def test_refuses(make: Any, change: dict[str, Any], message: str) -> None:
    weight = torch.randn(SHAPE).double()
    if change.get("vae") == "small":
        model = LinearVAE((1, 3, 4), 2, 2, 1.0)
        model.shape = (1, 4, 3)
        change = {"vae": (model, ExactPosterior(model))}
    if change.get("vae") == "fitting":
        model = LinearVAE(SHAPE, 2, 2, 1.0)
        change = change | {"vae": (model, ExactPosterior(model))}
    arguments: dict[str, Any] = {
        "functions": [logistic(weight)],
        "image": of_class_0(weight),
        "target": 1,
    } | change
    with pytest.raises(Exception, match=message):
        make(**arguments)


def test_realism_refuses_random_weights(vae: Any) -> None:
    import pyro
    import pyro.distributions as dist

    class Global(torch.nn.Module):
        def forward(self, image: Tensor, label: Tensor) -> None:
            pyro.sample("weights", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="'weights' does not"):
        log_density(Global(), Global(), torch.zeros(2, *SHAPE), torch.zeros(2).long())
