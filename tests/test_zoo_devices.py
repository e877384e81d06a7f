"""Every program of the contract table on a GPU that need not be there.

A tensor that a model, a guide, a likelihood or a prior leaves on the CPU fails here as it would
there, on any machine; so does what makes the host wait for the device in a step.
"""

from typing import Any, Literal

import pyro
import pytest
import torch
from test_zoo import CLASSES, DETECTORS, PAIRS, mini_batch, small_net
from torch import Tensor, nn

from ppl_med.inference import Geco, ImportanceWeighted, MeanFieldNormal, PointEstimate
from ppl_med.inference.guides.ensemble import members_of
from ppl_med.models import BayesianClassifier
from ppl_med.programs.host_reads import NoCopies
from ppl_med.programs.isolation import preserved_state
from ppl_med.testing import check_device
from ppl_med.testing.device_rules import (
    WITH_GRADIENTS,
    imitated,
    loss_violation,
    prediction_violation,
)
from ppl_med.weights.distributions import FlatPoint

Part = Literal["loss", "prediction"]
GRADIENTS = "its loss takes gradients, which torch's engine cannot on a GPU that is only imitated"
READS_ITS_STATE = "its prediction reads off a buffer whether it is fitted"
NOT_IMITATED: dict[str, tuple[Part, str]] = {
    "duq": ("loss", GRADIENTS),
    "duq-normal": ("loss", GRADIENTS),
    "duq-dropout": ("loss", GRADIENTS),
    "ensemble-of-duq": ("loss", GRADIENTS),
    "constrained": ("loss", GRADIENTS),
    "swag": ("prediction", READS_ITS_STATE),
    **{f"laplace-{s}": ("prediction", READS_ITS_STATE) for s in ("full", "kron", "diag")},
    "laplace-last_layer": ("prediction", READS_ITS_STATE),
    "laplace-bernoulli": ("prediction", READS_ITS_STATE),
    "student-t": ("prediction", "torch's variance of it picks entries by a mask"),
    **dict.fromkeys(DETECTORS, ("prediction", "how many boxes are found depends on the output")),
}
# An engine that was built without CUDA, or finds a GPU, takes gradients there.
TAKES_GRADIENTS = torch.version.cuda is None or torch.cuda.is_available()


@pytest.mark.parametrize("name", PAIRS)
def test_a_program_stays_on_its_device(name: str) -> None:
    left_out = [NOT_IMITATED[name][0]] if name in NOT_IMITATED else []
    check_device(*PAIRS[name](), mini_batch(name), leave_out=left_out)


@pytest.mark.parametrize("name", NOT_IMITATED)
def test_what_is_left_out_cannot_be_imitated(name: str) -> None:
    part, _ = NOT_IMITATED[name]
    if part == "loss" and TAKES_GRADIENTS:
        pytest.skip("torch takes gradients here")
    pair, batch = members_of(*PAIRS[name]())[0], mini_batch(name)
    if part == "loss":
        assert "hasPrimaryContext" in (loss_violation(*pair, batch, gradient=False) or "")
    else:
        fault = prediction_violation(*pair, batch) or ""
        assert fault.startswith(("DataDependentOutput", "DynamicOutputShape"))


class _Backward(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a tensor on the CPU."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * torch.ones(gradients[0].shape)


class Planted(nn.Module):
    """A net whose output goes through a fault."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net, self.kind = small_net(), kind
        self.kept = torch.zeros(2)  # no buffer, so it does not move along

    def forward(self, image: Tensor) -> Tensor:
        output: Tensor = self.net(image)
        match self.kind:
            case "made":
                return output + torch.zeros(output.shape)
            case "kept":
                return output + self.kept
            case "at prediction":
                return output if self.training else output + torch.zeros(2)
            case "backward":
                return _Backward.apply(output)
            case "read":
                return output if output.sum() > 0 else -output
            case "back and forth":
                return output.cpu().to(output.device)
            case "constant":
                return output + torch.tensor([0.5, 0.5], device=output.device)
            case "noise":
                return output + torch.randn(output.shape).to(output)
            case "positions":
                return output[:, torch.arange(output.shape[1])]
            case "put":
                output = output.clone()
                output[:, torch.arange(1)] = 0.0
                return output
        return output + torch.full((), 0.5) + output.new_zeros(2)  # a number may be on the CPU


TWO_DEVICES, COPY = "same device", "copied between CPU and GPU"
FAULTS = {
    "made": (TWO_DEVICES, 2),
    "kept": (TWO_DEVICES, 2),
    "at prediction": (TWO_DEVICES, 1),
    "backward": (TWO_DEVICES, 1),
    "read": ("DataDependent", 2),
    "back and forth": (COPY, 2),
    "constant": (COPY, 1),  # on "meta", torch makes it there
    "noise": (COPY, 2),
    "positions": (COPY, 2),
    "put": (COPY, 2),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_planted_fault_is_found_and_its_line_named(kind: str) -> None:
    """The test of the test: where the fault is, once a device."""
    text, times = FAULTS[kind]
    model = BayesianClassifier(Planted(kind), CLASSES)
    with pytest.raises(AssertionError, match=f"{times} times:\n.*{text}.*test_zoo_devices"):
        check_device(model, MeanFieldNormal(model), mini_batch("categorical-auto"))


class OnCPU(PointEstimate):
    """A guide whose point is always on the CPU."""

    def forward(self, *inputs: Any, **options: Any) -> None:
        value = torch.ones(self.layout().num_weights)
        pyro.sample("weights", FlatPoint(value, use_prior=True))


def test_a_guide_that_proposes_on_the_cpu_is_found() -> None:
    model = BayesianClassifier(small_net(), CLASSES)
    with pytest.raises(AssertionError, match=f"2 times:\n.*{TWO_DEVICES}"):
        check_device(model, OnCPU(model), mini_batch("categorical-auto"))


@pytest.mark.parametrize("kind", ["none", "made"])
def test_a_pair_is_as_before(kind: str) -> None:
    model = BayesianClassifier(Planted(kind), CLASSES)
    guide = MeanFieldNormal(model, estimator="auto")
    pair, batch = nn.ModuleList([model, guide]), mini_batch("categorical-auto")
    held = dict(pair.named_parameters()) | dict(pair.named_buffers())
    values = {name: value.clone() for name, value in held.items()}
    random = torch.get_rng_state()
    try:
        check_device(model, guide, batch)
    except AssertionError:
        assert kind == "made"
    now = dict(pair.named_parameters()) | dict(pair.named_buffers())
    assert all(now[name] is value for name, value in held.items())
    assert all(torch.equal(value, values[name]) for name, value in held.items())
    assert torch.equal(torch.get_rng_state(), random)
    assert model(**batch).device.type == "cpu"


@pytest.mark.parametrize("objective", [Geco(0.5), ImportanceWeighted(3)], ids=["geco", "iw"])
def test_an_objective_stays_on_the_device(objective: nn.Module) -> None:
    model, guide = PAIRS["latent"]()
    pair = nn.ModuleList([model, guide, objective]).train()
    with preserved_state(pair), imitated((pair,), mini_batch("latent"), WITH_GRADIENTS) as there:
        with NoCopies(), pyro.validation_enabled(False):
            loss = objective(model, guide, there, 32, 1.0)
            loss.value.backward()
        assert loss.value.device.type == WITH_GRADIENTS
