"""Loggers: the same figures as the history, epoch by epoch, wherever they go."""

import csv
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ppl_med.data import Batches
from ppl_med.inference import (
    CsvLogger,
    Ensemble,
    MLflowLogger,
    PointEstimate,
    TensorBoardLogger,
    WandbLogger,
    fit,
)
from ppl_med.models import BayesianClassifier


def cases() -> Batches:
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(12, 1, 2, 2, generator=generator)
    return Batches({"image": image, "label": torch.arange(12) % 2}, batch_size=6)


def train(members: int = 1, **options: Any) -> Any:
    torch.manual_seed(0)
    model = BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), ("a", "b"))
    guide: Any = PointEstimate(model) if members == 1 else Ensemble(model, PointEstimate, members)
    settings: dict[str, Any] = {"epochs": 2, "progress": False, "device": "cpu"}
    return fit(model, guide, cases(), validation=cases(), **(settings | options))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_holds_every_epoch_of_every_member_once(tmp_path: Path) -> None:
    log, run = tmp_path / "logs" / "run.csv", tmp_path / "run.pt"
    history = train(2, callbacks=[CsvLogger(log)], checkpoint=run)
    found = rows(log)
    places = [(row["member"], row["epoch"]) for row in found]
    assert places == [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]
    means = history[["elbo", "nll", "kl"]].groupby("epoch").mean()
    for row in found:
        at: dict[str, Any] = {"chain": int(row["member"])}
        own, epoch = means.isel(at), int(row["epoch"])
        for name in ("elbo", "nll", "kl"):
            assert float(row[name]) == pytest.approx(float(own[name][epoch]))
        score = history["validation_nll"].isel(at)[epoch]
        assert float(row["validation_nll"]) == float(score)
    # Trained further, the table grows by what is new; trained anew, it begins anew.
    train(2, callbacks=[CsvLogger(log)], checkpoint=run, resume=True, epochs=3)
    assert len(rows(log)) == 6 and rows(log)[:2] == found[:2]
    train(callbacks=[CsvLogger(log)], epochs=1)
    assert len(rows(log)) == 1


class Service:
    """What the loggers use of the three packages, with their signatures."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: list[tuple[str, float, int]] = []
        self.ended: list[str] = []
        self.run: Any = None
        board: Any = ModuleType("torch.utils.tensorboard")
        board.SummaryWriter = lambda folder: SimpleNamespace(
            add_scalar=lambda name, value, step: self.found.append((name, value, step)),
            flush=lambda: None,
            close=lambda: self.ended.append("tensorboard"),
        )
        flow: Any = ModuleType("mlflow")
        flow.active_run = lambda: self.run
        flow.start_run = lambda run_name=None: setattr(self, "run", run_name)
        flow.log_metrics = self._log_metrics
        flow.end_run = lambda: self.ended.append("mlflow")
        bias: Any = ModuleType("wandb")
        bias.init = lambda project, **_: SimpleNamespace(
            log=lambda row: self._log_metrics(row, row["epoch"]),
            finish=lambda: self.ended.append("wandb"),
        )
        for module in (board, flow, bias):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def _log_metrics(self, row: dict[str, float], step: int) -> None:
        self.found += [(name, value, step) for name, value in row.items() if name != "epoch"]


MAKE: dict[str, Any] = {
    "tensorboard": lambda folder: TensorBoardLogger(folder),
    "mlflow": lambda folder: MLflowLogger("mine"),
    "wandb": lambda folder: WandbLogger("project", mode="offline"),
}


@pytest.mark.parametrize("name", MAKE)
def test_a_service_is_told_of_every_epoch(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(monkeypatch)
    history = train(callbacks=[MAKE[name](tmp_path)])
    told = [(value, step) for key, value, step in service.found if key == "validation_nll"]
    np.testing.assert_array_equal([value for value, _ in told], history["validation_nll"])
    assert [step for _, step in told] == np.unique(history["epoch"]).tolist() == [0, 1]
    assert {"elbo", "nll", "kl"} <= {key for key, _, _ in service.found}
    assert service.ended == [name]


def test_members_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(monkeypatch)
    train(2, callbacks=[TensorBoardLogger(tmp_path)], epochs=1)
    assert {"member0/elbo", "member1/elbo"} <= {key for key, _, _ in service.found}


def test_a_run_of_mlflow_that_was_open_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(monkeypatch)
    service.run = "the user's"
    train(callbacks=[MLflowLogger()], epochs=1)
    assert service.found and service.run == "the user's" and service.ended == []


@pytest.mark.parametrize(
    ("name", "module"),
    [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow"), ("wandb", "wandb")],
)
def test_a_package_that_is_missing_is_named(
    name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"needs the package '{name}'.*pip install {name}"):
        MAKE[name](tmp_path)
