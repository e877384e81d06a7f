"""How tensors come to a device: by the device that was asked for, and without the host waiting."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import ppl_med
from ppl_med.inference import BernoulliDropout, MeanFieldNormal, fit
from ppl_med.inference.training.trainer import Trainer
from ppl_med.models import BayesianClassifier
from ppl_med.programs.sites import send, send_into, to_device

PACKAGE = Path(ppl_med.__file__).parent


def calls(source: str) -> Iterator[str]:
    """Names of the methods that a file calls without arguments, with their lines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args:
            yield f"{node.func.attr}:{node.lineno}"


def test_no_file_names_the_first_gpu_by_itself() -> None:
    """``.cuda()`` takes the present GPU whatever ``device`` says."""
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE / "models").glob("*.py")]
    files += (PACKAGE / "inference").rglob("*.py")
    found = [
        f"{file}:{call}" for file in files for call in calls(file.read_text()) if "cuda:" in call
    ]
    assert len(files) > 300 and found == []
    assert [*calls("net = net.cuda()")] == ["cuda:1"]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to tensors on their way to a GPU that seems to be there."""
    noted: list[str] = []

    def pin_memory(value: Tensor) -> Tensor:
        noted.append(f"pin {value.ndim}")
        return value

    def to(value: Tensor, device: torch.device, *, non_blocking: bool = False) -> Tensor:
        noted.append(f"{device.type} {value.ndim}{', not waiting' if non_blocking else ''}")
        return value

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(Tensor, "to", to)
    return noted


def test_what_goes_to_a_gpu_is_pinned_and_copied_without_waiting(steps: list[str]) -> None:
    batch = {"image": torch.randn(2, 1, 4, 4), "label": torch.tensor([0, 1]), "id": ["a", "b"]}
    there = to_device(batch, torch.device("cuda"))
    assert there["id"] == ["a", "b"]
    assert steps == ["pin 4", "cuda 4, not waiting", "pin 1", "cuda 1, not waiting"]


def test_what_goes_into_a_tensor_of_a_gpu_is_pinned_and_not_waited_for(
    steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(self: Tensor, value: Tensor, non_blocking: bool = False) -> Tensor:
        steps.append(f"copied {len(value)}{', not waiting' if non_blocking else ''}")
        return self

    monkeypatch.setattr(Tensor, "copy_", copy)
    with FakeTensorMode():
        target = torch.empty(2, device="cuda")
    send_into(torch.zeros(2), target)
    send_into(torch.zeros(2), torch.zeros(2))
    assert steps == ["pin 1", "copied 2, not waiting", "copied 2, not waiting"]


def test_what_is_there_or_stays_on_the_cpu_is_not_pinned(steps: list[str]) -> None:
    send(torch.zeros(3), torch.device("cpu"))
    send(torch.zeros(3, device="meta"), torch.device("cuda"))
    assert steps == ["cpu 1, not waiting", "cuda 1, not waiting"]


@pytest.mark.filterwarnings("ignore:the KL is")
def test_the_step_sends_a_batch_and_its_weights_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cases weigh is a tensor where a sampler draws them unevenly."""
    sent: list[tuple[int, ...]] = []

    def noted(value: Tensor, device: torch.device) -> Tensor:
        sent.append(tuple(value.shape))
        return value.to(device)

    monkeypatch.setattr("ppl_med.programs.sites.send", noted)
    monkeypatch.setattr("ppl_med.inference.training.captured.captured_step.send", noted)
    data = [{"image": torch.randn(1, 4, 4), "label": torch.tensor(n % 2)} for n in range(4)]
    sampler = torch.utils.data.WeightedRandomSampler([1.0, 2.0, 1.0, 2.0], 4)
    loader: Any = torch.utils.data.DataLoader(data, 2, sampler=sampler)  # type: ignore[arg-type]
    model = BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), ["a", "b"])
    taken: list[Any] = []
    step = Trainer._step

    def watched(self: Any, member: Any, batch: Any, factor: Any) -> None:
        sent.clear()
        step(self, member, batch, factor)
        taken.append([*sent])

    monkeypatch.setattr(Trainer, "_step", watched)
    fit(model, MeanFieldNormal(model), loader, progress=False, device="cpu")
    assert taken == [[(2, 1, 4, 4), (2,), (2,)]] * 2


@pytest.mark.parametrize("kind", [MeanFieldNormal, BernoulliDropout])
def test_code_that_passes_by_an_estimator_is_refused(kind: Any) -> None:
    """It would read the mean of q for a weight, and nobody would notice."""

    class Bypass(nn.Linear):
        def forward(self, image: Tensor) -> Tensor:
            with torch._C.DisableTorchFunctionSubclass():
                return F.linear(image, self.weight, self.bias)

    net = nn.Sequential(nn.Flatten(), Bypass(16, 2))
    model = BayesianClassifier(net, ["a", "b"])
    options: Any = {"estimator": "auto"} if kind is MeanFieldNormal else {"skip_first": False}
    guide = kind(model, **options)
    image, label = torch.randn(2, 1, 4, 4), torch.tensor([0, 1])
    with pytest.raises(RuntimeError, match="estimator='shared'"):
        fit(model, guide, [{"image": image, "label": label}], progress=False, device="cpu")
