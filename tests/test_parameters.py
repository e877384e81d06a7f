"""Whose parameters are whose: programs share a process, and Pyro's store, without touching."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from ppl_med.inference import (
    Ensemble,
    MeanFieldNormal,
    checkpoint,
    fit,
    functions,
    load,
    predict,
    save,
)
from ppl_med.models import BayesianClassifier
from ppl_med.programs.isolation import private_store
from ppl_med.programs.parameters import named_modules_of

CASES = 12


def batches(seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(CASES, 1, 4, 4, generator=generator)
    return [{"image": image, "label": (image.sum((1, 2, 3)) > 0).long()}]


def classifier() -> BayesianClassifier:
    return BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), ["a", "b"])


def train(model: Any, guide: Any, seed: int = 0, **options: Any) -> xr.Dataset:
    options = {"epochs": 5, "learning_rate": 0.05, **options}
    return fit(model, guide, batches(seed), progress=False, device="cpu", **options)


def probs(model: Any, guide: Any) -> np.ndarray:
    tree = predict(model, guide, batches(), draws=4, progress=False, device="cpu")
    return np.asarray(tree["posterior/probs"])


def values(*programs: nn.Module) -> dict[str, Tensor]:
    found = {f"{i}.{n}": v for i, p in enumerate(programs) for n, v in p.state_dict().items()}
    return {name: value.clone() for name, value in found.items() if isinstance(value, Tensor)}


def assert_same(first: Any, second: Any) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal])
def test_stock_guides_of_one_kind_do_not_share_parameters(kind: Callable[[Any], Any]) -> None:
    """Pyro alone would let the second guide start from, and overwrite, the first one's values."""
    models = [classifier(), classifier()]
    first, second = kind(models[0]), kind(models[1])
    train(models[0], first, epochs=20)
    trained = values(first)
    before = probs(models[0], first)
    alone = train(models[1], second, seed=1)
    assert_same(values(first), trained)
    np.testing.assert_array_equal(probs(models[0], first), before)
    assert not np.array_equal(probs(models[1], second), before)
    image = batches()[0]["image"]
    logits = functions(models[0], first, draws=4)[2](image)
    np.testing.assert_allclose(logits.softmax(1).detach(), before[0, 2], rtol=1e-5, atol=1e-7)

    pyro.clear_param_store()
    third = kind(models[1])
    xr.testing.assert_identical(train(models[1], third, seed=1), alone)


def test_members_with_stock_guides_are_single_runs(tmp_path: Path) -> None:
    start = classifier()
    ensemble = Ensemble(start, AutoNormal, members=2, start="keep")
    together = train(start, ensemble, epochs=3)
    for member, (_, guide) in enumerate(ensemble.members):
        pyro.clear_param_store()
        own = classifier()
        own.load_state_dict(start.state_dict())
        single = AutoNormal(own)
        alone = fit(
            own,
            single,
            batches(),
            epochs=3,
            learning_rate=0.05,
            seed=member,
            progress=False,
            device="cpu",
        )
        np.testing.assert_array_equal(together["elbo"].isel(chain=member), alone["elbo"])
        assert_same(values(single), values(guide))
    trained = [values(guide) for _, guide in ensemble.members]
    drawn = probs(start, ensemble)
    assert not np.array_equal(*drawn)
    assert_same(trained, [values(guide) for _, guide in ensemble.members])
    save(tmp_path / "ensemble.pt", start, ensemble)

    pyro.clear_param_store()
    fresh = Ensemble(start, AutoNormal, members=2, start="keep")
    with pytest.raises(ValueError, match=r"first runs: pass example"):
        load(tmp_path / "ensemble.pt", start, fresh)
    modes = {module: module.training for module in fresh.modules()}
    load(tmp_path / "ensemble.pt", start, fresh, example=batches()[0])
    assert all(module.training == mode for module, mode in modes.items())
    np.testing.assert_array_equal(probs(start, fresh), drawn)

    merged = Ensemble(start, AutoNormal, members=2, start="keep")
    for _, guide in merged.members:  # in Pyro's store the second finds the first one's parameters
        guide(**batches()[0])
    with pytest.raises(ValueError, match="share parameters"):
        load(tmp_path / "ensemble.pt", start, merged)


class Scaled(PyroModule):
    """A module with a constrained parameter, which Pyro also keeps in its store."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = PyroParam(torch.ones(2), dist.constraints.positive)
        self.layer = nn.Linear(16, 2)

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        scale: Any = self.scale
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        logits = level + scale * self.layer(image.flatten(1))
        with pyro.plate("case", num_cases or len(image), subsample=image):
            pyro.sample("label", dist.Categorical(logits=logits), obs=label)
        return logits


def test_modules_of_one_kind_do_not_share_parameters() -> None:
    models = [Scaled(), Scaled()]
    guides = [MeanFieldNormal(model, example=batches()[0]) for model in models]
    train(models[0], guides[0])
    trained, before = values(models[0], guides[0]), probs(models[0], guides[0])
    train(models[1], guides[1], seed=1, epochs=9)
    assert not torch.equal(
        values(models[1])["0.scale_unconstrained"], trained["0.scale_unconstrained"]
    )
    drawn = functions(models[0], guides[0], draws=4)
    other = functions(models[1], guides[1], draws=4)
    image = batches()[0]["image"]
    ours, theirs = drawn[3], other[3]
    first = theirs(image)
    for _ in range(2):
        torch.testing.assert_close(theirs(image), first)
        logits = ours(image).softmax(1).detach()
        np.testing.assert_allclose(logits, before[0, 3], rtol=1e-5, atol=1e-7)
    assert_same(values(models[0], guides[0]), trained)


class Shifted(nn.Module):
    """A module that keeps a parameter in Pyro's store."""

    def __init__(self, name: str = "shift") -> None:
        super().__init__()
        self.name = name

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        shift = pyro.param(self.name, torch.zeros(2))
        weights = pyro.sample("w", dist.Normal(torch.zeros(16, 2), 1.0).to_event(2))
        logits = image.flatten(1) @ weights + shift
        with pyro.plate("case", num_cases or len(image), subsample=image):
            pyro.sample("label", dist.Categorical(logits=logits), obs=label)
        return logits


