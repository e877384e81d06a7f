"""Replays of a captured step draw noise of their own: new weights every time, of the right law.

Noise that a graph repeats trains a deterministic net at one offset, without any error. So the draws
of ten thousand replays are compared with their law, and a graph with such a fault is refused when
it is recorded. On a machine without a GPU, a tape of operators stands for the graph, and tapes with
a fault show that both tests see it.
"""

import random
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from taped_graph import Frozen, FrozenAlthoughAdvancing, TapedGraph, imitate
from torch import Tensor, nn

from ppl_med.inference import MeanFieldNormal, fit, warm_up
from ppl_med.inference.training.captured import captured_step
from ppl_med.inference.training.captured.replay_check import Outcome, difference
from ppl_med.inference.training.updates import Updates
from ppl_med.models import BayesianClassifier
from ppl_med.networks import LeNet

FALSE_ALARM = 1e-5  # of each of the three tests below
SOME, MANY = 2000, 10_000  # replays
PLACE, SPREAD, FAR = 0.3, 0.5, 20.0


class OneWeight(nn.Module):
    """A number w, and an observation so far away that its density tells w."""

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        one = image.new_ones(())  # a number would be sent to the GPU in every step
        w = pyro.sample("w", dist.Normal(image.new_zeros(()), one))
        with pyro.plate("case", num_cases or len(image), subsample=image):
            pyro.sample("label", dist.Normal(w, one), obs=label)


class ItsGuide(nn.Module):
    """w ~ Normal(PLACE, SPREAD^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(PLACE))
        self.log_scale = nn.Parameter(torch.tensor(SPREAD).log())

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        pyro.sample("w", dist.Normal(self.loc, self.log_scale.exp()))


def drawn_weights(device: str, replays: int) -> NDArray[np.float64]:
    """w at every step of a captured run that learns nothing, dims (step,)."""
    batch = {"image": torch.zeros(1, 1, 1, 1), "label": torch.full((1,), FAR)}
    history = fit(
        OneWeight(),
        ItsGuide(),
        [batch] * (replays // 10),
        epochs=10,
        learning_rate=1e-20,
        capture=True,
        device=device,
        seed=5,
        progress=False,
    )
    nll: NDArray[np.float64] = history["nll"].to_numpy()
    return FAR - np.sqrt(2 * (nll - 0.5 * np.log(2 * np.pi)))


def faults(w: NDArray[np.float64]) -> list[str]:
    """Which tests reject that draws are independent Normal(PLACE, SPREAD^2)."""
    z = (w - PLACE) / SPREAD
    size = len(z)
    square = float((z**2).sum())
    chi2 = 2 * min(stats.chi2.cdf(square, size), stats.chi2.sf(square, size))
    levels = {
        "mean": 2 * stats.norm.sf(abs(z.mean()) * np.sqrt(size)),
        "variance": chi2,
        "neighbours": 2 * stats.norm.sf(abs((z[1:] * z[:-1]).mean()) * np.sqrt(size - 1)),
    }
    return [name for name, level in levels.items() if level < FALSE_ALARM]


def check_fresh(device: str, replays: int) -> None:
    w = drawn_weights(device, replays)
    assert len(w) == replays
    assert faults(w) == []
    # Of so many float32 draws, the nearest few agree by chance, to the accuracy of the NLL.
    assert len(np.unique(w)) > 0.9 * replays


@pytest.mark.parametrize("replays", [SOME, pytest.param(MANY, marks=pytest.mark.slow)])
def test_replays_draw_by_the_law(replays: int, monkeypatch: pytest.MonkeyPatch) -> None:
    imitate(monkeypatch)
    check_fresh("cpu", replays)
    assert TapedGraph.made[0].replays > 0.99 * replays


@pytest.mark.gpu
def test_ten_thousand_replays_on_a_gpu_draw_by_the_law() -> None:
    check_fresh("cuda", MANY)


@pytest.mark.parametrize("graph", [Frozen, FrozenAlthoughAdvancing])
def test_the_law_is_not_that_of_frozen_noise(graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The power of the test above, where nothing checks a graph when it is recorded."""
    imitate(monkeypatch, graph)
    monkeypatch.setattr(captured_step, "check_replays", lambda *_: None)
    w = drawn_weights("cpu", 200)
    assert "variance" in faults(w) and "neighbours" in faults(w)
    assert len(np.unique(w)) < 10


# ---------------------------------------------------------------- what is refused when recorded


def classifier() -> BayesianClassifier:
    torch.manual_seed(0)
    return BayesianClassifier(LeNet(1, 2, size=16), ["a", "b"])


def capture(model: Any, guide: Any = None, **options: Any) -> None:
    batch = {"image": torch.randn(4, 1, 16, 16), "label": torch.tensor([0, 1, 0, 1])}
    settings = {"epochs": 3, "capture": True, "device": "cpu", "progress": False, **options}
    fit(model, guide or MeanFieldNormal(model, estimator="shared"), [batch] * 2, **settings)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (Frozen, "do not draw from the generator as the step does"),
        (FrozenAlthoughAdvancing, "repeat the same noise"),
    ],
)
def test_frozen_noise_is_refused(graph: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    imitate(monkeypatch, graph)
    with pytest.raises(RuntimeError, match=f"capture=True: .* {message}.* pass capture=False"):
        capture(classifier())


class Moody(BayesianClassifier):
    """Multiplies its image by a number of Python's generator while it trains."""

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        factor = random.uniform(0.5, 2) if self.training else 1.0
        return super().forward(image * factor, label, num_cases=num_cases)


def test_numbers_of_the_host_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    imitate(monkeypatch)
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match=r"give another loss than the step|other gradients"):
        capture(Moody(LeNet(1, 2, size=16), ["a", "b"]))


def exchanged(name: str) -> Any:
    """A way to open a step that puts new tensors in the place of those which replays read."""
    opened = Updates._open

    def wrong(self: Updates, size: int, rates: Any, weight: float) -> None:
        opened(self, size, rates, weight)
        if name == "rate":
            for group in self.optimizer.param_groups:
                group["lr"] = group["lr"].clone()
        elif isinstance(self.kl_weight, Tensor):
            self.kl_weight = self.kl_weight.clone()

    return wrong


@pytest.mark.parametrize(
    ("name", "message"), [("rate", "move the parameters otherwise"), ("weight", "other gradients")]
)
def test_a_frozen_rate_or_kl_weight_is_refused(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    imitate(monkeypatch)
    monkeypatch.setattr(Updates, "_open", exchanged(name))
    with pytest.raises(RuntimeError, match=message):
        capture(classifier(), schedule="cosine", kl_weight=warm_up())


def outcome(term: float, gradient: float = 1.0, move: float = 1.0, generator: int = 0) -> Outcome:
    def vector(value: float) -> Tensor:
        return torch.full((3,), value, dtype=torch.float64)

    return Outcome(
        torch.tensor([term, 7.0]).double(), vector(gradient), vector(move), torch.tensor(generator)
    )


def test_rounding_is_no_difference() -> None:
    drawn = [3.0, 3.2, 2.9, 3.1]
    pairs = [(outcome(x * (1 + 1e-6), 1.001, 1.1), outcome(x)) for x in drawn]
    assert difference(pairs, 1e-4) is None


def test_a_program_without_noise_is_none_that_repeats_it() -> None:
    assert difference([(outcome(3.0), outcome(3.0))] * 4, 1e-4) is None


def test_a_loss_that_is_not_finite_is_left_to_the_training() -> None:
    assert difference([(outcome(1.0), outcome(float("nan")))] * 4, 1e-4) is None
