"""Runs of fit on several processes that work together, and on one that draws the same noise."""

import contextlib
import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from killed_runs import Moment
from torch import Tensor, distributed, nn

from ppl_med.data import Batches, DatasetBatches
from ppl_med.inference import (
    SWAG,
    EarlyStopping,
    Geco,
    Laplace,
    MeanFieldNormal,
    PointEstimate,
    VariationalOnlineNewton,
    fit,
    process_group,
)
from ppl_med.inference.checkpoint import program_state
from ppl_med.inference.training.ranks import together
from ppl_med.inference.training.trainer import Trainer
from ppl_med.models import BayesianClassifier
from ppl_med.programs import rng

CASES, BATCH_SIZE, EPOCHS = 46, 15, 2  # the last batch has one case, fewer than there are ranks
LONG_EPOCHS = 12  # steps enough for several deaths


def cases(number: int = CASES) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    label = generator.integers(0, 2, number)
    image = generator.normal(size=(number, 1, 8, 8)) + label[:, None, None, None]
    return {"image": image.astype("float32"), "label": label}


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(108, 2))


class Sometimes(nn.Module):
    """One part is never used, another by batches of full size only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Flatten(), nn.Linear(64, 2)
        self.never, self.sometimes = nn.Linear(3, 3), nn.Linear(64, 2)

    def forward(self, image: Tensor) -> Tensor:
        flat = self.first(image)
        out = self.last(flat)
        return out + self.sometimes(flat) if len(image) > 1 else out


def classifier(network: Callable[[], nn.Module] = net, **options: Any) -> Any:
    torch.manual_seed(0)
    return BayesianClassifier(network(), ["no", "yes"], **options).double()


def in_double(batch: dict[str, Any], _: torch.Generator) -> dict[str, Any]:
    """So that what is left of a difference is no rounding."""
    return {**batch, "image": batch["image"].double()}


def whole(**options: Any) -> Batches:
    return Batches(cases(), batch_size=BATCH_SIZE, shuffle=True, transform=in_double, **options)


class Crops(torch.utils.data.Dataset):
    """Volumes of which each gives another number of crops."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        found = cases()
        return [
            {"image": torch.tensor(found["image"][i]).double(), "label": int(found["label"][i])}
            for i in range(index, index + 1 + index % 3)
        ]


def mean_field() -> dict[str, Any]:
    model = classifier()
    guide = MeanFieldNormal(model, estimator="shared").double()
    return {"model": model, "guide": guide, "batches": whole()}


def point() -> dict[str, Any]:
    model = classifier()
    guide = PointEstimate(model).double()
    return {"model": model, "guide": guide, "batches": whole(drop_last=True)}


def newton() -> dict[str, Any]:
    return {**mean_field(), "optimizer": VariationalOnlineNewton(precision_rate=0.1)}


def everything() -> dict[str, Any]:
    """Steps of two batches, clipped, averaged, at several rates of which one is 0."""
    validation = Batches(cases(20), batch_size=8, transform=in_double)
    return {
        **mean_field(),
        "learning_rate": {"*.0.weight": 0, "*.0.bias": 1e-3, "*": 1e-2},
        "optimizer": partial(torch.optim.SGD, momentum=0.5),
        "accumulate": 2,
        "clip_norm": 0.5,
        "average": 0.9,
        "schedule": "cosine",
        "kl_weight": lambda done: done,
        "validation": validation,
        "keep": "best",
        "stopping": EarlyStopping(patience=5),
    }


def constrained() -> dict[str, Any]:
    return {**mean_field(), "objective": Geco(0.3, rate=0.1)}


def listed() -> dict[str, Any]:
    return {**mean_field(), "batches": [*whole()]}


def crops() -> dict[str, Any]:
    batches = DatasetBatches(Crops(), batch_size=3, shuffle=True)
    return {**mean_field(), "batches": batches}


def unused() -> dict[str, Any]:
    """Deterministic layers, of which some take part in some steps."""
    model = classifier(Sometimes, where="last.*")
    return {"model": model, "guide": PointEstimate(model).double(), "batches": whole()}


