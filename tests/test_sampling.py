"""Samplers: every kernel through the contract, and resumed runs."""

import os
import signal
from functools import cache
from pathlib import Path
from typing import Any

import arviz_stats
import killed_runs
import numpy as np
import pytest
import torch
import xarray as xr
from killed_runs import KERNELS, Moment, differences, sampled_model, weights_of
from killed_runs import sampled_batches as batches
from processes import run_apart
from torch.utils.data import DataLoader

from ppl_med.inference import (
    SGLD,
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
from ppl_med.inference.sampling.sampler import Sampler
from ppl_med.models import BayesianClassifier

KILLED = -9
COMMON = {"step_size"}
HAMILTONIAN = {*COMMON, "acceptance_rate", "diverging", "n_steps", "energy", "lp"}
every_kernel = pytest.mark.parametrize("name", KERNELS)


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
    weights = weights_of(guide)
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
        # The energy at the start of a trajectory is -lp of the draw before, and kinetic energy.
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
        other.network.net.get_parameter("4.bias").add_(1.0)
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
    assert not np.isclose(weights_of(other)[0, 0], weights_of(guide)[0, 0]).any()


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
    assert weights_of(guide).dtype == np.float32
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


def test_an_order_drawn_from_a_generator_is_resumed(tmp_path: Path) -> None:
    arrays = killed_runs.cases()
    data = [
        {"image": torch.from_numpy(image), "label": label}
        for image, label in zip(arrays["image"], arrays["label"], strict=True)
    ]

    def run(**options: Any) -> KeptChains:
        order = torch.Generator().manual_seed(1)
        loader: Any = DataLoader(data, 12, shuffle=True, generator=order)  # type: ignore[arg-type]
        settings: dict[str, Any] = {"draws": 7, "warm_up": 2, "chains": 2, "device": "cpu"}
        return sample(sampled_model(), loader, SGLD(1e-4), progress=False, **settings, **options)

    whole, path = run(), tmp_path / "run.pt"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, 12)  # in the first epoch of the second chain
        run(checkpoint=path, checkpoint_every=0)
    found = run(checkpoint=path, resume=True)
    for one, other in zip(found.chains, whole.chains, strict=True):
        assert differences(dict(one.state_dict()), dict(other.state_dict())) == []


def test_an_interrupted_run_says_how_to_go_on(
    tmp_path: Path, monkeypatch: Any, request: Any
) -> None:
    take = Sampler._take

    def interrupted(self: Sampler, *arguments: Any) -> None:
        take(self, *arguments)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Sampler, "_take", interrupted)
    # Where the tests run in the background of a shell, the signal is ignored otherwise.
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, earlier))
    with pytest.raises(KeyboardInterrupt, match="nothing is kept; with checkpoint="):
        killed_runs.sample_chains("sgld", sampled_model())
    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt, match=r"after 1 steps of chain 0; .* resume=True"):
        killed_runs.sample_chains("sgld", sampled_model(), checkpoint=path)
    assert checkpoint.read(path)["step"] == 1
