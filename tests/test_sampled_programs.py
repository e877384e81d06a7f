"""Samplers on programs of one's own, recorded potentials, and what is refused."""

from typing import Any

import arviz_stats
import killed_runs
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from killed_runs import sampled_batches as batches
from killed_runs import sampled_model, weights_of
from torch import Tensor, nn
from torch.nn import functional

from ppl_med.analysis import convergence
from ppl_med.data import Batches, flips_and_turns
from ppl_med.inference import (
    HMC,
    NUTS,
    SGHMC,
    SGLD,
    Ensemble,
    MeanFieldNormal,
    PointEstimate,
    checkpoint,
    predict,
    sample,
)
from ppl_med.inference.batches import as_loader, batch_spec
from ppl_med.inference.sampling.contract import check_kernel
from ppl_med.inference.sampling.gradient_graph import recorded
from ppl_med.inference.sampling.prepared_target import prepare_target
from ppl_med.models import BayesianClassifier, DUQClassifier, LatentClassifier

# --- programs of one's own


def own(image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None) -> Tensor:
    """A regression with an unknown noise, whose support is constrained."""
    weight = pyro.sample("weight", dist.Normal(0.0, torch.ones(2)).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    mean = weight[..., 0] + weight[..., 1] * image.mean((1, 2, 3))
    with pyro.plate("case", num_cases or len(image), subsample=image):
        pyro.sample("label", dist.Normal(mean, noise), obs=label)
    return mean


def test_constrained_latents_keep_their_support() -> None:
    torch.manual_seed(0)
    image = torch.randn(20, 1, 1, 1)
    data = {"image": image, "label": 1 - image.flatten() + 0.5 * torch.randn(20)}
    guide = sample(own, [data], NUTS(4), draws=50, warm_up=40, chains=2, progress=False)
    posterior = guide.posterior()["posterior"].dataset
    assert posterior["noise"].dims == ("chain", "draw")
    assert float(posterior["noise"].min()) > 0
    assert 0.25 < float(posterior["noise"].mean()) < 1.0  # .5, of 20 cases
    tree = predict(own, guide, [data], progress=False)
    found = convergence.r_hat(tree)["r_hat_max"], convergence.effective_draws(tree)["ess_bulk_min"]
    assert float(found[0]) < 1.2 and float(found[1]) > 10
    one = convergence.r_hat(guide.posterior(), of="noise")["r_hat"]
    expected = arviz_stats.rhat(posterior["noise"].values, chain_axis=0, draw_axis=1)
    assert float(one) == pytest.approx(float(expected))
    with pytest.raises(ValueError, match=r"of must be .*, got 'weights'"):
        convergence.r_hat(guide.posterior(), of="weights")


def test_chains_start_where_a_guide_stands() -> None:
    model = sampled_model()
    ensemble = Ensemble(model, PointEstimate, members=2)
    options: dict[str, Any] = {"draws": 1, "warm_up": 0, "chains": 2, "progress": False}
    guide = sample(model, batches(), SGLD(1e-12), start=ensemble, device="cpu", **options)
    for chain, (_, member) in zip(weights_of(guide), ensemble.members, strict=True):
        assert isinstance(member, PointEstimate)
        np.testing.assert_allclose(chain[0], member.center(), atol=1e-4)


class Branching(nn.Module):
    """A network that looks at a value."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 2)

    def forward(self, image: Tensor) -> Tensor:
        output = self.linear(image.flatten(1))
        return output if output.mean() > 0 else 2 * output


@pytest.mark.parametrize("dtype", [None, "float64"])
def test_a_recorded_potential_is_the_program_and_a_branch_is_not_recorded(dtype: Any) -> None:
    for model in (sampled_model(), BayesianClassifier(Branching(), ["no", "yes"])):
        precision = torch.float32 if dtype is None else torch.float64
        loader = as_loader([next(iter(batches()))], None)
        target, starts = prepare_target(
            model.eval().to(precision), None, loader, batch_spec(model), torch.device("cpu"),
            dtype, full_batch=True,
        )  # fmt: skip
        with pyro.validation_enabled(False):
            first = starts.of_chain(0)
            graph = recorded(target.potential, first)
            vector = starts.of_chain(0)
            both = [
                (value := potential(vector.requires_grad_(True)).sum(),
                 torch.autograd.grad(value, vector)[0])
                for potential in (graph, target.potential)
            ]  # fmt: skip
        assert (graph == target.potential) == isinstance(model.network.net, Branching)
        for one, other in zip(*both, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_cases_of_two_sizes_count_once_each() -> None:
    """U of both is the sum of theirs with the prior once."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = BayesianClassifier(net, ["no", "yes"]).eval()
    torch.manual_seed(0)
    parts = [
        {"image": torch.randn(number, 1, size, size), "label": torch.arange(number) % 2}
        for number, size in ((5, 8), (3, 6))
    ]
    vector, found = torch.randn(model.network.layout.num_weights), []
    for given in ([parts[0]], [parts[1]], parts, [*parts, *parts]):
        loader = as_loader(given, None)
        target, _ = prepare_target(
            model, None, loader, batch_spec(model), torch.device("cpu"), None, full_batch=True
        )
        assert len(target.pieces) == len(given)
        found.append(target.potential(vector))
        assert found[-1].dtype == torch.float32
    prior = model.network.prior_distribution().log_prob(vector)
    assert torch.allclose(found[2], found[0] + found[1] + prior, rtol=1e-5)
    assert torch.allclose(found[3], 2 * found[2] + prior, rtol=1e-5)


# --- what is refused


class AlwaysDropping(nn.Module):
    """A network that draws random numbers itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 2)

    def forward(self, image: Tensor) -> Tensor:
        return functional.dropout(self.linear(image.flatten(1)), 0.5)


class WithDropout(BayesianClassifier):
    """A program with a dropout layer of its own."""

    def __init__(self) -> None:
        super().__init__(killed_runs.sampled_network(), ["no", "yes"])
        self.drop = nn.Dropout(0.2)


def duq() -> Any:
    return DUQClassifier(killed_runs.sampled_network(), ["no", "yes"], 2, batch_size=12)


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "loss": (
        lambda: sampled_model(likelihood="focal"),
        batches,
        "trained by a loss .* no posterior to sample",
    ),
    "follows steps": (duq, batches, "moves buffers after every step|trained by a loss"),
    "batch norm": (killed_runs.classifier, batches, "batch_norm='frozen'"),
    "dropout": (WithDropout, batches, r"Dropout\(p=0.2\), random masks"),
    "random": (
        lambda: BayesianClassifier(AlwaysDropping(), ["no", "yes"]),
        batches,
        "draws random numbers that are no latents",
    ),
    "latents per case": (
        lambda: LatentClassifier(1, ["no", "yes"], width=4),
        batches,
        "has one value per case",
    ),
    "augmentation": (
        sampled_model,
        lambda: batches(augment=flips_and_turns),
        "batches have augment",
    ),
}


@pytest.mark.parametrize("kernel", [NUTS(), SGLD(1e-4)], ids=["nuts", "sgld"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_fixed_posterior_is_refused(name: str, kernel: Any) -> None:
    build, data, fault = REFUSED[name]
    with pytest.raises(ValueError, match=fault):
        sample(build(), data(), kernel, draws=2, warm_up=20, chains=1, progress=False)


def test_batches_that_leave_cases_out_are_refused() -> None:
    with pytest.raises(ValueError, match="a pass over batches has 36 cases, but num_cases is 44"):
        sample(sampled_model(), batches(drop_last=True), NUTS(), draws=2, progress=False)


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: NUTS(max_tree_depth=0), "max_tree_depth"),
        (lambda: NUTS(target_accept=1.0), "target_accept"),
        (lambda: HMC(-1.0), "trajectory_length"),
        (lambda: SGLD(0.0), "step_size"),
        (lambda: SGLD(1e-3, cycle=1), "cycle"),
        (lambda: SGHMC(1e-3, momentum=1.0), "momentum"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        make()


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"draws": 0}, "draws"),
        ({"warm_up": 3}, "warm_up must be at least 20"),
        ({"resume": True}, "resume=True needs a checkpoint"),
        ({"checkpoint": "run.safetensors"}, "checkpoint"),
        ({"kernel": SGLD(1e-3, cycle=10), "thin": 3}, "thin must be at most 2"),
        ({"start": MeanFieldNormal(sampled_model(site="other"))}, "start proposes no 'weights'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options: dict[str, Any], fault: str) -> None:
    settings: dict[str, Any] = {"kernel": NUTS(), "draws": 2, "warm_up": 20, "chains": 1} | options
    kernel = settings.pop("kernel")
    with pytest.raises(ValueError, match=fault):
        sample(sampled_model(), batches(), kernel, progress=False, **settings)
    with pytest.raises(ValueError, match=r"kernel must be NUTS\(\), .* got 'nuts'"):
        check_kernel("nuts")


def test_a_potential_that_is_not_finite_names_the_step() -> None:
    with pytest.raises(FloatingPointError, match=r"at step \d+ of chain 0. .* smaller step_size"):
        sample(sampled_model(), batches(), SGLD(1e6), draws=50, warm_up=0, progress=False)
    huge = killed_runs.cases()
    huge["image"][3] = 3e38
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 2))
    model = BayesianClassifier(network, ["no", "yes"])
    with pytest.raises(ValueError, match="none has a finite posterior density"):
        sample(model, Batches(huge), NUTS(), draws=2, warm_up=20, progress=False)


def test_parameters_without_a_prior_are_told() -> None:
    network = nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 2))
    model = BayesianClassifier(network, ["no", "yes"])
    before = checkpoint.digest([(model, None)])
    with pytest.warns(UserWarning, match=r"network.net.1.weight, network.net.1.bias .* stay as"):
        sample(model, batches(), SGLD(1e-4), draws=2, warm_up=0, chains=1, progress=False)
    assert checkpoint.digest([(model, None)]) == before


def test_trajectories_that_diverge_are_told() -> None:
    kernel = NUTS(step_size=50.0)
    with pytest.warns(UserWarning, match="of the trajectories diverged"):
        guide = sample(sampled_model(), batches(), kernel, draws=3, warm_up=0, progress=False)
    stats = guide.sample_stats()
    assert stats is not None and bool(stats["diverging"].any())
