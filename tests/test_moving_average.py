"""The moving average of what is trained: its closed form, what it leaves, and whoever sees it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import (
    AutoDelta,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from ppl_med.data import Batches
from ppl_med.inference import (
    SWAG,
    BernoulliDropout,
    ConcreteDropout,
    Ensemble,
    Laplace,
    LowRankNormal,
    MeanFieldNormal,
    PointEstimate,
    RadialNormal,
    VariationalOnlineNewton,
    fit,
    load,
)
from ppl_med.inference.training import trainer
from ppl_med.inference.training.heldout import heldout_nll
from ppl_med.inference.training.moving_average import decay_at
from ppl_med.models import BayesianClassifier, DUQClassifier
from ppl_med.networks import LeNet

CASES, EPOCHS, DECAY = 12, 12, 0.4  # the decay at the start is below it until step 4
SCALES = "guide.parts.weights.raw_scale"


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "VALIDATION_DRAWS", 2)


def cases(size: int = CASES, seed: int = 0) -> Batches:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(CASES, 1, 2, 2)).astype("float32")
    label = (image[:, 0, 0].mean(-1) + 0.3 * rng.normal(size=CASES) > 0).astype(int)
    return Batches({"image": image, "label": label}, batch_size=size)


def classifier() -> BayesianClassifier:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    return BayesianClassifier(net, ["a", "b"])


def train(model: Any, guide: Any, batches: Any = None, **options: Any) -> xr.Dataset:
    settings: dict[str, Any] = {"epochs": EPOCHS, "learning_rate": 0.02, "seed": 1}
    settings |= {"progress": False, "device": "cpu"}
    with pyro.get_param_store().scope():
        return fit(model, guide, batches or cases(), **(settings | options))


def values(*programs: Any) -> dict[str, Tensor]:
    """Copies of all parameters and of running statistics, by name."""
    found = {}
    for index, program in enumerate(programs):
        state = program.state_dict() if isinstance(program, nn.Module) else {}
        for name, value in state.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                found[f"{index}.{name}"] = value.clone()
    return found


def weights_of_steps(steps: int, decay: float = DECAY) -> np.ndarray:
    """How much each step's parameters count in the average, from the products of its decays."""
    decays = np.array([min(decay, (1 + n) / (10 + n)) for n in range(1, steps + 1)])
    decays[0] = 0.0
    later = np.append(np.cumprod(decays[::-1])[::-1][1:], 1.0)
    return (1 - decays) * later


# ------------------------------------------------------------------------- a known trajectory


class Mean(nn.Module):
    """One number is the mean of all labels: the NLL is a parabola."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(5.0, dtype=torch.float64))

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        with pyro.plate("case", num_cases or len(image), subsample=image):
            pyro.sample("label", dist.Normal(self.mean.expand(len(image)), 1.0), obs=label)


class Nothing(nn.Module):
    """A guide of no latents."""

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        """Propose nothing."""


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("steps", "decay"), [(1, 0.9), (30, 0.5), (80, 0.999)])
def test_the_average_of_a_descent_on_a_parabola(steps: int, decay: float, accumulate: int) -> None:
    """Gradient descent at the rate r from 5 to the mean m: p_n = m + (1 - r)^n (5 - m)."""
    label = torch.linspace(-1, 2, 6, dtype=torch.float64)
    batch = {"image": torch.zeros(6, 1, 1, 1), "label": label}
    model, rate = Mean(), 0.1
    history = fit(
        model,
        Nothing(),
        [batch] * accumulate,
        num_cases=6 * accumulate,
        epochs=steps,
        accumulate=accumulate,
        optimizer=lambda ps: torch.optim.SGD(ps, lr=rate),
        average=decay,
        progress=False,
        device="cpu",
    )
    assert history.sizes["step"] == steps
    n = np.arange(1, steps + 1)
    path = 0.5 + (1 - rate) ** n * 4.5
    expected = float(weights_of_steps(steps, decay) @ path)
    assert model.mean.item() == pytest.approx(expected, rel=1e-12)
    if decay == 0.999:  # the start's decays alone, whose products are quotients of factorials
        log_weights = [
            math.lgamma(steps + 2) - math.lgamma(i + 2) + math.lgamma(i + 11)
            - math.lgamma(steps + 11) + (math.log(9 / (10 + i)) if i > 1 else 0.0)
            for i in n
        ]  # fmt: skip
        assert model.mean.item() == pytest.approx(float(np.exp(log_weights) @ path), rel=1e-9)
    assert history.attrs["average"] == decay and history.attrs["left_as_trained"] == ""


def test_the_average_is_of_the_last_tenth_at_first() -> None:
    """Mean age of the weights after n steps is about n / 10, and 1 / (1 - decay) in the end."""
    ages = np.arange(4000)[::-1]
    assert weights_of_steps(4000, 0.9999) @ ages == pytest.approx(400, rel=0.01)
    assert weights_of_steps(4000, 0.99) @ ages == pytest.approx(99, rel=1e-6)
    assert [decay_at(0.9, n) for n in (1, 8, 80, 100)] == [2 / 11, 0.5, 0.9, 0.9]


# ------------------------------------------------------------------------- what is averaged


class Bounded(PyroModule):
    """A guide of a user's own."""

    def __init__(self, model: BayesianClassifier) -> None:
        super().__init__()
        self.size = model.network.layout.num_weights
        self.middle = nn.Parameter(0.1 * torch.randn(self.size))
        self.width: Any = PyroParam(torch.full((self.size,), 0.1), dist.constraints.positive)

    def forward(self, *inputs: Any, **options: Any) -> None:
        pyro.sample("weights", dist.Normal(self.middle, self.width).to_event(1))


