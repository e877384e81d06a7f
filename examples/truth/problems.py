"""Small problems whose posterior NUTS can sample in minutes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import make_moons
from sklearn.decomposition import PCA
from torch import nn
from unknown_inputs.digit_files import read_idx

from ppl_med.data.readers import load_malaria
from ppl_med.likelihoods import Gaussian
from ppl_med.models import BayesianClassifier, BayesianRegressor
from ppl_med.weights import FanInNormal, Normal

Arrays = dict[str, Any]
NOISE = 0.2


@dataclass(frozen=True)
class Problem:
    """Data, a model, and where its functions are compared.

    Attributes:
        train: Cases to learn from: image, and label or value.
        test: Images at which functions are compared.
        model: A new model, whose net starts from torch's generator.
        step_size: Of SGLD, squared weights per nat: a quarter of the inverse of the potential's
            largest curvature at the point estimate.
        truth: The true function at ``test``; None where nobody knows it.
    """

    train: Arrays
    test: Arrays
    model: Callable[[], nn.Module]
    step_size: float
    truth: np.ndarray | None = None


def _points(image: np.ndarray, **observed: np.ndarray) -> Arrays:
    """Cases of a few numbers as images of one row, with ids."""
    flat = np.asarray(image, np.float32).reshape(len(image), 1, 1, -1)
    found: Arrays = {"image": torch.from_numpy(flat)}
    found |= {name: torch.from_numpy(value) for name, value in observed.items()}
    return found | {"id": list(range(len(image)))}


def _tanh_net(inputs: int, hidden: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs)
    )


def _curve(x: np.ndarray) -> np.ndarray:
    return 0.8 * np.sin(3 * x)


def regression(data: Path) -> Problem:
    """A curve of one number, seen at both ends and not in the middle; the noise is known."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-1.5, -0.5, 20), rng.uniform(0.5, 1.5, 20)])
    value = (_curve(x) + NOISE * rng.normal(size=40)).astype(np.float32)

    def model() -> nn.Module:
        likelihood = Gaussian(heteroscedastic=False, init_scale=NOISE, loc=0.0, scale=1.0)
        likelihood.requires_grad_(False)
        return BayesianRegressor(_tanh_net(1, 10, 1), likelihood, FanInNormal(1.5))

    grid = np.linspace(-2, 2, 41)
    return Problem(_points(x, value=value), _points(grid), model, 2e-5, _curve(grid))


def moons(data: Path) -> Problem:
    """Two half-moons; compared on a grid that goes beyond them."""
    points, label = make_moons(100, noise=0.2, random_state=0)
    grid = np.stack(np.meshgrid(np.linspace(-2, 3, 9), np.linspace(-1.5, 2, 9)), -1)
    train = _points(points, label=label.astype(np.int64))

    def model() -> nn.Module:
        return BayesianClassifier(_tanh_net(2, 8, 2), ["upper", "lower"], FanInNormal(1.5))

    return Problem(train, _points(grid.reshape(-1, 2)), model, 1e-2)


def digits(data: Path) -> Problem:
    """Logistic regression of ten digits on ten principal components, 200 of them."""
    parts = [read_idx(data / "mnist", part) for part in ("train", "t10k")]
    images = [part["image"].reshape(len(part["image"]), -1) / 255.0 for part in parts]
    basis = PCA(10, svd_solver="randomized", random_state=0).fit(images[0][:5000])
    features = [basis.transform(image) for image in images]
    scale = features[0].std(0)
    train = _points(features[0][:200] / scale, label=parts[0]["label"][:200])

    def model() -> nn.Module:
        net = nn.Sequential(nn.Flatten(), nn.Linear(10, 10))
        return BayesianClassifier(net, [str(digit) for digit in range(10)], Normal(1.0))

    return Problem(train, _points(features[1][:60] / scale), model, 1e-2)


def cells(data: Path) -> Problem:
    """A convolutional net on 200 malaria cells of 16 x 16 pixels."""
    parts = load_malaria(data)
    rng = np.random.default_rng(0)

    def some(split: str, number: int) -> Arrays:
        rows = np.sort(rng.permutation(len(parts[split]["label"]))[:number])
        image = torch.from_numpy(np.asarray(parts[split]["image"][rows])).float() / 255
        small = nn.functional.interpolate(image, (16, 16), mode="area")
        label = torch.from_numpy(np.asarray(parts[split]["label"][rows]).astype(np.int64))
        return {"image": small, "label": label, "id": list(range(number))}

    train, test = some("train", 200), some("val", 60)
    loc = train["image"].mean((0, 2, 3), keepdim=True)
    scale = train["image"].std((0, 2, 3), keepdim=True)
    for part in (train, test):
        part["image"] = (part["image"] - loc) / scale

    def model() -> nn.Module:
        net = nn.Sequential(
            nn.Conv2d(1, 4, 5, stride=2), nn.Tanh(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(16, 2)
        )
        return BayesianClassifier(net, ["uninfected", "parasitized"], FanInNormal(1.0))

    return Problem(train, {name: test[name] for name in ("image", "id")}, model, 1e-3)


PROBLEMS: dict[str, Callable[[Path], Problem]] = {
    "regression": regression,
    "moons": moons,
    "digits": digits,
    "cells": cells,
}
