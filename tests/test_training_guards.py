"""What ``fit`` and ``predict`` refuse or finish before work is lost or done for nothing."""

import copy
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

from ppl_med.data import Batches
from ppl_med.inference import (
    BernoulliDropout,
    Ensemble,
    MeanFieldNormal,
    PointEstimate,
    fit,
    functions,
    predict,
)
from ppl_med.models import BayesianClassifier
from ppl_med.programs.isolation import alone

CLASSES = ["no", "yes"]
pytestmark = pytest.mark.usefixtures("types_unchecked")


def arrays(cases: int = 12) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(cases, 1, 2, 2)).astype("float32")
    return {"image": image, "label": np.arange(cases) % 2, "id": np.arange(cases)}


def batches(**options: Any) -> Batches:
    return Batches(arrays(), batch_size=4, **options)


def net(outputs: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, outputs))


def classifier(network: nn.Module | None = None, **options: Any) -> Any:
    return BayesianClassifier(net() if network is None else network, CLASSES, **options)


def train(model: Any, guide: Any, data: Any = None, **options: Any) -> xr.Dataset:
    settings: dict[str, Any] = {"progress": False, "device": "cpu", **options}
    return fit(model, guide, batches() if data is None else data, **settings)


def draw(model: Any, guide: Any, data: Any = None, **options: Any) -> xr.DataTree:
    settings: dict[str, Any] = {"progress": False, "device": "cpu", "draws": 2, **options}
    return predict(model, guide, batches() if data is None else data, **settings)


# --- epochs that repeat each other


def test_epochs_in_a_loop_are_told_that_they_repeat() -> None:
    model = classifier()
    guide = MeanFieldNormal(model)
    data = batches(shuffle=True)
    train(model, guide, data)
    with pytest.warns(UserWarning, match=r"second time with seed=0.*another seed.*epochs="):
        train(model, guide, data)
    train(model, guide, data, seed=1)
    train(model, MeanFieldNormal(model), data)


def test_a_resumed_run_repeats_nothing(tmp_path: Path) -> None:
    model = classifier()
    guide = MeanFieldNormal(model)
    for _ in range(2):
        train(model, guide, checkpoint=tmp_path / "run.pt", resume=True)


# --- training that trains nothing


def test_an_optimizer_without_the_guides_parameters_is_refused() -> None:
    network = net()
    model = classifier(network)
    guide = MeanFieldNormal(model)

    def of_the_net(parameters: Any) -> Any:
        return torch.optim.SGD(network.parameters(), lr=0.1)

    def of_a_part(parameters: Any) -> Any:
        return torch.optim.SGD(parameters[:1], lr=0.1)

    with pytest.raises(ValueError, match=r"lacks 2 of the 2 parameters.*'parts.weights.*requires"):
        train(model, guide, optimizer=of_the_net)
    with pytest.raises(ValueError, match="lacks 1 of the 2 parameters"):
        train(model, guide, optimizer=of_a_part)


