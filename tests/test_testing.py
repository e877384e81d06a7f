"""The checks themselves: sound programs pass, and tiny faulty ones have each violation named."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from scipy import stats
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional

from ppl_med.axes import dims
from ppl_med.inference.guides.bernoulli_dropout import BernoulliDropout
from ppl_med.inference.guides.conditional_normal import ConditionalNormal
from ppl_med.inference.guides.mean_field import MeanFieldNormal
from ppl_med.models.classifier import BayesianClassifier
from ppl_med.models.latent_classifier import LatentClassifier
from ppl_med.programs.elbo import elbo_terms, total
from ppl_med.testing import assert_mean, assert_uniform, check_guide, check_program
from ppl_med.testing.guide_rules import _elbo
from ppl_med.testing.program_runs import bind
from ppl_med.weights import ScaleMixture

CASES, FEATURES, LATENT, CLASSES = 4, 6, 2, 3


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(CASES, 1, 2, 3, generator=generator)
    return {"image": image, "label": torch.tensor([0, 1, 2, 1]), "id": ["a", "b", "c", "d"]}


# --- a sound pair: weights are global, z is local


class Model(PyroModule):
    """weights ~ N(0, 1); z ~ N(m(image), 1) per case; label ~ Categorical(softmax)."""

    def __init__(self) -> None:
        super().__init__()
        self.prior = nn.Linear(FEATURES, LATENT)
        self.norm = nn.BatchNorm1d(FEATURES)
        self.bias = nn.Parameter(torch.zeros(CLASSES))

    def weights(self) -> Tensor:
        return pyro.sample(
            "weights", dist.Normal(torch.zeros(FEATURES + LATENT, CLASSES), 1).to_event(2)
        )

    def z(self, image: Tensor) -> Tensor:
        law = dist.Normal(self.prior(image.flatten(1)), 1).to_event(1)
        return pyro.sample("z", law, infer=dims("latent"))

    def features(self, image: Tensor) -> Tensor:
        return self.norm(image.flatten(1))

    def logits(self, image: Tensor, z: Tensor, weights: Tensor) -> Tensor:
        return torch.cat([self.features(image), z], -1) @ weights + self.bias

    def observe(self, logits: Tensor, label: Tensor | None) -> None:
        pyro.sample("label", dist.Categorical(logits=logits), obs=label)

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        weights = self.weights()
        with pyro.plate("case", num_cases or len(image), subsample=image):
            z = self.z(image)
            self.observe(self.logits(image, z, weights), label)


class Guide(PyroModule):
    """Mean-field weights, and an encoder of image and label that is silent without the label."""

    scale: Any

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(FEATURES + LATENT, CLASSES))
        self.scale = PyroParam(torch.full((FEATURES + LATENT, CLASSES), 0.1), constraints.positive)
        self.encoder = nn.Linear(FEATURES + CLASSES, LATENT)

    def weights(self) -> None:
        pyro.sample("weights", dist.Normal(self.loc, self.scale).to_event(2))

    def encode(self, image: Tensor, label: Tensor) -> Tensor:
        return self.encoder(torch.cat([image.flatten(1), functional.one_hot(label, CLASSES)], 1))

    def z(self, image: Tensor, label: Tensor) -> None:
        pyro.sample("z", dist.Normal(self.encode(image, label), 0.5).to_event(1))

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        self.weights()
        if label is None:
            return
        with pyro.plate("case", num_cases or len(image), subsample=image):
            self.z(image, label)


NET = nn.Linear(FEATURES, CLASSES)


def function_model(
    image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
) -> None:
    pyro.module("net", NET)
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("case", num_cases or len(image), subsample=image):
        pyro.sample("label", dist.Categorical(logits=NET(image.flatten(1)) * scale), obs=label)


def function_guide(
    image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    spread = pyro.param("spread", torch.tensor(0.1), constraint=constraints.positive)
    pyro.sample("scale", dist.LogNormal(loc, spread))


def test_sound_programs_pass() -> None:
    check_program(Model(), batch())
    check_guide(Model(), Guide(), batch())
    check_program(function_model, batch())
    check_guide(function_model, function_guide, batch())


def test_pixelwise_and_binary_observations_pass() -> None:
    def segment(image: Tensor, mask: Tensor | None = None, *, num_cases: int | None = None) -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("case", num_cases or len(image), subsample=image):
            law = dist.Bernoulli(logits=image[:, 0] + shift).to_event(2)
            pyro.sample("mask", law, obs=mask, infer=dims("row", "col"))

    check_program(segment, {"image": batch()["image"], "mask": torch.ones(CASES, 2, 3)})


# --- faulty models


class WrongName(Model):
    def observe(self, logits: Tensor, label: Tensor | None) -> None:
        pyro.sample("y", dist.Categorical(logits=logits), obs=label)


class IgnoresLabel(Model):
    def observe(self, logits: Tensor, label: Tensor | None) -> None:
        pyro.sample("label", dist.Categorical(logits=logits))


class NeverDraws(Model):
    def observe(self, logits: Tensor, label: Tensor | None) -> None:
        if label is not None:
            super().observe(logits, label)


class AlwaysObserved(Model):
    def observe(self, logits: Tensor, label: Tensor | None) -> None:
        super().observe(logits, torch.zeros(len(logits)) if label is None else label)


class NoPlate(Model):
    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        z = pyro.sample(
            "z",
            dist.Normal(self.prior(image.flatten(1)), 1).to_event(2),
            infer=dims("case", "latent"),
        )
        law = dist.Categorical(logits=self.logits(image, z, self.weights()))
        pyro.sample("label", law.to_event(1), obs=label, infer=dims("case"))


class OtherPlate(Model):
    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        weights = self.weights()
        with pyro.plate("data", num_cases or len(image), subsample=image):
            self.observe(self.logits(image, self.z(image), weights), label)


class PlateIgnoresNumCases(Model):
    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        super().forward(image, label)


class PlateWithoutSubsample(Model):
    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        weights = self.weights()
        with pyro.plate("case", num_cases or len(image)):
            self.observe(self.logits(image, self.z(image), weights), label)


class FixedPlateSize(Model):
    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        super().forward(image, label, num_cases=num_cases or 100)


class ScaledGlobal(Model):
    def weights(self) -> Tensor:
        with poutine.scale(scale=self.factor):
            return super().weights()

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        self.factor = (num_cases or len(image)) / len(image)
        super().forward(image, label, num_cases=num_cases)


class TemperedByHand(Model):
    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        self.power = (num_cases or len(image)) / len(image)
        super().forward(image, label, num_cases=num_cases)

    def observe(self, logits: Tensor, label: Tensor | None) -> None:
        super().observe(logits * self.power, label)


class WeightsInPlate(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.head: Any = PyroModule[nn.Linear](FEATURES, CLASSES)  # type: ignore[call-arg, arg-type]
        self.head.bias = PyroSample(dist.Normal(torch.zeros(CLASSES), 1.0).to_event(1))

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        with pyro.plate("case", num_cases or len(image), subsample=image):
            logits = image.flatten(1) @ self.head.weight.T + self.head.bias
            pyro.sample("label", dist.Categorical(logits=logits), obs=label)


class UnnamedAxis(Model):
    def z(self, image: Tensor) -> Tensor:
        return pyro.sample("z", dist.Normal(self.prior(image.flatten(1)), 1).to_event(1))


class AxisNamedTwice(Model):
    def z(self, image: Tensor) -> Tensor:
        law = dist.Normal(self.prior(image.flatten(1)), 1).to_event(1)
        return pyro.sample("z", law, infer=dims("case"))


class Infinite(Model):
    def observe(self, logits: Tensor, label: Tensor | None) -> None:
        super().observe(torch.where(torch.arange(CLASSES) == 1, -torch.inf, logits), label)


class OutsideSupport(Model):
    def observe(self, logits: Tensor, label: Tensor | None) -> None:
        super().observe(logits[:, :2], label)


class UnusedParameter(Model):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(1))


class DeadParameter(Model):
    def logits(self, image: Tensor, z: Tensor, weights: Tensor) -> Tensor:
        return super().logits(image, z, weights) - self.bias + torch.relu(self.bias - 1)


class NanGradient(Model):
    def logits(self, image: Tensor, z: Tensor, weights: Tensor) -> Tensor:
        return super().logits(image, z, weights) + torch.sqrt(self.bias)


class DropoutInside(Model):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def features(self, image: Tensor) -> Tensor:
        return self.drop(super().features(image))


class HiddenNoise(Model):
    def features(self, image: Tensor) -> Tensor:
        return functional.dropout(super().features(image), 0.5, self.training)


class NoiseAtPrediction(Model):
    def features(self, image: Tensor) -> Tensor:
        return super().features(image) + (0 if self.training else torch.randn(FEATURES))


class LateParameter(Model):
    def features(self, image: Tensor) -> Tensor:
        if not hasattr(self, "gain"):
            self.gain = nn.Parameter(torch.ones(1))
        return super().features(image) * self.gain


class StoreParameter(Model):
    def features(self, image: Tensor) -> Tensor:
        return super().features(image) * pyro.param("gain", torch.ones(1))


class StuckInTraining(Model):
    def train(self, mode: bool = True) -> "StuckInTraining":
        return super().train(True)


class Crashes(Model):
    def features(self, image: Tensor) -> Tensor:
        raise RuntimeError("no such layer")


class FixedBatch(Model):
    def features(self, image: Tensor) -> Tensor:
        return super().features(image).reshape(CASES, FEATURES)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (WrongName, "observed site 'y' is not the name of an observation argument"),
        (IgnoresLabel, "site 'label' is drawn although label is given"),
        (NeverDraws, "without observations there is no site 'label'"),
        (AlwaysObserved, "site 'label' is observed although label is None"),
        (NoPlate, "observed site 'label' stands in no plate 'case'"),
        (NoPlate, "latent 'z' changes its shape with the number of cases"),
        (OtherPlate, "observed site 'label' stands in no plate 'case'"),
        (PlateIgnoresNumCases, "site 'z' has scale 1 with num_cases=12 for 4 images"),
        (PlateWithoutSubsample, r"fails with num_cases=12 for 4 images; use pyro.plate\("),
        (FixedPlateSize, "size 100 for 4 images and no num_cases"),
        (ScaledGlobal, "global latent 'weights' is scaled by 3"),
        (TemperedByHand, "distribution of site 'label' itself changes with num_cases"),
        (WeightsInPlate, "global latent 'head.bias' stands inside plate 'case'"),
        (UnnamedAxis, "site 'z' has 1 event axes and 0 names"),
        (AxisNamedTwice, "site 'z' uses an axis name twice"),
        (Infinite, "site 'label' is not finite in 2 of 4"),
        (OutsideSupport, "site 'label' cannot be computed"),
        (UnusedParameter, "parameter 'unused' does not enter the log-density"),
        (DeadParameter, "parameter 'bias' gets a gradient of the log-density that is zero"),
        (NanGradient, "parameter 'bias' gets a gradient of the log-density that is not finite"),
        (DropoutInside, "Dropout 'drop' drops units in training"),
        (HiddenNoise, "change from run to run in training mode"),
        (NoiseAtPrediction, "change from run to run in evaluation mode"),
        (LateParameter, "parameter 'gain' appears only at the first call"),
        (StoreParameter, "parameter 'gain' appears only at the first call"),
        (StuckInTraining, "buffer 'norm.running_mean' moves at prediction"),
        (Crashes, "fails with its observations: RuntimeError: no such layer"),
        (FixedBatch, "fails on 3 of the 4 cases"),
    ],
)
def test_names_the_fault_of_a_model(model: type[nn.Module], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_program(model(), batch())


def test_lists_all_faults_at_once_and_no_others() -> None:
    class Many(UnusedParameter, UnnamedAxis, WrongName): ...

    with pytest.raises(AssertionError) as raised:
        check_program(Many(), batch())
    lines = str(raised.value).splitlines()
    assert lines[0] == "the model breaks its contract 4 times:"
    for word in ("'y'", "'label'", "'z'", "'unused'"):
        assert sum(word in line.split(";")[0].split("(")[0] for line in lines[1:]) == 1


def test_function_with_a_network_in_training_mode() -> None:
    net = nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Dropout(0.5), nn.Linear(FEATURES, CLASSES))
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def model(image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None) -> None:
        with pyro.plate("case", num_cases or len(image), subsample=image):
            pyro.sample("label", dist.Categorical(logits=net(image.flatten(1))), obs=label)

    for mode in (True, False):  # fit trains it and predict evaluates it, however it was left
        net.train(mode)
        with pytest.raises(AssertionError, match=r"Dropout 'net\.1' drops units") as raised:
            check_program(model, batch())
        assert "1 times" in str(raised.value)
        assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
        assert net.training == net[1].training == mode
    net[1].p = 0.0  # type: ignore[assignment]
    check_program(model, batch())
    assert not net.training


def no_num_cases(image: Tensor, label: Tensor | None = None) -> None: ...


def test_asks_for_num_cases() -> None:
    with pytest.raises(AssertionError, match="takes no keyword num_cases"):
        check_program(no_num_cases, batch())


# --- faulty guides


class Silent(Guide):
    def z(self, image: Tensor, label: Tensor) -> None: ...


class Extra(Guide):
    def weights(self) -> None:
        super().weights()
        pyro.sample("extra", dist.Normal(0.0, 1.0))


class Observes(Guide):
    def weights(self) -> None:
        super().weights()
        pyro.sample("seen", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


class SilentGlobal(Guide):
    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        if label is not None:
            super().forward(image, label, num_cases=num_cases)


class OtherShape(Guide):
    def z(self, image: Tensor, label: Tensor) -> None:
        pyro.sample("z", dist.Normal(self.encode(image, label)[:, :1], 0.5).to_event(1))


class UnscaledPlate(Guide):
    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        super().forward(image, label)


class NoGuidePlate(Guide):
    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        self.weights()
        if label is not None:
            self.z(image, label)


class ForgetsScale(Guide):
    def weights(self) -> None:
        pyro.sample("weights", dist.Normal(self.loc, 0.1).to_event(2))


class NoisyEncoder(Guide):
    def encode(self, image: Tensor, label: Tensor) -> Tensor:
        return super().encode(image, label) + torch.randn(LATENT)


class InfiniteGuide(Guide):
    def weights(self) -> None:
        pyro.sample(
            "weights", dist.Delta(self.loc, torch.full_like(self.loc, torch.inf)).to_event(2)
        )


class MovingGuide(Guide):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def weights(self) -> None:
        super().weights()
        self.calls += 1


class LateGuide(Guide):
    def weights(self) -> None:
        if not hasattr(self, "shift"):
            self.shift = nn.Parameter(torch.zeros(CLASSES))
        pyro.sample("weights", dist.Normal(self.loc + self.shift, self.scale).to_event(2))


class OtherArguments(Guide):
    def forward(
        self, image: Tensor, mask: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        super().forward(image, mask, num_cases=num_cases)


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (Silent, "does not propose the latent site 'z' of the model"),
        (Extra, "proposes 'extra', which is no latent"),
        (Observes, "observes site 'seen'"),
        (SilentGlobal, "without observations it proposes no 'weights', a global latent"),
        (OtherShape, r"the model fails with the guide's draw|'z' with shape \(4,\) \| \(1,\)"),
        (UnscaledPlate, "scales 'z' by 1, the model by 3"),
        (NoGuidePlate, r"'z' in plates \[\], the model in \['case'\]"),
        (ForgetsScale, "'guide.scale_unconstrained' does not enter the ELBO"),
        (NoisyEncoder, r"distributions of \['z'\] change from run to run"),
        (InfiniteGuide, "the guide's log-density of site 'weights' is not finite"),
        (MovingGuide, "buffer 'MovingGuide.calls' moves at prediction"),
        (LateGuide, "parameter 'shift' appears only at the first call"),
        (OtherArguments, "fails with observations: TypeError"),
    ],
)
def test_names_the_fault_of_a_guide(guide: type[nn.Module], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_guide(Model(), guide(), batch())


def test_names_a_guide_outside_the_support() -> None:
    def guide(image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None) -> None:
        pyro.sample("scale", dist.Delta(pyro.param("point", torch.tensor(-1.0))))

    with pytest.raises(AssertionError, match="proposes 'scale' outside the model's support"):
        check_guide(function_model, guide, batch())


def test_an_autoguide_has_its_parameters_only_after_a_first_call() -> None:
    model = Model()
    guide = AutoNormal(poutine.block(model, hide=["label", "z"]))
    with pytest.raises(AssertionError, match=r"parameter 'locs\.weights"):
        check_guide(model, guide, batch())
    assert not list(guide.parameters())


def test_names_a_latent_that_no_gradient_passes() -> None:
    def model(image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None) -> None:
        with pyro.plate("case", num_cases or len(image), subsample=image):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3)))
            logits = torch.stack([k, 1 - k, 0 * k], -1)
            pyro.sample("label", dist.Categorical(logits=logits), obs=label)

    def guide(image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None) -> None:
        rate = pyro.param("rate", torch.tensor(0.4), constraint=constraints.unit_interval)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            pyro.sample("k", dist.Bernoulli(rate))

    check_program(model, batch())
    with pytest.raises(AssertionError, match="proposes 'k' from Bernoulli, which has no rsample"):
        check_guide(model, guide, batch())


# --- nothing is left behind


def snapshot(*programs: Any) -> dict[str, Any]:
    state: dict[str, Any] = {
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state(legacy=True)),  # noqa: NPY002  Pyro seeds the global one
        "random": random.getstate(),
        "store": sorted(pyro.get_param_store().keys()),
    }
    for number, program in enumerate(programs):
        for name, module in program.named_modules():
            state[f"{number}.{name}.mode"] = module.training
            state[f"{number}.{name}.attributes"] = sorted(vars(module))
        for name, value in program.named_parameters():
            state[f"{number}.{name}"] = value.tolist(), value.grad, value.requires_grad, id(value)
        for name, value in program.named_buffers():
            state[f"{number}.{name}"] = value.tolist(), id(value)
    return state


@pytest.mark.parametrize(
    "make_model", [Model, StuckInTraining, LateParameter, StoreParameter, Crashes]
)
@pytest.mark.parametrize("make_guide", [Guide, LateGuide, MovingGuide])
def test_leaves_everything_as_it_was(make_model: Callable, make_guide: Callable) -> None:
    model, guide = make_model().eval(), make_guide().train()
    model.bias.grad = torch.ones(CLASSES)
    model.bias.requires_grad_(False)
    pyro.param("mine", torch.tensor(2.0))
    before = snapshot(model, guide)
    for check in (
        lambda: check_program(model, batch()),
        lambda: check_guide(model, guide, batch()),
    ):
        try:
            check()
        except AssertionError:
            pass
        assert snapshot(model, guide) == before


def test_a_checked_module_may_still_become_part_of_another() -> None:
    model = WeightsInPlate()
    with pytest.raises(AssertionError):
        check_program(model, batch())
    assert Parent(model).child is model


class Parent(PyroModule):
    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.child = child


# --- batches


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "lacks .'image'."),
        ({"label": None}, "none of the model's observations"),
        ({"image": torch.zeros(1, 1, 2, 3), "label": torch.zeros(1)}, "two cases or more"),
        ({"label": torch.zeros(3)}, "as many of each"),
    ],
)
def test_refuses_a_batch(change: dict, message: str) -> None:
    changed = {name: value for name, value in (batch() | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        check_program(Model(), changed)


# --- tests with a false-alarm rate


def test_assert_mean_tells_means_apart() -> None:
    samples = torch.randn(2000, 3, dtype=torch.float64) + torch.tensor([0.0, 1.0, 2.0])
    assert_mean(samples, [0.0, 1.0, 2.0])
    with pytest.raises(AssertionError, match=r"at \(1,\) is .* expected 0: .* standard errors"):
        assert_mean(samples, [0.0, 0.0, 2.0])


def test_assert_mean_has_its_false_alarm_rate() -> None:
    rate, repeats = 0.05, 2000
    samples = np.random.default_rng(5).normal(size=(repeats, 12, 2))
    alarms = 0
    for sample in samples:
        try:
            assert_mean(sample, 0.0, rate)
        except AssertionError:
            alarms += 1
    # Bonferroni over two independent entries: 1 - (1 - rate/2)².
    exact = 1 - (1 - rate / 2) ** 2
    assert stats.binomtest(alarms, repeats, exact).pvalue > 1e-6


def test_assert_mean_of_equal_samples_needs_equality() -> None:
    assert_mean(np.full(20, 0.1), 0.1)
    with pytest.raises(AssertionError):
        assert_mean(np.full(20, 0.1), 0.1001)


def test_assert_uniform_tells_laws_apart() -> None:
    values = np.random.default_rng(6).random(3000)
    assert_uniform(values)
    with pytest.raises(AssertionError, match="not uniform"):
        assert_uniform(values**1.3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: assert_mean(np.zeros(3), 0), "10 or more"),
        (lambda: assert_mean(np.zeros((20, 2)), [0, 0, 0]), "expected has shape"),
        (lambda: assert_mean(np.full(20, np.nan), 0), "samples holds NaN"),
        (lambda: assert_mean(np.zeros(20), 0, 0.0), "false_alarm"),
        (lambda: assert_uniform(np.zeros((20, 2))), "in one axis"),
        (lambda: assert_uniform(np.linspace(0, 2, 20)), "stay in 0 to 1"),
    ],
)
def test_assertions_refuse(call: Callable[[], None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- the library's own programs


@pytest.mark.parametrize(
    "make_guide",
    [
        lambda model: MeanFieldNormal(model),
        lambda model: MeanFieldNormal(model, estimator="shared"),
        lambda model: BernoulliDropout(model),
    ],
)
@pytest.mark.parametrize("prior", [None, ScaleMixture()])
def test_bayesian_classifier_keeps_the_contract(make_guide: Callable, prior: Any) -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Flatten(), nn.Linear(8, CLASSES),
    )  # fmt: skip
    model = BayesianClassifier(net, ["a", "b", "c"], prior)
    guide = make_guide(model)
    before = snapshot(model, guide)
    check_program(model, batch())
    check_guide(model, guide, batch())
    assert snapshot(model, guide) == before


class LabelEncoder(nn.Module):
    """The posterior net of a test: z from the image and the label."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES + CLASSES, 2 * LATENT)

    def forward(self, image: Tensor, label: Tensor) -> dist.Distribution:
        told = torch.cat([image.flatten(1), functional.one_hot(label, CLASSES)], 1)
        loc, raw_scale = self.layer(told).chunk(2, 1)
        return dist.Normal(loc, functional.softplus(raw_scale)).to_event(1)


