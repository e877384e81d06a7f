"""Best epoch, early stopping, clipping, accumulation, plateaus: each by itself, and resumed."""

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from killed_runs import differences
from torch import nn

from ppl_med.data import Batches
from ppl_med.inference import (
    ConditionalNormal,
    EarlyStopping,
    Elbo,
    Ensemble,
    Geco,
    ImportanceWeighted,
    MeanFieldNormal,
    Plateau,
    PointEstimate,
    StopTraining,
    checkpoint,
    fit,
    load,
    one_cycle,
)
from ppl_med.inference.training import precision, trainer
from ppl_med.inference.training.heldout import heldout_nll
from ppl_med.inference.training.schedules import rate_at
from ppl_med.inference.training.selection import best_epoch
from ppl_med.inference.training.settings import Settings
from ppl_med.inference.training.trainer import Trainer
from ppl_med.models import BayesianClassifier, LatentClassifier
from ppl_med.networks import GaussianEncoder

CASES, SIZE, CLASSES = 14, 4, ("a", "b")
BATCHES = -(-CASES // SIZE)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "VALIDATION_DRAWS", 2)


def cases(num_cases: int = CASES, seed: int = 0, size: int = SIZE, **options: Any) -> Batches:
    """Labels that say little of the image, so that learning them by heart is easy."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(num_cases, 1, 8, 8)).astype("float32")
    label = (image[:, 0, 0].mean(-1) + 0.3 * rng.normal(size=num_cases) > 0).astype(int)
    return Batches({"image": image, "label": label}, batch_size=size, **options)


def held_out() -> Batches:
    return cases(40, seed=5, size=40)


def classifier(*norms: nn.Module) -> BayesianClassifier:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), *norms, nn.Tanh(), nn.Linear(4, 2))
    return BayesianClassifier(net, CLASSES)


def train(model: Any, guide: Any, batches: Any = None, **options: Any) -> xr.Dataset:
    settings: dict[str, Any] = {
        "epochs": 3,
        "learning_rate": 0.005,
        "seed": 1,
        "progress": False,
        "device": "cpu",
    }
    return fit(model, guide, batches or cases(shuffle=True), **(settings | options))


def weights(guide: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in guide.parameters()])


# ------------------------------------------------------------------------- the best epoch


def test_the_best_epoch_is_kept(tmp_path: Path) -> None:
    model, path = classifier(), tmp_path / "run.pt"
    guide = PointEstimate(model, use_prior=False)
    seen: list[torch.Tensor] = []
    history = train(
        model,
        guide,
        validation=held_out(),
        keep="best",
        epochs=8,
        checkpoint=path,
        callbacks=[lambda _: seen.append(weights(guide))],
    )
    best = int(history["best_epoch"])
    scores = history["validation_nll"]
    assert 0 < best < 7 and best == int(np.argmin(scores.values)), "else the data show nothing"
    assert torch.equal(weights(guide), seen[best]) and not torch.equal(seen[-1], seen[best])
    again = heldout_nll(model, guide, held_out(), torch.device("cpu"), trainer.VALIDATION_DRAWS, 1)
    assert again == float(scores[best])
    other = classifier()
    loaded = PointEstimate(other)
    load(path, other, loaded)
    assert torch.equal(weights(loaded), seen[best])
    assert history.attrs["keep"] == "best"


def test_training_stops_after_epochs_without_improvement() -> None:
    model = classifier()
    options: dict[str, Any] = {"validation": held_out(), "epochs": 12}
    whole = train(model, PointEstimate(model, use_prior=False), **options)
    model = classifier()
    stopped = train(
        model,
        PointEstimate(model, use_prior=False),
        stopping=EarlyStopping(patience=3),
        **options,
    )
    scores = whole["validation_nll"].values
    expected = next(
        epoch + 1
        for epoch in range(3, 12)
        if scores[epoch - 2 : epoch + 1].min() >= min(scores[: epoch - 2])
    )
    assert stopped.sizes["validation_epoch"] == expected < 12
    assert str(stopped["stopped_by"].values) == "no improvement"
    xr.testing.assert_equal(stopped["nll"], whole["nll"].isel(step=slice(expected * BATCHES)))


def test_scores_that_are_not_finite_are_never_the_best() -> None:
    assert best_epoch([math.nan, 2.0, 1.0, 1.0, math.inf]) == 2
    assert best_epoch([math.nan]) is None
    assert EarlyStopping(patience=2).is_over([1.0, math.nan, math.nan])
    assert not EarlyStopping(patience=2).is_over([1.0, math.nan, 0.5])
    assert EarlyStopping(patience=2, min_delta=0.1).is_over([1.0, 0.95, 0.91])


# ------------------------------------------------------------------------- learning rates


def test_a_plateau_is_that_of_torch() -> None:
    scores = np.random.default_rng(0).normal(size=60).cumsum() * 0.1 + 3
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=3, factor=0.5, threshold=0.05, threshold_mode="abs", min_lr=0.01
    )
    mine = Plateau(patience=4, factor=0.5, min_delta=0.05, least=0.01)
    for count, score in enumerate(scores, 1):
        oracle.step(score)
        assert mine.rate(scores[:count].tolist()) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_one_cycle_is_that_of_torch() -> None:
    steps = 50
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    oracle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=steps, cycle_momentum=False
    )
    mine, top = one_cycle(), 0.3 * steps - 1  # torch's first step is already at the start
    for step in range(steps):
        done = 0.3 * step / top if step <= top else 0.3 + (step - top) / steps
        assert mine(done) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        oracle.step()


def test_rates_rise_in_the_warm_up() -> None:
    rates = [rate_at("constant", 0.2, step, 20, 1.0) for step in range(20)]
    assert rates == [0.25, 0.5, 0.75, 1.0] + [1.0] * 16
    assert rate_at("cosine", 0.5, 10, 20, 0.1) == pytest.approx(0.05)


def test_the_history_shows_the_rate_of_a_plateau() -> None:
    model = classifier()
    history = train(
        model,
        PointEstimate(model, use_prior=False),
        validation=held_out(),
        schedule=Plateau(patience=1, factor=0.5),
        epochs=8,
    )
    by_epoch = history["learning_rate"].values.reshape(8, BATCHES)
    scores = history["validation_nll"].values.tolist()
    expected = [0.005 * Plateau(1, 0.5).rate(scores[:epoch]) for epoch in range(8)]
    np.testing.assert_allclose(by_epoch, np.repeat([expected], BATCHES, 0).T)
    assert len(set(expected)) > 2


# ------------------------------------------------------------------------- accumulation


@pytest.mark.parametrize("batches", [2, 3, 9])
@pytest.mark.parametrize("objective", [Elbo, lambda: Geco(0.5, rate=0.1)], ids=["elbo", "geco"])
def test_a_step_of_several_batches_is_that_of_one_large_batch(
    batches: int, objective: Callable[[], Any]
) -> None:
    """Also where the last step of an epoch has fewer batches, and its last batch fewer cases."""
    found = []
    for size, accumulate in ((SIZE, batches), (batches * SIZE, 1)):
        model = classifier()
        guide = PointEstimate(model)
        history = train(
            model,
            guide,
            cases(size=size),
            accumulate=accumulate,
            clip_norm=0.4,
            schedule="cosine",
            objective=objective(),
            optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
        )
        found.append((weights(guide), history))
    (several, by_batches), (one, whole) = found
    torch.testing.assert_close(several, one, rtol=1e-6, atol=1e-6)
    xr.testing.assert_allclose(by_batches, whole, rtol=1e-5, atol=1e-6)
    assert by_batches.sizes["step"] == 3 * -(-BATCHES // batches)
    assert (whole["gradient_norm"] > 0.4).any(), "else nothing was clipped"


@pytest.mark.filterwarnings("ignore:posterior collapse")
def test_latents_of_each_case_weigh_as_before_in_accumulated_steps() -> None:
    """Their KL is a closed form, whatever is drawn; 4 batches in steps of 3."""
    kl = []
    for accumulate in (1, 3):
        torch.manual_seed(0)
        model = LatentClassifier(1, CLASSES, width=2)
        guide = ConditionalNormal(GaussianEncoder(1, 2, 2, num_classes=2))
        still: Any = {"optimizer": lambda ps: torch.optim.SGD(ps, lr=0.0), "epochs": 1}
        kl.append(train(model, guide, accumulate=accumulate, **still)["kl"].values)
    assert len(kl[1]) == 2
    assert kl[0].mean() == pytest.approx(kl[1].mean(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:posterior collapse")
def test_steps_under_the_elbo_are_steps_and_not_batches() -> None:
    torch.manual_seed(0)
    model = LatentClassifier(1, CLASSES, width=2)
    guide = ConditionalNormal(GaussianEncoder(1, 2, 2, num_classes=2))
    objective = ImportanceWeighted(3, elbo_steps=2)
    history = train(model, guide, objective=objective, accumulate=3, epochs=2)
    tight = ~np.isclose(history["bound"], history["elbo"])
    assert tight.tolist() == [False, False, True, True]


def test_gradients_are_clipped_as_torch_clips_them() -> None:
    """A step of SGD is the gradient times the rate, and no longer than the limit."""
    for limit in (None, 1e-3):
        model = classifier()
        guide = PointEstimate(model)
        before = weights(guide)
        options: Any = {"optimizer": lambda ps: torch.optim.SGD(ps, lr=1.0), "epochs": 1}
        history = train(model, guide, [next(iter(cases()))], clip_norm=limit, **options)
        length = float((weights(guide) - before).norm())
        if limit is None:
            whole = length
            assert "gradient_norm" not in history
        else:
            assert float(history["gradient_norm"][0]) == pytest.approx(whole, rel=1e-5)
            assert length == pytest.approx(limit, rel=1e-3) and whole > 10 * limit


# ------------------------------------------------------------------------- resumed


def everything() -> dict[str, Any]:
    return {
        "validation": held_out(),
        "keep": "best",
        "stopping": EarlyStopping(patience=2),
        "schedule": Plateau(patience=1, factor=0.5),
        "clip_norm": 0.5,
        "accumulate": 3,
        "rate_warm_up": 0.1,
        "average": 0.9,
    }


SCENARIOS: dict[str, Callable[[], dict[str, Any]]] = {
    "best": lambda: {"validation": held_out(), "keep": "best"},
    "accumulated": lambda: {"accumulate": 3, "clip_norm": 0.5, "objective": Geco(0.5, rate=0.1)},
    "averaged": lambda: {"average": 0.9, "accumulate": 2, "validation": held_out()},
    "everything": everything,
    "ensemble": everything,
}


def programs(scenario: str) -> tuple[Any, Any]:
    model = classifier(*([nn.BatchNorm1d(4)] if scenario == "averaged" else []))
    if scenario == "ensemble":
        return model, Ensemble(model, PointEstimate, members=2)
    return model, MeanFieldNormal(model, init_scale=0.3)


def different(*paths: Path) -> list[str]:
    """Where two checkpoints differ, but for Python's generator, which beartype draws from."""
    first, second = map(checkpoint.read, paths)
    found = differences(first, second)
    return [path for path in found if "/python/" not in path]


class Killed(BaseException):
    pass


def killed(at: int, monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> bool:
    """Run until a batch, counted from 1, that is not trained; whether it came so far."""
    step, calls = Trainer._step, 0

    def counted(self: Any, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Killed
        step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", counted)
        try:
            run()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("scenario", ["accumulated", "averaged", "ensemble"])
def test_killed_and_resumed_equals_the_whole_run(
    scenario: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epochs": 4, "checkpoint_every": 0.0, "resume": True}

    def run(name: str) -> xr.Dataset:
        model, guide = programs(scenario)
        found = train(model, guide, checkpoint=tmp_path / name, **options, **SCENARIOS[scenario]())
        states.append(weights(guide))
        return found

    states: list[torch.Tensor] = []
    whole = run("whole.pt")
    times = 0
    while killed(7, monkeypatch, lambda: run("part.pt")):
        times += 1
    assert times > 1
    xr.testing.assert_identical(run("part.pt"), whole)
    assert different(tmp_path / "whole.pt", tmp_path / "part.pt") == []
    assert all(torch.equal(states[0], state) for state in states[1:])


@pytest.mark.parametrize("scenario", ["accumulated", "averaged", "ensemble"])
def test_a_run_trained_further_equals_the_longer_run(scenario: str, tmp_path: Path) -> None:
    settings = SCENARIOS[scenario]()
    settings |= {"rate_warm_up": 0.0, "learning_rate": 0.1}
    if scenario == "ensemble":
        settings["stopping"] = EarlyStopping(patience=9)
    found = []
    for name, all_epochs in (("long.pt", [4]), ("short.pt", [2, 4])):
        for epochs in all_epochs:
            model, guide = programs(scenario)
            history = train(
                model, guide, epochs=epochs, checkpoint=tmp_path / name, resume=True, **settings
            )
            if scenario == "ensemble" and epochs == 2:
                assert (history["best_epoch"] == 0).any(), "else last and best are the same"
        found.append((weights(guide), history))
    (whole, long), (parts, short) = found
    xr.testing.assert_identical(short, long)
    assert torch.equal(whole, parts)
    assert different(tmp_path / "long.pt", tmp_path / "short.pt") == []


def test_a_schedule_of_the_finished_fraction_says_what_happens_to_it(tmp_path: Path) -> None:
    options: Any = {"checkpoint": tmp_path / "run.pt", "resume": True, "schedule": "cosine"}
    model, guide = programs("best")
    train(model, guide, epochs=2, **options)
    with pytest.warns(UserWarning, match="schedule is a function of the finished fraction"):
        history = train(model, guide, epochs=4, **options)
    assert history.sizes["step"] == 4 * BATCHES


def test_a_run_that_stopped_early_stays_stopped_until_its_patience_is_longer(
    tmp_path: Path,
) -> None:
    options: Any = {"checkpoint": tmp_path / "run.pt", "resume": True, "epochs": 12}
    options["validation"] = held_out()

    def run(**more: Any) -> int:
        model = classifier()
        guide = PointEstimate(model, use_prior=False)
        return train(model, guide, **(options | more)).sizes["validation_epoch"]

    first = run(stopping=EarlyStopping(patience=2))
    assert first < 12
    assert run(stopping=EarlyStopping(patience=2)) == first
    assert run(stopping=EarlyStopping(patience=2), epochs=14) == first
    assert first < run(stopping=EarlyStopping(patience=4), epochs=14)


# ------------------------------------------------------------------------- ensembles


def test_members_stop_each_in_their_own_time() -> None:
    model = classifier()
    ensemble = Ensemble(model, lambda own: PointEstimate(own, use_prior=False), members=3)
    options: Any = {"validation": held_out(), "keep": "best", "epochs": 12}
    options["stopping"] = EarlyStopping(patience=2)
    history = train(model, ensemble, **options)
    lengths = history["validation_nll"].notnull().sum("validation_epoch").values
    assert len(set(lengths.tolist())) > 1, "else the data show nothing"
    assert history.sizes["step"] == BATCHES * lengths.max()
    assert history["epoch"].values.tolist() == np.repeat(range(lengths.max()), BATCHES).tolist()
    assert (history["nll"].notnull().sum("step") == BATCHES * lengths).all()
    np.testing.assert_array_equal(
        history["best_epoch"], history["validation_nll"].fillna(np.inf).argmin("validation_epoch")
    )


# ------------------------------------------------------------------------- callbacks


def test_callbacks_see_every_epoch_and_stop_the_run() -> None:
    seen: list[xr.Dataset] = []

    def watch(history: xr.Dataset) -> bool:
        seen.append(history)
        return history.attrs["epoch"] == 2

    model = classifier()
    history = train(model, MeanFieldNormal(model), epochs=5, callbacks=[watch])
    assert [one.sizes["step"] for one in seen] == [BATCHES, 2 * BATCHES]
    assert {"member": 0, "members": 1, "epoch": 2, "epochs": 5} == seen[-1].attrs
    xr.testing.assert_equal(history.drop_vars("stopped_by"), seen[-1])
    assert str(history["stopped_by"].values) == "callback watch"


def test_a_callback_changes_nothing_by_what_it_draws_or_writes() -> None:
    def meddle(history: xr.Dataset) -> None:
        torch.randn(3), np.random.random()  # noqa: NPY002
        history["nll"][:] = 0.0

    found = []
    for callbacks in ([], [meddle]):
        model = classifier()
        found.append(train(model, MeanFieldNormal(model), callbacks=callbacks)["nll"].values)
    np.testing.assert_array_equal(found[0], found[1])


def test_a_callback_that_fails_does_not_lose_the_run(tmp_path: Path) -> None:
    calls = []

    def broken(history: xr.Dataset) -> None:
        calls.append(1)
        raise OSError("the network is down")

    def stop(history: xr.Dataset) -> None:
        if history.attrs["epoch"] == 3:
            raise StopTraining("good enough")

    model = classifier()
    with pytest.warns(UserWarning, match="broken failed and is left out.*network is down"):
        history = train(model, PointEstimate(model), epochs=5, callbacks=[broken, stop])
    assert len(calls) == 1 and history.sizes["step"] == 3 * BATCHES
    assert str(history["stopped_by"].values) == "good enough"
    # One that must not be caught leaves the run in the checkpoint.
    path = tmp_path / "run.pt"

    def leave(history: xr.Dataset) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        train(model, PointEstimate(model), checkpoint=path, callbacks=[leave], seed=3)
    assert len(checkpoint.read(path)["histories"][0]["nll"]) == BATCHES


# ------------------------------------------------------------------------- bad arguments


def refused(message: str, **options: Any) -> None:
    """Types that beartype refuses in tests are refused by fit elsewhere."""
    arguments = inspect.signature(Settings).parameters
    known = {n: p.default for n, p in inspect.signature(fit).parameters.items() if n in arguments}
    with pytest.raises(ValueError, match=message):
        Settings(**(known | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "best"}, "keep='best' looks at held-out cases.*pass validation"),
        ({"stopping": EarlyStopping()}, "stopping looks at held-out cases"),
        ({"schedule": "plateau"}, "schedule='plateau' looks at held-out cases"),
        ({"keep": "first"}, "keep must be 'last' or 'best'"),
        ({"stopping": 5}, r"stopping must be None or an EarlyStopping.*Stopping\(patience=5\)"),
        ({"schedule": "linear"}, "schedule must be 'constant', 'cosine', 'one-cycle' or 'plat"),
        ({"rate_warm_up": 1.0}, r"rate_warm_up must be in \[0, 1\)"),
        ({"clip_norm": 0.0}, "clip_norm must be a finite number above 0"),
        ({"accumulate": 0}, "accumulate must be a whole number"),
        ({"average": 1.0}, "average must be strictly between 0 and 1"),
        ({"average": 0.0}, "average must be strictly between 0 and 1"),
        ({"callbacks": [3]}, "callbacks must be a list of functions"),
        ({"callbacks": print}, "callbacks must be a list of functions"),
        ({"precision": "half"}, "precision must be 'auto', 'float32' or 'bfloat16'"),
        ({"learning_rate": {}}, "learning_rate must be a number, or rates by pattern"),
        ({"learning_rate": {"*": -1.0}}, "learning_rate.*must be a finite number, 0 or more"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0"),
    ],
)
def test_arguments_that_make_no_sense_are_named(options: Any, message: str) -> None:
    refused(message, **options)


@pytest.mark.parametrize("capable", [False, True])
def test_the_precision_is_what_the_machine_has(
    capable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: capable)
    model = classifier()
    history = train(model, PointEstimate(model), precision="auto", epochs=1)
    expected = "bfloat16" if capable else "float32"
    assert history.attrs["precision"] == expected