class PastTheDraw(nn.Module):
    """Reads one weight from outside its parameters."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.last, self.how = nn.Linear(4, 3), nn.Linear(3, 2), how
        self.kept = [self.first.weight]

    def forward(self, image: Tensor) -> Tensor:
        weight = self.first.weight
        if self.how == "data":
            weight = weight.data
        elif self.how == "kept":
            weight = self.kept[0]
        return self.last(torch.relu(image.flatten(1) @ weight.T + self.first.bias))


@pytest.mark.parametrize("guide", [MeanFieldNormal, PointEstimate, BernoulliDropout])
@pytest.mark.parametrize("how", ["data", "kept"])
def test_weights_that_are_read_past_the_draw_are_refused(how: str, guide: Any) -> None:
    model = classifier(PastTheDraw(how))
    with pytest.raises(ValueError, match=r"does not depend on 1 .*'first.weight'.*where="):
        train(model, guide(model))
    train(*(sound := classifier(PastTheDraw("no")), guide(sound)))


class Auxiliary(nn.Module):
    """A head that runs in training only, and one that never runs."""

    def __init__(self, unused: bool) -> None:
        super().__init__()
        self.net, self.training_head = net(), nn.Linear(4, 2)
        self.unused = nn.Linear(4, 2) if unused else None

    def forward(self, image: Tensor) -> Tensor:
        output = self.net(image)
        return output + self.training_head(image.flatten(1)) if self.training else output


def test_weights_of_training_alone_are_welcome_and_unused_ones_are_not() -> None:
    model = classifier(Auxiliary(unused=False))
    train(model, MeanFieldNormal(model))
    model = classifier(Auxiliary(unused=True))
    with pytest.raises(ValueError, match=r"does not depend on 2 .*'unused.bias'"):
        train(model, MeanFieldNormal(model))
    left_out = classifier(Auxiliary(unused=True), where=lambda name, _: "unused" not in name)
    train(left_out, MeanFieldNormal(left_out))


def test_weights_without_effect_at_the_start_are_welcome() -> None:
    """A last layer of zeros gives the layers before it a gradient of 0, which is one."""
    network = net()
    nn.init.zeros_(network[3].get_parameter("weight"))
    model = classifier(network)
    train(model, PointEstimate(model))


# --- errors that come before the work, with a name


def sgd() -> Any:
    return torch.optim.SGD(net().parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"checkpoint_every": "fast"}, "checkpoint_every must be a finite number, 0 or more"),
        ({"checkpoint_every": -1}, "checkpoint_every must be"),
        ({"resume": True}, "resume=True needs a checkpoint"),
        ({"objective": "elbo"}, r"objective must be Elbo\(\), .*got 'elbo'"),
        ({"optimizer": sgd()}, r"optimizer must be a function.*SGD.*lambda"),
        ({"optimizer": "adam"}, r"optimizer must be a function"),
        ({"optimizer": lambda ps: ps}, r"optimizer\(parameters\) must be a torch optimizer"),
        ({"optimizer": torch.optim.LBFGS}, r"LBFGS evaluates the loss several times a step"),
    ],
    ids=["word", "negative", "resume", "objective", "instance", "name", "list", "lbfgs"],
)
def test_arguments_of_fit_that_came_late_or_without_a_name(change: Any, match: str) -> None:
    model = classifier()
    with pytest.raises(ValueError, match=match):
        train(model, MeanFieldNormal(model), **change)


@pytest.mark.parametrize("verb", [train, draw, functions], ids=["fit", "predict", "functions"])
def test_model_and_guide_in_the_wrong_order(verb: Any) -> None:
    model = classifier()
    for guide in (MeanFieldNormal(model), Ensemble(model, PointEstimate, members=2)):
        with pytest.raises(ValueError, match=r"model is an? .*the model comes first"):
            verb(guide, model)


@pytest.mark.parametrize("verb", [train, draw, functions], ids=["fit", "predict", "functions"])
def test_the_guide_of_another_model(verb: Any) -> None:
    """As many weights, in other places."""
    other = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    turned = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3), nn.Linear(3, 2)
    )
    guide = MeanFieldNormal(classifier(turned))
    with pytest.raises(
        ValueError, match=r"built for another model.*'1.weight', \(2, 4\).*\(3, 4\)"
    ):
        verb(classifier(other), guide)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_switched_on_where_the_caller_has_none(mode: Any) -> None:
    start = classifier()
    found = []
    for wrapped in (False, True):
        model = copy.deepcopy(start)
        guide = MeanFieldNormal(model)
        if wrapped:
            with mode():
                found.append(train(model, guide))
        else:
            found.append(train(model, guide))
    xr.testing.assert_identical(*found)


def test_parameters_without_gradients_are_named() -> None:
    with torch.inference_mode():
        model = classifier()
        guide = MeanFieldNormal(model)
    with pytest.raises(ValueError, match=r"made under torch.inference_mode.*outside"):
        train(model, guide)


def test_autocast_around_a_verb_changes_nothing() -> None:
    start = classifier()
    found: list[Any] = []
    for enabled in (False, True):
        model = copy.deepcopy(start)
        guide = MeanFieldNormal(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            history = train(model, guide, validation=batches())
            found.append((history, draw(model, guide)["posterior/probs"].drop_attrs()))
    xr.testing.assert_identical(found[0][0], found[1][0])
    xr.testing.assert_identical(found[0][1], found[1][1])


def test_a_case_is_predicted_once() -> None:
    model = classifier()
    twice = [*batches(), *batches()]
    with pytest.raises(ValueError, match=r"id 0 appears 2 times, at positions 0 and 12"):
        draw(model, MeanFieldNormal(model), twice)


# --- Ctrl-C


@pytest.fixture(autouse=True)
def keyboard() -> Iterator[None]:
    """Ctrl-C reaches the process also where the tests run in the background of a shell."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


