"""Small runs of active learning, also in processes of their own that are killed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from killed_runs import Moment
from torch import nn

from ppl_med.data import Batches
from ppl_med.inference import BernoulliDropout, active_learn
from ppl_med.inference.active.oracles import AskedLabels
from ppl_med.inference.active.steps import Steps
from ppl_med.inference.training.trainer import Trainer
from ppl_med.models import BayesianClassifier

CASES, BUDGET, START, SIZE, EPOCHS = 48, 12, 4, 4, 2


def arrays(name: str, cases: int = CASES) -> dict[str, Any]:
    rng = np.random.default_rng(len(name))
    label = rng.integers(0, 2, cases)
    image = rng.normal(size=(cases, 1, 4, 4)) + 0.5 * label[:, None, None, None]
    ids = [f"{name}-{number}" for number in range(cases)]
    return {"image": image.astype("float32"), "label": label, "id": ids}


def masked(name: str, cases: int = 12) -> dict[str, Any]:
    """Pictures whose bright half is class 1."""
    rng = np.random.default_rng(len(name))
    mask = np.zeros((cases, 8, 8), np.int8)
    for number, column in enumerate(rng.integers(0, 7, cases)):
        mask[number, :, column:] = number % 3 > 0
    image = mask[:, None] + rng.normal(size=(cases, 1, 8, 8))
    ids = [f"{name}-{number}" for number in range(cases)]
    return {"image": image.astype("float32"), "mask": mask, "id": ids}


LABELS = dict(zip(arrays("pool")["id"], arrays("pool")["label"].tolist(), strict=True))


def group(tree: xr.DataTree, name: str) -> xr.Dataset:
    """A group of a tree."""
    return tree[name].to_dataset()


def ids(tree: xr.DataTree, step: int | None = None) -> list[str]:
    """Cases in the order in which they were bought."""
    bought = group(tree, "purchases")
    kept = slice(None) if step is None else bought["step"].values == step
    return bought["case"].values[kept].tolist()


def pool() -> Batches:
    return Batches(arrays("pool"), batch_size=8)


def test_cases() -> Batches:
    return Batches(arrays("heldout", 20), batch_size=20)


test_cases.__test__ = False  # type: ignore[attr-defined]


def program() -> tuple[nn.Module, nn.Module]:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 2))
    model = BayesianClassifier(net, ["no", "yes"])
    return model, BernoulliDropout(model, rate=0.2)


def person(folder: Path) -> Callable[[list[str]], list[int]]:
    """A function that knows the labels and notes who was asked for."""

    def look(ids: list[str]) -> list[int]:
        with (folder / "asked.txt").open("a") as file:
            file.writelines(f"{name}\n" for name in ids)
        return [LABELS[name] for name in ids]

    return look


def disagreement(tree: xr.DataTree) -> xr.DataArray:
    """A score in one line, which costs less than those of the package."""
    return group(tree, "posterior")["probs"][..., 1].var(("chain", "draw"))


def surprise(tree: xr.DataTree) -> xr.Dataset:
    """A figure likewise."""
    return xr.Dataset({"nll": -group(tree, "log_likelihood")["label"].mean()})


def learn(folder: Path | None, oracle: Any = None, **changes: Any) -> xr.DataTree:
    options: dict[str, Any] = {
        "acquisition": disagreement,
        "figures": surprise,
        "budget": BUDGET,
        "test": test_cases(),
        "start": START,
        "size": SIZE,
        "draws": 3,
        "fit_options": {"epochs": EPOCHS, "learning_rate": 0.02},
        "folder": folder,
        "resume": folder is not None,
        "progress": False,
        "device": "cpu",
    }
    if oracle is None:
        oracle = arrays("pool")["label"]
    make = changes.pop("make_program", program)
    cases = changes.pop("pool", pool())
    return active_learn(make, cases, oracle, **{**options, **changes})


OWNERS: dict[str, tuple[Any, str]] = {
    "training": (Trainer, "_step"),
    "answer": (AskedLabels, "_keep"),
    "writing": (Steps, "_save"),
    "measuring": (Steps, "_figures"),
}


def learn_until_killed(folder: Path, warm_start: bool, moment: Moment | None, where: str) -> None:
    torch.set_num_threads(1)
    if moment is not None:
        moment.arm(*OWNERS[where])
    learn(folder / "run", person(folder), warm_start=warm_start)