Case = tuple[Callable[[Any], Any], set[str]]
GUIDES: dict[str, Case] = {
    "point": (PointEstimate, set()),
    "mean field": (lambda m: MeanFieldNormal(m, init_scale=0.3), {"1.parts.weights.raw_scale"}),
    "radial": (RadialNormal, {"1.parts.weights.raw_scale"}),
    "low rank": (LowRankNormal, {"1.parts.weights.raw_scale", "1.parts.weights.factor"}),
    "dropout": (BernoulliDropout, set()),
    "concrete dropout": (
        lambda m: ConcreteDropout(m, skip_first=False),
        {"1.parts.weights.raw_rates"},
    ),
    "AutoNormal": (AutoNormal, {"1.scales.weights_unconstrained"}),
    "AutoLowRank": (AutoLowRankMultivariateNormal, {"1.scale_unconstrained", "1.cov_factor"}),
    "AutoMultivariate": (
        AutoMultivariateNormal,
        {"1.scale_unconstrained", "1.scale_tril_unconstrained"},
    ),
    "AutoDelta": (AutoDelta, set()),
    "a user's": (Bounded, {"1.width_unconstrained"}),
}


@pytest.mark.filterwarnings("ignore:the KL is", "ignore:posterior collapse")
@pytest.mark.parametrize("name", [*GUIDES, "natural gradient"])
def test_locations_are_averaged_and_spreads_are_left(name: str) -> None:
    """Against a run without it, whose parameters are noted after every step."""
    found: dict[bool, dict[str, Tensor]] = {}
    path: list[dict[str, Tensor]] = []
    histories = []
    make, left = GUIDES.get(name, GUIDES["mean field"])
    options: dict[str, Any] = {}
    if name == "natural gradient":
        options["optimizer"] = VariationalOnlineNewton()
    for averaged in (False, True):
        model = classifier()
        guide = make(model)
        noting = {"callbacks": [lambda _, p=(model, guide): path.append(values(*p))]}
        more = {"average": DECAY} if averaged else noting
        histories.append(train(model, guide, **options, **more))
        found[averaged] = values(model, guide)
    plain, with_average = histories
    xr.testing.assert_equal(plain.drop_vars("stopped_by"), with_average)  # the same steps
    assert len(path) == EPOCHS and left <= set(path[0])
    share = torch.tensor(weights_of_steps(EPOCHS))
    moved = set()
    for key, value in found[True].items():
        steps = torch.stack([step[key].double() for step in path])
        if bool((steps[0] != steps[-1]).any()):
            moved.add(key)
        if key in left:
            assert torch.equal(value, found[False][key]), key
        else:
            expected = torch.tensordot(share, steps, 1)
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    assert left < moved, "else nothing shows"
    assert (
        with_average.attrs["left_as_trained"].split("; ")
        == sorted(f"guide{key[1:]}" for key in left)
        or not left
    )


def test_without_it_nothing_is_said_of_it() -> None:
    model = classifier()
    assert not {"average", "left_as_trained"} & set(train(model, PointEstimate(model)).attrs)


def test_members_of_an_ensemble_have_each_their_own() -> None:
    """Member m is the single run with the seed 1 + m."""
    ensemble = Ensemble(classifier(), PointEstimate, members=2, start="keep")
    train(classifier(), ensemble, cases(5), average=DECAY)
    for index, own in enumerate(ensemble.members):
        model = classifier()
        guide = PointEstimate(model)
        train(model, guide, cases(5), average=DECAY, seed=1 + index)
        for (name, one), other in zip(
            values(model, guide).items(), values(*own).values(), strict=True
        ):
            assert torch.equal(one, other), name