def iterates() -> dict[str, Any]:
    model = classifier()
    guide = SWAG(model, start=0.2, iterates=9, rank=3).double()
    return {"model": model, "guide": guide, "batches": whole()}


def curvature() -> dict[str, Any]:
    model = classifier()
    guide = Laplace(model, structure="diag").double()
    return {"model": model, "guide": guide, "batches": whole()}


def noisy(**options: Any) -> dict[str, Any]:
    """Every case has noise of its own."""
    model = classifier()
    guide = MeanFieldNormal(model, estimator="flipout").double()
    return {"model": model, "guide": guide, "batches": whole(), "validation": whole()} | options


SCENARIOS: dict[str, Callable[[], dict[str, Any]]] = {
    f.__name__: f
    for f in (
        *(mean_field, point, newton, everything, constrained),
        *(listed, crops, unused, iterates, curvature),
    )
}
Found = dict[str, Any]


@contextlib.contextmanager
def shared_noise() -> Iterator[None]:
    """Every rank draws the noise of rank 0, and a process on its own the same."""
    own = together.noise_seed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together, "noise_seed", lambda seed, rank, *place: own(seed, 0, *place))
        patch.setattr(
            *(together.Ranks, "seed"),
            lambda self, seed, *place: rng.seed_in_use(own(seed, 0, *place)),
        )
        yield


def trained(options: dict[str, Any], **more: Any) -> Found:
    """History and state that a run leaves."""
    plain: dict[str, Any] = {"epochs": EPOCHS, "device": "cpu", "progress": False}
    history = fit(**plain | {"learning_rate": 1e-2} | options | more)
    return {
        "state": program_state(options["model"], options["guide"]),
        "history": {name: _plain(values) for name, values in history.data_vars.items()},
        "attrs": history.attrs,
    }


def _plain(values: Any) -> Any:
    array = values.values
    return array.tolist() if array.dtype.kind in "OU" else torch.as_tensor(array)


def same_noise(names: list[str], folder: Path) -> None:
    """All scenarios, one after the other."""
    with shared_noise():
        for name in names:
            torch.save(trained(SCENARIOS[name]()), folder / f"{name}-{rank()}.pt")


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


@contextlib.contextmanager
def at_step(number: int, act: Callable[[], Any]) -> Iterator[None]:
    """Do something before a step."""
    step, steps = Trainer._step, 0

    def counted(self: Trainer, *arguments: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == number:
            act()
        step(self, *arguments)

    setattr(Trainer, "_step", counted)  # noqa: B010
    try:
        yield
    finally:
        setattr(Trainer, "_step", step)  # noqa: B010


def send(number: int, of_rank: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number) if rank() == of_rank else None


# --- processes


def start_ranks(size: int, target: Callable[..., None], *args: Any) -> list[Any]:
    """Start a function on every rank of a group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [processes.start(_as_rank, one, size, port, target, args) for one in range(size)]


def run_ranks(size: int, target: Callable[..., None], *args: Any, limit: float = 120) -> list[int]:
    """Run a function on every rank of a group, and return their exit codes."""
    started = start_ranks(size, target, *args)
    return processes.wait(started, f"{target.__name__}{args}", limit)


def _as_rank(own: int, size: int, port: int, target: Callable[..., None], args: Any) -> None:
    os.environ |= {"RANK": str(own), "WORLD_SIZE": str(size), "LOCAL_RANK": str(own)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    target(*args)


def train_and_die(folder: Path, deaths: int) -> None:
    """Train, a rank being killed at a random moment where this is no later start than the last."""
    start = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    moment = np.random.default_rng((7, start))
    victim, step, delay = moment.integers(2), moment.integers(1, 4), moment.uniform(0, 0.02)
    path = folder / "run.pt"
    if start < deaths and victim == process_group.rank():
        Moment(int(step), float(delay)).arm(Trainer, "_step")
    long = {"epochs": LONG_EPOCHS, "checkpoint": path, "checkpoint_every": 0, "resume": True}
    torch.save(trained(noisy(), **long), folder / f"after{deaths}-{rank()}.pt")


if __name__ == "__main__":
    train_and_die(Path(sys.argv[1]), int(sys.argv[2]))
