"""Natural-gradient steps against the authors' optimizer and against posteriors that are known."""

import math
from typing import Any

import ivon  # type: ignore[import-untyped]
import pytest
import torch
from test_conjugate import PRIOR_SCALE, LinearRegression, design, mean_field, posterior
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_med.inference import (
    BernoulliDropout,
    LowRankNormal,
    MeanFieldNormal,
    PointEstimate,
    VariationalOnlineNewton,
    fit,
)
from ppl_med.inference.guides.weight_guide import inverse_softplus
from ppl_med.models import BayesianClassifier
from ppl_med.weights import (
    FanInNormal,
    FlatNormal,
    LearntNormal,
    Normal,
    RandomWeights,
    kl_divergence,
)


class Normals(nn.Module):
    """A location and a raw scale, as a guide's part has them."""

    independent = True

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.loc, self.raw_scale = nn.Parameter(loc), nn.Parameter(inverse_softplus(scale))


def test_steps_equal_those_of_the_authors() -> None:
    """Same noise, same gradients: location and precision follow ivon-opt, without momentum."""
    cases, decay, start = 50, 0.02, 0.3
    curvature = torch.tensor([0.5, 2.0, 8.0]).double()
    loc = torch.tensor([1.0, -0.5, 0.2]).double()
    theirs = nn.Parameter(loc.clone())
    oracle = ivon.IVON(
        [theirs],
        lr=0.05,
        ess=cases,
        hess_init=start,
        beta1=0.0,
        beta2=0.9,
        weight_decay=decay,
        debias=False,
        rescale_lr=False,
    )
    scale = torch.full_like(loc, 1 / (cases * (start + decay)) ** 0.5)
    guide = Normals(loc.clone(), scale)
    recipe = VariationalOnlineNewton(0.05, momentum=0.0, precision_rate=0.1, radius=1e6)
    ours = recipe.build(list(guide.parameters()), guide, cases)
    for _ in range(6):
        with oracle.sampled_params(train=True):
            drawn = theirs.detach().clone()
            oracle.zero_grad()
            (0.5 * curvature * (theirs - 1).square()).sum().backward()
        deviation = drawn - guide.loc.detach()
        ours.zero_grad()
        scale = softplus(guide.raw_scale)
        weights = guide.loc + scale * (deviation / scale.detach())
        prior = 0.5 * cases * decay * (guide.loc.square() + scale.square()) - scale.log()
        loss = 0.5 * curvature * (weights - 1).square() + prior / cases
        loss.sum().backward()
        oracle.step()
        ours.step()
        torch.testing.assert_close(guide.loc.detach(), theirs.detach())
        precision = cases * (oracle.param_groups[0]["hess"] + decay)
        torch.testing.assert_close(softplus(guide.raw_scale).detach(), precision.rsqrt())


@pytest.mark.parametrize("init_scale", [0.03, 3.0])
def test_the_width_is_the_data_s_wherever_it_started(init_scale: float) -> None:
    """Scales within 12 per cent, locations within 0.25 sd of the optimum of independent normals.

    In as many steps Adam leaves a start far too narrow where it is.
    """
    data, model = design("correlated"), LinearRegression()
    mean, precision = posterior(data)
    exact = precision.diagonal().rsqrt()
    natural = MeanFieldNormal(model, init_scale, "shared")
    recipe = VariationalOnlineNewton(0.1, precision_rate=0.05)
    settings: Any = {"schedule": lambda done: (1 - done) ** 2, "progress": False}
    fit(model, natural, [data], epochs=700, optimizer=recipe, **settings)
    loc, scale = mean_field(natural)
    assert ((loc - mean).abs() < 0.25 * exact).all(), (loc, mean, exact)
    assert ((scale / exact - 1).abs() < 0.12).all(), (scale, exact)
    if init_scale < 1:
        adam = MeanFieldNormal(model, init_scale, "shared")
        fit(model, adam, [data], epochs=700, learning_rate=1e-3, progress=False)
        assert (mean_field(adam)[1] / exact < 0.5).all()


def test_tempering_widens_by_the_root() -> None:
    """At KL weight w the optimum's precision is the prior's plus 1/w of the data's."""
    data, model = design("orthogonal"), LinearRegression()
    _, precision = posterior(data)
    prior = 1 / PRIOR_SCALE**2
    expected = (prior + (precision.diagonal() - prior) / 4).rsqrt()
    guide = MeanFieldNormal(model, 0.3, "shared")
    recipe = VariationalOnlineNewton(0.1, precision_rate=0.05)
    settings: Any = {"schedule": lambda done: (1 - done) ** 2, "progress": False}
    fit(model, guide, [data], epochs=900, optimizer=recipe, kl_weight=4.0, **settings)
    assert ((mean_field(guide)[1] / expected - 1).abs() < 0.12).all()


def test_adam_moves_what_is_no_normal() -> None:
    """A deterministic bias finds the least-squares one beside the normals of the weights."""
    data = design("orthogonal")
    net = nn.Linear(2, 1).double()
    model = LinearRegression()
    model.network = RandomWeights(net, Normal(1.5), where="weight")
    recipe = VariationalOnlineNewton(0.1, precision_rate=0.05, other_rate=0.02)
    settings: Any = {"schedule": lambda done: (1 - done) ** 2, "progress": False}
    fit(
        model,
        MeanFieldNormal(model, 0.3, "shared"),
        [data],
        epochs=700,
        optimizer=recipe,
        **settings,
    )
    bias = model.network.net.get_parameter("bias").detach()
    # Features are orthogonal to the constant, so the bias is the mean of the targets: sd .6/24^.5.
    torch.testing.assert_close(bias, data["target"].mean()[None], atol=0.03, rtol=0)


