"""Digits as a pool, a part to tune on and a test part; the net that learns them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
from torch import Tensor, nn
from unknown_inputs.digit_files import read_idx

from ppl_med.data import Batches
from ppl_med.inference import BernoulliDropout, PointEstimate
from ppl_med.likelihoods import class_likelihood
from ppl_med.weights import Normal, RandomWeights
from ppl_med.weights.call_cache import cached_call

CLASSES = tuple(str(digit) for digit in range(10))
_LOC, _SCALE = 0.1307, 0.3081  # of MNIST
_TUNING = 1000


@dataclass(frozen=True)
class Digits:
    """A pool of unlabelled digits and what the oracle knows of them.

    Args:
        pool: Images and ids, in training batches of 32.
        label: The oracle's, in the order of the pool.
        test: Held-out digits with their labels.
    """

    pool: Batches
    label: np.ndarray
    test: Batches


def deal(data: Path, *, repeated: bool, smoke: bool) -> Digits:
    """Read the digits; the last 1000 of a fixed order are for tuning and in neither part.

    Args:
        data: Folder that holds ``mnist``.
        repeated: A pool of 700 digits, three times each with noise of sd 0.1.
        smoke: Very few.
    """
    train, test = (read_idx(data / "mnist", part) for part in ("train", "t10k"))
    order = np.random.default_rng(0).permutation(len(train["label"]))[:-_TUNING]
    kept = order[: 300 if smoke else 700 if repeated else len(order)]
    cases = _standardised(train, kept)
    if repeated:
        noise = np.random.default_rng(1)
        image = [cases["image"] + noise.normal(0, 0.1, cases["image"].shape) for _ in range(3)]
        cases = {
            "image": np.concatenate(image).astype(np.float32),
            "label": np.tile(cases["label"], 3),
            "id": np.array([f"{name}-{copy}" for copy in "abc" for name in cases["id"]]),
        }
    label = cases.pop("label")
    held_out = _standardised(test, np.arange(200 if smoke else len(test["label"])))
    return Digits(Batches(cases, batch_size=32), label, Batches(held_out, batch_size=2000))


def _standardised(part: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    image = ((part["image"][rows] / 255 - _LOC) / _SCALE).astype(np.float32)
    return {"image": image, "label": part["label"][rows], "id": part["id"][rows]}


class DigitNet(nn.Module):
    """Convolutions of one value, which run once a case, and two random dense layers.

    Program, sites and dims as `ppl_med.models.BayesianClassifier`; as in Gal et al. dropout stands
    before the dense layers alone, so that a further draw costs next to nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Flatten()),
        )
        head = nn.Sequential(nn.Linear(800, 64), nn.ReLU(), nn.Linear(64, 10))
        self.head = RandomWeights(head, Normal(1.0))
        self.likelihood = class_likelihood("categorical", CLASSES, (), "label")
        self.coords = self.likelihood.coords

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        """Run once, conditioned on ``label`` (case,) if given."""
        logits = self.head(cached_call(self.features, image))
        with pyro.plate("case", num_cases or len(image), subsample=image):
            self.likelihood(logits, label)


def bayesian() -> tuple[DigitNet, BernoulliDropout]:
    """The net and its dropout, at the rates of Gal et al."""
    model = DigitNet()
    return model, BernoulliDropout(model, {"0.weight": 0.25, "2.weight": 0.5})


def deterministic() -> tuple[DigitNet, PointEstimate]:
    """The same net and prior without dropout."""
    model = DigitNet()
    return model, PointEstimate(model)


NETS = {"dropout": bayesian, "point": deterministic}
"""Nets by name."""