def guide_of(model: Any) -> MeanFieldNormal:
    return MeanFieldNormal(model, example=batches()[0])


def test_a_parameter_that_a_module_keeps_in_the_store_is_trained_and_kept(tmp_path: Path) -> None:
    model = Shifted()
    guide = guide_of(model)
    train(model, guide)
    assert pyro.param("shift").abs().min() > 0
    before = probs(model, guide)
    save(tmp_path / "run.pt", model, guide)
    pyro.clear_param_store()
    other = Shifted()
    own = guide_of(other)
    load(tmp_path / "run.pt", other, own)
    np.testing.assert_array_equal(probs(other, own), before)
    pyro.clear_param_store()
    with pytest.raises(ValueError, match=r"store.*shift.*pass example"):
        load(tmp_path / "run.pt", other, own)
    load(tmp_path / "run.pt", other, own, example=batches()[0])
    np.testing.assert_array_equal(probs(other, own), before)


def test_a_file_holds_no_parameter_of_another_program(tmp_path: Path) -> None:
    first, second = Shifted("left over"), Shifted("own")
    train(first, guide_of(first))
    guide = guide_of(second)
    train(second, guide, checkpoint=tmp_path / "fit.pt")
    save(tmp_path / "save.pt", second, guide)
    for name in ("fit.pt", "save.pt"):
        pyro.clear_param_store()
        other = Shifted("own")
        load(tmp_path / name, other, guide_of(other))
        assert pyro.get_param_store().keys() == {"own"}
        pyro.param("left over", torch.zeros(2))
        save(tmp_path / "again.pt", other, guide_of(other))
        assert list(checkpoint.read(tmp_path / "again.pt")["states"][0]["store"]) == ["own"]


def test_members_may_not_share_a_parameter_of_the_store() -> None:
    model = Shifted()
    ensemble = Ensemble(model, guide_of, members=2, start="keep")
    with pytest.raises(ValueError, match=r"Ensemble share.*pyro\.param"):
        train(model, ensemble)


class Owner(PyroModule):
    def __init__(self, value: float) -> None:
        super().__init__("owner")
        self.value = PyroParam(torch.tensor(value), dist.constraints.positive)

    def forward(self) -> Any:
        return self.value


def test_a_private_store_holds_free_parameters_only() -> None:
    store = pyro.get_param_store()
    free = pyro.param("free", torch.tensor(1.0))
    assert Owner(2.0)().item() == pytest.approx(2)
    assert Owner(3.0)().item() == pytest.approx(2)  # what Pyro does
    with pytest.raises(KeyError), private_store():
        assert set(store.keys()) == {"free"}
        assert Owner(3.0)().item() == pytest.approx(3)
        assert pyro.param("free") is free
        pyro.param("new", torch.tensor(4.0), constraint=dist.constraints.positive)
        raise KeyError
    assert set(store.keys()) == {"free", "new", "owner.value"}
    assert pyro.param("free") is free
    assert pyro.param("new").item() == pytest.approx(4)


net = nn.Linear(1, 1)


def test_networks_that_a_function_reaches() -> None:
    inner, other = nn.Linear(1, 1), nn.Linear(1, 1)

    def helper(image: Tensor) -> Tensor:
        return inner(image)

    def model(image: Tensor) -> Tensor:
        return net(helper(image))

    def decorated(image: Tensor, extra: Any = None) -> Tensor:
        return model(image)

    class Holder:
        def method(self, image: Tensor) -> Tensor:
            return other(image)

    def names(program: Any) -> dict[str, nn.Module]:
        return {name.split(".")[-1]: module for name, module in named_modules_of(program).items()}

    assert names(net) == {"": net}
    assert names(helper) == {"inner": inner}
    assert names(model) == names(decorated) == {"net": net, "inner": inner}
    assert names(Holder().method) == {"other": other}
    assert names(nn.Sequential(net).forward)["self"][0] is net  # type: ignore[index]
    partial = functools.partial(decorated, extra=other)
    assert names(partial) == {"extra": other, "net": net, "inner": inner}
    assert names(None) == names(print) == {}


def test_functions_that_call_each_other_are_read_once() -> None:
    inner = nn.Linear(1, 1)

    def first(image: Tensor, depth: int) -> Tensor:
        return second(inner(image), depth - 1) if depth else image

    def second(image: Tensor, depth: int) -> Tensor:
        return first(image, depth)

    assert list(named_modules_of(first).values()) == [inner]


def test_a_guide_is_built_without_a_trace_on_the_model() -> None:
    """It runs the model once: norm statistics, modes and generators must not show it."""

    class Normed(Scaled):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 2))  # type: ignore[assignment]

    model = Normed()
    before, generator = values(model), torch.get_rng_state()
    MeanFieldNormal(model, example=batches()[0])
    assert_same(values(model), before)
    assert model.training and model.layer[0].training  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), generator)
