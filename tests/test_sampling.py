"""Samplers: every kernel through the contract, resumed runs, and what is refused."""

import os
import signal
from functools import cache
from pathlib import Path
from typing import Any

import arviz_stats
import killed_runs
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from killed_runs import KERNELS, Moment, differences, sampled_model
from processes import run_apart
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
    functions,
    load,
    load_chains,
    predict,
    sample,
    save,
)
from ppl_med.inference.guides.kept_draws import KeptChains
from ppl_med.inference.sampling.contract import check_kernel
from ppl_med.inference.sampling.sampler import Sampler
from ppl_med.models import BayesianClassifier, DUQClassifier, LatentClassifier

KILLED = -9
COMMON = {"step_size"}
HAMILTONIAN = {*COMMON, "acceptance_rate", "diverging", "n_steps", "energy", "lp"}
every_kernel = pytest.mark.parametrize("name", KERNELS)


def batches(**options: Any) -> Batches:
    return Batches(killed_runs.cases(), batch_size=12, **options)


@cache
def sampled(name: str) -> tuple[BayesianClassifier, KeptChains, xr.DataTree]:
    """A short run of a kernel, and its prediction."""
    model = sampled_model()
    guide = killed_runs.sample_chains(name, model)
    return model, guide, predict(model, guide, batches(), progress=False, device="cpu")


# --- the contract