def test_latent_classifier_keeps_the_contract() -> None:
    model, guide = LatentClassifier(1, ["a", "b", "c"]), ConditionalNormal(LabelEncoder())
    check_program(model, batch())
    check_guide(model, guide, batch())


def half_normal(
    image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(torch.tensor(0.8)))
    with pyro.plate("case", num_cases or len(image), subsample=image):
        pyro.sample("label", dist.Normal(image.flatten(1).mean(1), scale), obs=label)


def test_check_guide_and_fit_have_one_elbo() -> None:
    """The Delta of a stock guide on a positive latent has a density, by the transform."""
    arrays = {"image": torch.randn(4, 1, 2, 2), "label": torch.randn(4)}
    guide = AutoNormal(half_normal, init_scale=0.3)
    guide(**arrays)
    elbo, _ = _elbo(half_normal, guide, bind(half_normal, arrays), 7)
    pyro.set_rng_seed(7)
    scale = guide(**arrays)["scale"].detach()
    pyro.set_rng_seed(7)
    nll, kl = elbo_terms(half_normal, guide, **arrays)
    elbo = elbo.detach()
    assert torch.equal(elbo, -(total(nll) + total(kl)).detach())
    log_q = stats.norm.logpdf(
        scale.log().item(), guide.locs.scale.item(), guide.scales.scale.item()
    )
    log_q = log_q - np.log(scale.item())
    log_p = stats.halfnorm.logpdf(scale.item(), scale=0.8)
    residual = (arrays["label"] - arrays["image"].flatten(1).mean(1)).numpy()
    exact = stats.norm.logpdf(residual, scale=scale.item()).sum() + log_p - log_q
    assert float(elbo) == pytest.approx(exact, rel=1e-5)