class Pressed:
    """Batches during one of which somebody presses Ctrl-C, so many times."""

    num_cases = 12

    def __init__(self, at: int, times: int = 1, fails: bool = False) -> None:
        self.left, self.times, self.fails = at, times, fails

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in batches():
            self.left -= 1
            if self.left == -1:
                for _ in range(self.times):
                    os.kill(os.getpid(), signal.SIGINT)
                if self.fails:
                    raise RuntimeError("DataLoader worker exited unexpectedly")
            yield batch


@pytest.mark.parametrize("fails", [False, True], ids=["", "workers end"])
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path, capsys: Any, fails: bool) -> None:
    """The first batch is read three times before the first step."""
    start, path = classifier(), tmp_path / "run.pt"
    whole = copy.deepcopy(start)
    expected = train(whole, MeanFieldNormal(whole), Pressed(99), epochs=3)
    model = copy.deepcopy(start)
    guide = MeanFieldNormal(model)
    options: dict[str, Any] = {"epochs": 3, "checkpoint": path, "checkpoint_every": 1e6}
    steps = 4 if fails else 5
    with pytest.raises(
        KeyboardInterrupt, match=rf"after {steps} steps.*run\.pt.*resume=True"
    ) as at:
        train(model, guide, Pressed(7, fails=fails), **options)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    sys.excepthook(at.type, at.value, at.tb)
    told = capsys.readouterr().err
    assert "resume=True" in told and "Traceback" not in told
    model = copy.deepcopy(start)
    guide = MeanFieldNormal(model)
    resumed = train(model, guide, Pressed(99), resume=True, **options)
    xr.testing.assert_identical(resumed, expected)


def test_ctrl_c_without_a_checkpoint_says_so() -> None:
    model = classifier()
    with pytest.raises(KeyboardInterrupt, match=r"after 1 steps.*pass checkpoint=<path>"):
        train(model, MeanFieldNormal(model), Pressed(1), epochs=3)


def test_ctrl_c_twice_stops_at_once(tmp_path: Path) -> None:
    model, path = classifier(), tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt) as at:
        train(model, MeanFieldNormal(model), Pressed(7, times=2), epochs=3, checkpoint=path)
    assert not str(at.value) and not path.exists()


@pytest.mark.parametrize("store", ["run.zarr", None])
def test_ctrl_c_in_predict_says_how_to_go_on(store: str | None, tmp_path: Path) -> None:
    model = classifier()
    guide = MeanFieldNormal(model)
    path = None if store is None else tmp_path / store
    match = "nothing is kept; with store=" if path is None else r"beside .*run\.zarr.*resume=True"
    with pytest.raises(KeyboardInterrupt, match=match):
        draw(model, guide, Pressed(1), store=path)
    if path is not None:
        draw(model, guide, Pressed(99), store=path, resume=True)


def test_other_errors_keep_their_traceback(capsys: Any) -> None:
    model = classifier()
    with pytest.raises(KeyboardInterrupt):
        train(model, MeanFieldNormal(model), Pressed(1))
    sys.excepthook(ValueError, ValueError("plain"), None)
    assert "ValueError: plain" in capsys.readouterr().err


# --- threads


def test_threads_take_their_turn() -> None:
    """Runs at the same time give what runs one after the other do, and leave Pyro's stack empty."""
    starts = [classifier() for _ in range(3)]

    def run(start: Any, seed: int) -> tuple[xr.Dataset, xr.DataArray, Tensor]:
        model = copy.deepcopy(start)
        guide = MeanFieldNormal(model)
        history = train(model, guide, seed=seed, epochs=4)
        tree = draw(model, guide, seed=seed)
        image = torch.from_numpy(arrays()["image"])
        return history, tree["posterior/probs"].drop_attrs(), functions(model, guide)[0](image)

    expected = [run(start, seed) for seed, start in enumerate(starts)]
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda s=seed, m=start: found.update({s: run(m, s)}))
        for seed, start in enumerate(starts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pyro.poutine.runtime._PYRO_STACK == []
    for seed, (history, probs, output) in enumerate(expected):
        xr.testing.assert_identical(found[seed][0], history)
        xr.testing.assert_identical(found[seed][1], probs)
        assert torch.equal(found[seed][2], output)


def test_a_handler_that_was_not_left_is_taken_away() -> None:
    """As where an exception came while it was being left; handlers of the caller stay."""
    with pyro.poutine.scale(scale=2.0) as own:
        with pytest.raises(RuntimeError), alone():
            pyro.poutine.mask(mask=False).__enter__()
            raise RuntimeError
        assert pyro.poutine.runtime._PYRO_STACK == [own]
    assert pyro.poutine.runtime._PYRO_STACK == []