# ------------------------------------------------------------------------- who sees it


def test_validation_judges_the_average_and_training_goes_its_way() -> None:
    runs = []
    for options in ({}, {"average": 0.8}):
        model = classifier()
        guide = PointEstimate(model)
        history = train(model, guide, validation=cases(seed=5), **options)
        score = heldout_nll(model, guide, cases(seed=5), torch.device("cpu"), 2, 1)
        assert score == float(history["validation_nll"][-1])
        runs.append(history)
    xr.testing.assert_equal(*(run.drop_vars("validation_nll") for run in runs))
    assert (runs[0]["validation_nll"] != runs[1]["validation_nll"])[1:].all()


@pytest.mark.parametrize("keep", ["last", "best"])
def test_what_is_kept_is_the_average_and_load_reads_it(keep: Any, tmp_path: Path) -> None:
    model, seen = classifier(), []
    guide, path = PointEstimate(model, use_prior=False), tmp_path / "run.pt"
    history = train(
        model,
        guide,
        validation=cases(seed=5),
        keep=keep,
        average=0.7,
        learning_rate=0.05,
        checkpoint=path,
        callbacks=[lambda _: seen.append(values(guide))],
    )
    epoch = int(history["best_epoch"]) if keep == "best" else -1
    assert keep == "last" or 0 < epoch < EPOCHS - 1, "else the data show nothing"
    other = classifier()
    loaded = PointEstimate(other)
    load(path, other, loaded)
    for name, value in seen[epoch].items():
        assert torch.equal(value, values(guide)[name]) and torch.equal(value, values(loaded)[name])


def test_the_checkpoint_of_an_unfinished_run_gives_the_average(tmp_path: Path) -> None:
    """And an interrupted run goes on from the parameters, which it leaves in their place."""

    def leave(history: xr.Dataset) -> None:
        if history.attrs["epoch"] == 5:
            raise SystemExit

    models = [classifier() for _ in range(3)]
    guides = [PointEstimate(model) for model in models]
    path = tmp_path / "run.pt"
    with pytest.raises(SystemExit):
        train(models[0], guides[0], average=DECAY, checkpoint=path, callbacks=[leave])
    load(path, models[1], guides[1])
    train(models[2], guides[2], average=DECAY, epochs=5)
    assert torch.equal(guides[1].center(), guides[2].center())
    model = classifier()
    plain = PointEstimate(model)
    train(model, plain, epochs=5)
    assert torch.equal(guides[0].center(), plain.center())
    assert not torch.equal(guides[0].center(), guides[1].center())


def test_laplace_takes_the_curvature_at_the_average() -> None:
    model = classifier()
    guide = Laplace(model)
    options = {"learning_rate": 0.05, "epochs": 200, "average": 0.9}
    train(model, guide, **options)
    again = PointEstimate(classifier())
    part: Any = again.parts["weights"]
    with torch.no_grad():
        part.value.copy_(guide.center())
    other = classifier()
    at_mode = Laplace(other, start=again)
    train(other, at_mode, epochs=0)
    assert guide.log_evidence == at_mode.log_evidence and guide.offset == at_mode.offset


# ------------------------------------------------------------------------- norm layers