@every_kernel
def test_draws_are_predicted_one_by_one(name: str) -> None:
    model, guide, tree = sampled(name)
    probs = tree["posterior"].dataset["probs"]
    assert dict(probs.sizes) == {"chain": 2, "draw": 6, "case": killed_runs.CASES, "class": 2}
    weights = guide.posterior()["posterior"].dataset["weights"].values
    assert len(np.unique(weights[..., 0])) > 1
    assert not np.array_equal(weights[0], weights[1])
    image = torch.from_numpy(killed_runs.cases()["image"])
    found = torch.stack([function(image).softmax(-1) for function in functions(model, guide)])
    expected = probs.values.reshape(found.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    views = model.network.layout.views(torch.from_numpy(weights[1, 2]))
    own = torch.func.functional_call(model.network.net.eval(), views, image)
    np.testing.assert_allclose(own.softmax(-1), expected[8], atol=1e-5)


@every_kernel
def test_fewer_draws_are_evenly_spaced(name: str) -> None:
    model, guide, tree = sampled(name)
    few = predict(model, guide, batches(), draws=3, progress=False, device="cpu")
    for group, variable in (("posterior", "probs"), ("sample_stats", "step_size")):
        found = few[group].dataset[variable].values
        assert np.array_equal(found, tree[group].dataset[variable].values[:, [0, 2, 5]])
    with pytest.raises(ValueError, match=r"draws must be .* from 1 to 6, got 7; 6 were kept"):
        predict(model, guide, batches(), draws=7, progress=False)


@every_kernel
def test_figures_of_the_sampler_stand_in_sample_stats(name: str, tmp_path: Path) -> None:
    model, guide, tree = sampled(name)
    stats = tree["sample_stats"].to_dataset()
    assert dict(stats.sizes) == {"chain": 2, "draw": 6}
    tree_depth = {"tree_depth"} if name.startswith("nuts") else set()
    full = name.startswith(("nuts", "hmc"))
    assert set(stats.data_vars) == (HAMILTONIAN | tree_depth if full else COMMON)
    assert (stats["step_size"] > 0).all() and stats.attrs["kernel"].startswith(name[:2].upper())
    if full:
        assert stats["acceptance_rate"].min() >= 0 and stats["acceptance_rate"].max() <= 1
        # The energy at the start of a trajectory: kinetic energy is added to -lp of the draw before
        kinetic = stats["energy"].values[:, 1:] + stats["lp"].values[:, :-1]
        assert (kinetic > 0).all()
    table = arviz_stats.summary(guide.posterior(), var_names=["weights"])
    assert len(table) == model.network.layout.num_weights
    store = predict(model, guide, batches(), store=tmp_path / "run.zarr", progress=False)
    xr.testing.assert_equal(store["sample_stats"].to_dataset().load(), stats)


@every_kernel
def test_saved_chains_are_loaded_whole(name: str, tmp_path: Path) -> None:
    model, guide, tree = sampled(name)
    path = tmp_path / ("run.safetensors" if "nuts" in name else "run.pt")
    save(path, model, guide)
    other = sampled_model()
    with torch.no_grad():
        other.network.net[-1].bias.add_(1.0)
    again = load_chains(path, other)
    assert again.attrs == guide.attrs
    back = predict(other, again, batches(), progress=False, device="cpu")
    for group in ("posterior", "sample_stats", "log_likelihood"):
        xr.testing.assert_identical(back[group].to_dataset(), tree[group].to_dataset())
    load(path, other, again)
    save(tmp_path / "other.pt", model, PointEstimate(model))
    with pytest.raises(ValueError, match="holds no chains of draws"):
        load_chains(tmp_path / "other.pt", model)


@every_kernel
def test_the_same_seed_gives_the_same_draws(name: str) -> None:
    model, guide, _ = sampled(name)
    before = checkpoint.digest([(model, None)])
    generator = torch.get_rng_state()
    assert checkpoint.digest([(model, killed_runs.sample_chains(name, model))]) == (
        checkpoint.digest([(model, guide)])
    )
    assert checkpoint.digest([(model, None)]) == before
    assert torch.equal(torch.get_rng_state(), generator)
    other = killed_runs.sample_chains(name, model, seed=6)
    assert not torch.equal(other.chains[0].draw(0)["weights"], guide.chains[0].draw(0)["weights"])


@every_kernel
def test_double_precision_leaves_the_model_as_it_was(name: str) -> None:
    model, _, _ = sampled(name)
    dtypes = []
    handle = model.network.net.register_forward_pre_hook(
        lambda _, inputs: dtypes.append(inputs[0].dtype)
    )
    try:
        guide = killed_runs.sample_chains(name, model, dtype="float64")
    finally:
        handle.remove()
    assert set(dtypes) == {torch.float64}
    assert guide.chains[0].draw(0)["weights"].dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.get_default_dtype() == torch.float32
    predict(model, guide, batches(), progress=False, device="cpu")


# --- resumed runs


class Stopped(Exception):
    """Ends a run in the middle."""


def stop_at(monkeypatch: Any, steps: int) -> None:
    take, count = Sampler._take, 0

    def counted(self: Sampler, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count > steps:
            raise Stopped
        take(self, *arguments)

    monkeypatch.setattr(Sampler, "_take", counted)


@every_kernel
def test_a_resumed_run_equals_the_whole_one(name: str, tmp_path: Path) -> None:
    """Stopped in the warm-up, among the draws, and in the second chain."""
    model, guide, _ = sampled(name)
    path = tmp_path / "run.pt"
    options: dict[str, Any] = {"checkpoint": path, "checkpoint_every": 0, "resume": True}
    for steps in (9, 17, 11):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
            stop_at(patch, steps)
            killed_runs.sample_chains(name, model, **options)
    found = killed_runs.sample_chains(name, model, **options)
    for one, other in zip(found.chains, guide.chains, strict=True):
        assert differences(dict(one.state_dict()), dict(other.state_dict())) == []
    with pytest.MonkeyPatch.context() as patch:  # a whole run is read
        stop_at(patch, 0)
        killed_runs.sample_chains(name, model, **options)
    for change, fault in (
        ({"seed": 6}, "seed is 6"),
        ({"kernel": SGLD(1e-6)}, "kernel is SGLD"),
        ({"dtype": "float64"}, "dtype is float64"),
    ):
        with pytest.raises(ValueError, match=fault):
            killed_runs.sample_chains(name, model, **{**options, **change})
    with pytest.raises(FileExistsError, match="resume=True"):
        killed_runs.sample_chains(name, model, checkpoint=path)
    with pytest.raises(ValueError, match="not by fit"):
        killed_runs.run_fit(model, path)


@pytest.mark.parametrize("name", ["nuts", "sghmc"])
def test_a_killed_run_equals_the_whole_one(name: str, tmp_path: Path) -> None:
    _, guide, _ = sampled(name)
    for call in (14, 31):
        moment = Moment(call, 0.002)
        assert run_apart(killed_runs.sample_apart, name, tmp_path, moment) == KILLED
        checkpoint.read(tmp_path / "run.pt")
    assert run_apart(killed_runs.sample_apart, name, tmp_path, None) == 0
    found = load_chains(tmp_path / "chains.pt", sampled_model())
    for one, other in zip(found.chains, guide.chains, strict=True):
        assert differences(dict(one.state_dict()), dict(other.state_dict())) == []


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, monkeypatch: Any) -> None:
    take = Sampler._take

    def interrupted(self: Sampler, *arguments: Any) -> None:
        take(self, *arguments)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Sampler, "_take", interrupted)
    with pytest.raises(KeyboardInterrupt, match="nothing is kept; with checkpoint="):
        killed_runs.sample_chains("sgld", sampled_model())
    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt, match=r"after 1 steps of chain 0; .* resume=True"):
        killed_runs.sample_chains("sgld", sampled_model(), checkpoint=path)
    assert checkpoint.read(path)["step"] == 1


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
    for chain, (_, member) in zip(guide.chains, ensemble.members, strict=True):
        expected = member.center()
        assert torch.allclose(chain.draw(0)["weights"], expected, atol=1e-4)


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
        lambda: LatentClassifier(1, ["no", "yes"], width=4, norm=None),
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
        (lambda: HMC(mass="full"), "mass must be 'diagonal', 'dense' or 'identity'"),
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
    assert bool(guide.sample_stats()["diverging"].any())
