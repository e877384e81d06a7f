"""What cannot be captured is refused before any training, with what is wrong and the cure."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from taped_graph import imitate
from test_captured_steps import batches, lenet, state, train
from torch import Tensor, nn

from ppl_med.inference import ImportanceWeighted, MeanFieldNormal, PointEstimate, fit
from ppl_med.inference.training.captured.eligibility import check_alone
from ppl_med.models import BayesianClassifier, DUQClassifier
from ppl_med.networks import LeNet
from ppl_med.weights import RandomWeights

pytestmark = pytest.mark.filterwarnings("ignore:the KL is")


@pytest.fixture
def imitated(monkeypatch: pytest.MonkeyPatch) -> None:
    imitate(monkeypatch)


@pytest.mark.usefixtures("imitated")
def test_a_step_that_exchanges_tensors_is_refused() -> None:
    class Moving(DUQClassifier):
        """Its centroids are new tensors after every step."""

        def after_step(self, image: Tensor, label: Tensor) -> None:
            super().after_step(image, label)
            self.centroids.total = self.centroids.total.clone()

    with pytest.raises(RuntimeError, match="write into it"):
        train(lambda: Moving(LeNet(1, 5, size=16), ["a", "b"], 5), PointEstimate, capture=True)


class Reading(BayesianClassifier):
    """Looks at its logits on the way."""

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        logits = super().forward(image, label, num_cases=num_cases)
        assert logits.isfinite().all()
        return logits


class DrawingOnTheHost(BayesianClassifier):
    """Adds noise from NumPy's generator while it trains."""

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        noise = float(np.random.normal()) if self.training else 0.0  # noqa: NPY002
        return super().forward(image + noise, label, num_cases=num_cases)


class PartOfThePixels(nn.Module):
    """Observes some columns only, which are drawn anew in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.network = RandomWeights(nn.Conv2d(1, 1, 1))

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        output = self.network(image)
        with pyro.plate("case", num_cases or len(image), subsample=image, dim=-2):
            with pyro.plate("col", 16, subsample_size=4, dim=-1):
                law = dist.Normal(output.mean((1, 2, 3))[:, None].expand(-1, 4), 1.0)
                seen = None if label is None else label[:, None].expand(-1, 4).float()
                pyro.sample("label", law, obs=seen)


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "accumulated": (lenet, {"accumulate": 2}, "accumulate must be 1 with capture=True, got 2"),
    "particles": (lenet, {"objective": ImportanceWeighted()}, "objective must be Elbo"),
    "optimizer": (
        lenet,
        {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)},
        "optimizer must be one of torch's .* got 'SGD'; such as Adam",
    ),
    "reading": (
        lambda: Reading(LeNet(1, 2, size=16), ["a", "b"]),
        {},
        "capture must be False .* makes the host wait for the device, at .*assert logits.isfinite",
    ),
    "drawing on the host": (
        lambda: DrawingOnTheHost(LeNet(1, 2, size=16), ["a", "b"]),
        {},
        "capture must be False .* draw random numbers on the host",
    ),
    "random plate": (
        PartOfThePixels,
        {},
        "capture must be False with the plate 'col', which draws 4 of 16",
    ),
}


@pytest.mark.usefixtures("imitated")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_is_refused_before_any_training(name: str) -> None:
    make, options, message = REFUSED[name]
    torch.manual_seed(0)
    model = make()
    guide = MeanFieldNormal(model)
    before = [value.clone() for value in state(model, guide)]
    settings = {"capture": True, "device": "cpu", "progress": False, **options}
    with pytest.raises(ValueError, match=message):
        fit(model, guide, batches(), **settings)
    for value, earlier in zip(state(model, guide), before, strict=True):
        assert torch.equal(value, earlier)


def test_a_cpu_captures_nothing() -> None:
    model = lenet()
    with pytest.raises(ValueError, match="capture must be False on the device 'cpu'"):
        fit(model, MeanFieldNormal(model), batches(), capture=True, device="cpu")


@pytest.mark.usefixtures("imitated")
def test_batches_of_more_than_tensors_are_refused() -> None:
    class Told(BayesianClassifier):
        def forward(
            self, image: Tensor, label: Any = None, *, view: Any = None, num_cases: Any = None
        ) -> Tensor:
            return super().forward(image, label, num_cases=num_cases)

    torch.manual_seed(0)
    model = Told(LeNet(1, 2, size=16), ["a", "b"])
    guide = MeanFieldNormal(model)
    data = [{"image": torch.randn(2, 1, 16, 16), "label": torch.tensor([0, 1]), "view": "front"}]

    with pytest.raises(ValueError, match="'view' would stay as in the first batch"):
        fit(model, Guided(guide), data, capture=True, device="cpu", progress=False)


class Guided(nn.Module):
    """A guide that takes whatever the model takes."""

    def __init__(self, guide: nn.Module) -> None:
        super().__init__()
        self.guide = guide

    def forward(self, *inputs: Any, num_cases: int | None = None, **options: Any) -> None:
        self.guide(*inputs, num_cases=num_cases)


def test_several_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="capture must be False in several processes"):
        check_alone(2, capture=True)
