"""The guides that are held against NUTS, one line each."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ppl_med.inference import (
    HMC,
    NUTS,
    SGHMC,
    SGLD,
    SWAG,
    BernoulliDropout,
    ConcreteDropout,
    Ensemble,
    Laplace,
    LowRankNormal,
    MeanFieldNormal,
    PointEstimate,
    RadialNormal,
    fit,
    predict,
    sample,
)
from truth.problems import Problem

DRAWS = 200


@dataclass(frozen=True)
class Prior:
    """Draws of the prior: what a guide is that has learnt nothing."""

    def infer(self, problem: Problem, model: Any, seed: int, device: str) -> tuple[Any, int]:
        """No guide, and the number of draws."""
        return None, DRAWS


@dataclass(frozen=True)
class Fitted:
    """A guide that ``fit`` trains, by Adam on all cases, its rate falling along a cosine.

    Attributes:
        build: From a model to a guide.
        steps: Steps of training.
        draws: Draws to compare.
    """

    build: Callable[[Any], Any]
    steps: int = 600
    draws: int = DRAWS

    def infer(self, problem: Problem, model: Any, seed: int, device: str) -> tuple[Any, int]:
        """The trained guide, and the number of draws."""
        guide = self.build(model)
        fit(
            model,
            guide,
            [problem.train],
            epochs=self.steps,
            learning_rate=2e-2,
            schedule="cosine",
            seed=seed,
            device=device,
            progress=False,
        )
        return guide, self.draws


@dataclass(frozen=True)
class Sampled:
    """Chains of a kernel.

    Attributes:
        kernel: From a problem's step size to a kernel.
        draws, warm_up, chains, thin: As in ``sample``.
        parts: Batches of an epoch.
    """

    kernel: Callable[[float], Any]
    draws: int = 100
    warm_up: int = 150
    chains: int = 2
    thin: int = 1
    parts: int = 1

    def infer(self, problem: Problem, model: Any, seed: int, device: str) -> tuple[Any, None]:
        """The chains; all draws are compared."""
        rows = torch.arange(len(problem.train["image"])) % self.parts
        names = [name for name in problem.train if name != "id"]
        batches = [{n: problem.train[n][rows == part] for n in names} for part in range(self.parts)]
        options = {"draws": self.draws, "warm_up": self.warm_up, "thin": self.thin}
        with warnings.catch_warnings():  # told in the table
            warnings.filterwarnings("ignore", ".* of the trajectories diverged")
            found = sample(
                model,
                batches,
                self.kernel(problem.step_size),
                chains=self.chains,
                seed=seed,
                device=device,
                progress=False,
                **options,
            )
        return found, None


LANGEVIN = {"draws": 100, "warm_up": 500, "thin": 10, "parts": 4}
REFERENCE = Sampled(lambda step: NUTS(6), draws=200, warm_up=150, chains=4)
LONGER = {"regression": Sampled(lambda step: NUTS(7), draws=250, warm_up=200, chains=4)}
GUIDES: dict[str, Prior | Fitted | Sampled] = {
    "prior": Prior(),
    "point": Fitted(PointEstimate),
    "mean field": Fitted(partial(MeanFieldNormal, estimator="auto")),
    "low rank": Fitted(partial(LowRankNormal, rank=8)),
    "radial": Fitted(RadialNormal),
    "dropout": Fitted(partial(BernoulliDropout, rate=0.1, skip_first=False)),
    "concrete dropout": Fitted(partial(ConcreteDropout, skip_first=False)),
    "Laplace, diagonal": Fitted(partial(Laplace, structure="diag")),
    "Laplace, Kronecker": Fitted(partial(Laplace, structure="kron")),
    "Laplace, full": Fitted(partial(Laplace, structure="full")),
    "Laplace, last layer": Fitted(partial(Laplace, structure="last_layer")),
    "SWAG": Fitted(SWAG),
    "ensemble": Fitted(partial(Ensemble, guide_factory=PointEstimate, members=5), draws=1),
    "SGLD": Sampled(lambda step: SGLD(step), **LANGEVIN),
    "SGHMC": Sampled(lambda step: SGHMC(step / 10), **LANGEVIN),
    "HMC": Sampled(lambda step: HMC(max_steps=64)),
}


def smaller(guide: Prior | Fitted | Sampled) -> Prior | Fitted | Sampled:
    """The same, for a run of seconds."""
    if isinstance(guide, Fitted):
        return replace(guide, steps=2, draws=min(guide.draws, 4))
    if isinstance(guide, Sampled):
        return replace(guide, kernel=_small(guide.kernel), draws=4, warm_up=20, thin=1)
    return guide


def _small(kernel: Callable[[float], Any]) -> Callable[[float], Any]:
    made = kernel(1e-5)
    if isinstance(made, NUTS | HMC):
        return lambda step: NUTS(2)
    return lambda step: type(made)(1e-7)


def functions_of(
    inference: Prior | Fitted | Sampled, problem: Problem, seed: int, device: str
) -> tuple[Any, float]:
    """The tree of a guide's predictions at the test images, and the seconds of processor time."""
    torch.manual_seed(seed)
    model = problem.model()
    started = time.process_time()
    guide, draws = inference.infer(problem, model, seed, device)
    seconds = time.process_time() - started
    options: dict[str, Any] = {} if draws is None else {"draws": draws}
    options |= {"seed": seed, "device": device, "progress": False}
    tree = predict(model, guide, [problem.test], **options)
    return tree, seconds


def values_of(tree: Any) -> np.ndarray:
    """Predicted numbers or probabilities, dims (chain, draw, case, ...)."""
    group = tree["posterior" if "posterior" in tree.children else "prior"].dataset
    return group["probs" if "probs" in group else "loc"].values