class Normed(nn.Module):
    """A norm layer whose statistics are those of the weights before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.last(self.norm(self.first(image.flatten(1))))


def normed(**options: Any) -> Any:
    torch.manual_seed(0)
    return BayesianClassifier(Normed(), ["a", "b"], **options)


def measured(guide: Any, batches: Any) -> tuple[Tensor, Tensor]:
    """Mean over batches of the mean and the unbiased variance of what the norm layer gets."""
    site, named = guide.center(), {}
    for entry, part in zip(guide.layout().entries, site.split(guide.layout().sizes), strict=True):
        named[entry.name] = part.reshape(entry.shape)
    seen = [
        torch.as_tensor(batch["image"]).flatten(1) @ named["first.weight"].T + named["first.bias"]
        for batch in batches
    ]
    return (
        torch.stack([one.mean(0) for one in seen]).mean(0),
        torch.stack([one.var(0) for one in seen]).mean(0),
    )


@pytest.mark.parametrize("keep", ["last", "best"])
def test_statistics_are_those_of_the_averaged_weights(keep: Any, tmp_path: Path) -> None:
    model = normed()
    guide, path = PointEstimate(model), tmp_path / "run.pt"
    options: Any = {"validation": cases(seed=5), "keep": keep, "learning_rate": 0.1}
    history = train(model, guide, cases(4), average=0.9, checkpoint=path, **options)
    norm: Any = model.network.net.norm
    mean, variance = measured(guide, cases(4))
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, variance, rtol=1e-4, atol=1e-5)
    score = heldout_nll(model, guide, cases(seed=5), torch.device("cpu"), 2, 1)
    at = int(history["best_epoch"]) if keep == "best" else -1
    assert score == float(history["validation_nll"][at])
    other = normed()
    loaded = PointEstimate(other)
    load(path, other, loaded)
    for name, value in values(model, guide).items():
        assert torch.equal(value, values(other, loaded)[name]), name
    plain = normed()
    without = train(plain, PointEstimate(plain), cases(4), **options)
    xr.testing.assert_equal(without[["elbo", "nll"]], history[["elbo", "nll"]])
    assert not torch.allclose(plain.network.net.norm.running_var, norm.running_var, rtol=0.01)


def test_an_unfinished_model_with_statistics_is_as_it_is_trained(tmp_path: Path) -> None:
    def leave(history: xr.Dataset) -> None:
        if history.attrs["epoch"] == 5:
            raise SystemExit

    models = [normed() for _ in range(3)]
    guides = [PointEstimate(model) for model in models]
    path, options = tmp_path / "run.pt", {"average": DECAY, "validation": cases(seed=5)}
    with pytest.raises(SystemExit):
        train(models[0], guides[0], checkpoint=path, callbacks=[leave], **options)
    load(path, models[1], guides[1])
    train(models[2], guides[2], epochs=5)
    for name, value in values(models[2], guides[2]).items():
        assert torch.equal(value, values(models[1], guides[1])[name]), name
    resumed, whole = normed(), normed()
    first = train(resumed, PointEstimate(resumed), checkpoint=path, resume=True, **options)
    second = train(whole, PointEstimate(whole), **options)
    xr.testing.assert_equal(first, second)
    for name, value in values(whole).items():
        assert torch.equal(value, values(resumed)[name]), name


def test_frozen_statistics_stay() -> None:
    model = normed(batch_norm="frozen")
    norm: Any = model.network.net.norm
    norm.running_var.fill_(3.0)
    train(model, PointEstimate(model), average=DECAY)
    assert (norm.running_var == 3).all() and int(norm.num_batches_tracked) == 0


# ------------------------------------------------------------------------- refused


def test_statistics_that_cannot_be_measured_anew_are_refused() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.InstanceNorm2d(1, track_running_stats=True), nn.Flatten())
    model = BayesianClassifier(nn.Sequential(net, nn.Linear(4, 2)), ["a", "b"])
    with pytest.raises(ValueError, match="average must be None with InstanceNorm2d"):
        train(model, PointEstimate(model), average=0.9)


def duq() -> tuple[Any, Any]:
    model = DUQClassifier(LeNet(1, 5, size=16), ["a", "b"], 5)
    return model, PointEstimate(model)


def swag() -> tuple[Any, Any]:
    model = classifier()
    return model, SWAG(model)


def coarse() -> tuple[Any, Any]:
    model = classifier().bfloat16()
    return model, PointEstimate(model)


@pytest.mark.parametrize(
    ("programs", "message"),
    [(swag, "average must be None with SWAG"), (duq, "average must be None with DUQClassifier")],
)
def test_what_follows_the_steps_by_itself_is_refused(
    programs: Callable[[], tuple[Any, Any]], message: str
) -> None:
    model, guide = programs()
    image = (
        torch.randn(2, 1, 16, 16) if isinstance(model, DUQClassifier) else torch.randn(2, 1, 2, 2)
    )
    before = values(model, guide)
    with pytest.raises(ValueError, match=message):
        train(model, guide, [{"image": image, "label": torch.tensor([0, 1])}], average=0.9)
    assert all(torch.equal(value, values(model, guide)[name]) for name, value in before.items())


def test_coarse_parameters_are_refused() -> None:
    model, guide = coarse()
    batch = {"image": torch.randn(2, 1, 2, 2).bfloat16(), "label": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=r"average must be None.*torch.bfloat16.*call .float\(\)"):
        train(model, guide, [batch], average=0.9)


@pytest.mark.parametrize("other", [None, 0.95])
def test_a_run_is_not_resumed_with_another_average(other: float | None, tmp_path: Path) -> None:
    model = classifier()
    guide, options = PointEstimate(model), {"checkpoint": tmp_path / "run.pt", "resume": True}
    train(model, guide, average=0.9, epochs=2, **options)
    with pytest.raises(ValueError, match=f"average is {other} but the checkpoint .*made with 0.9;"):
        train(model, guide, average=other, epochs=4, **options)