@pytest.mark.parametrize("by", ["tensor", "weight", "all"])
def test_learnt_scales_are_the_best(by: Any) -> None:
    """The KL is that at the scales of the closed form, and no other scales give a lower one."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    weights = RandomWeights(net, LearntNormal(by, 0.7))
    loc = torch.randn(26).double().requires_grad_()
    scale = (torch.rand(26).double() + 0.1).requires_grad_()
    kl = kl_divergence(FlatNormal(loc, scale), weights.prior_distribution())
    kept = weights.prior_distribution().scale.detach()
    fixed = FlatNormal(torch.zeros(()).double(), kept)
    exact = kl_divergence(FlatNormal(loc, scale), fixed)
    torch.testing.assert_close(kl, exact)
    with torch.no_grad():
        torch.testing.assert_close(
            kl_divergence(FlatNormal(loc, scale), weights.prior_distribution()), exact
        )
    ours, theirs = (torch.autograd.grad(value, (loc, scale)) for value in (kl, exact))
    torch.testing.assert_close(ours, theirs)  # the scales' own part is 0 at their best
    for factor in (0.9, 1.1):
        with torch.no_grad():
            other = FlatNormal(fixed.loc, kept * factor)
            assert kl_divergence(FlatNormal(loc, scale), other) > exact
    if by == "weight":
        expected = 0.5 * torch.log1p((loc / scale).square()).sum()
        torch.testing.assert_close(kl, expected)


def test_low_rank_normals_learn_the_scales() -> None:
    """A layer's scale is the root mean square of its weights under the guide."""
    data, model = design("orthogonal"), LinearRegression(LearntNormal(gain=0.3))
    guide = LowRankNormal(model, 1, 0.3)
    settings: Any = {"learning_rate": 0.03, "schedule": "cosine", "progress": False}
    fit(model, guide, [data], epochs=60, **settings)
    q: Any = guide.distribution()
    square = (q.loc.square() + q.variance).detach()
    expected = torch.cat([square[:2].mean().sqrt().expand(2), square[2:].sqrt()])
    learnt = model.network.prior_distribution().scale.detach()
    torch.testing.assert_close(learnt, expected, rtol=0.02, atol=0)


def test_a_run_goes_on_as_if_never_stopped(tmp_path: Any) -> None:
    data = design("correlated")

    def run(epochs: int, **options: Any) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        model = LinearRegression(LearntNormal(gain=0.5))
        guide = MeanFieldNormal(model, 0.3, "shared")
        settings: Any = {"optimizer": VariationalOnlineNewton(), "progress": False, **options}
        fit(model, guide, [data], epochs=epochs, **settings)
        return mean_field(guide)

    run(4, checkpoint=tmp_path / "run.pt")
    resumed = run(9, checkpoint=tmp_path / "run.pt", resume=True)
    for ours, whole in zip(resumed, run(9), strict=True):
        assert torch.equal(ours, whole)


def test_bad_input_is_named() -> None:
    data, model = design("correlated"), LinearRegression()
    for name, value in {
        "learning_rate": 0,
        "momentum": 1,
        "precision_rate": 1,
        "radius": -1,
    }.items():
        with pytest.raises(ValueError, match=name):
            VariationalOnlineNewton(**{name: value})
    newton = VariationalOnlineNewton()
    others: list[Any] = [PointEstimate(model), LowRankNormal(model, 1)]
    for guide in others:
        with pytest.raises(ValueError, match="MeanFieldNormal"):
            fit(model, guide, [data], optimizer=newton, progress=False)
    with pytest.raises(ValueError, match="learning_rate must be one number"):
        rates = {"*": 1e-3}
        guide = MeanFieldNormal(model)
        fit(model, guide, [data], optimizer=newton, learning_rate=rates, progress=False)


def test_a_learnt_scale_of_one_factor_is_fan_in_scaled() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    learnt = RandomWeights(net, LearntNormal("all", 1.5))
    fixed = RandomWeights(net, FanInNormal(1.5, bias_scale=1.5)).prior_distribution()
    torch.testing.assert_close(learnt.prior_distribution().scale, fixed.scale)
    learnt.get_buffer("prior_log_factor").add_(0.5)
    assert torch.allclose(learnt.prior_distribution().scale, fixed.scale * math.exp(0.5))


def test_no_point_under_a_scale_that_is_learnt() -> None:
    model = BayesianClassifier(
        nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), ["a", "b"], LearntNormal()
    )
    batch = {"image": torch.randn(4, 1, 1, 3), "label": torch.tensor([0, 1, 1, 0])}
    for guide in (PointEstimate(model), BernoulliDropout(model, skip_first=False)):
        with pytest.raises(ValueError, match="use_prior=False"):
            fit(model, guide, [batch], progress=False)
    fit(model, PointEstimate(model, use_prior=False), [batch], progress=False)
