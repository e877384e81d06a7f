"""Killed and resumed equals uninterrupted, bit for bit."""

from pathlib import Path
from typing import Any

import killed_runs
import numpy as np
import pytest
import torch
import xarray as xr
from killed_runs import SCENARIOS, STEPS, Moment, classifier, differences
from processes import run_apart
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ppl_med.data import Batches
from ppl_med.inference import MeanFieldNormal, PointEstimate, checkpoint, fit, predict
from ppl_med.models import BayesianClassifier

KILLED = -9


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder of a whole run, by scenario."""
    folders: dict[str, Path] = {}

    def folder(scenario: str) -> Path:
        if scenario not in folders:
            folders[scenario] = tmp_path_factory.mktemp(scenario)
            assert run_apart(killed_runs.train, scenario, folders[scenario], None) == 0
        return folders[scenario]

    return folder


def moments(scenario: str, steps: int) -> list[Moment]:
    """The first step, where estimators count the uses of weights, and two random ones."""
    rng = np.random.default_rng(sum(map(ord, scenario)))
    calls = [2, *rng.integers(1, steps // 3, size=2)]
    return [Moment(int(call), float(rng.uniform(0, 0.02))) for call in calls]


def assert_same_run(folder: Path, whole: Path) -> None:
    first, second = checkpoint.read(folder / "run.pt"), checkpoint.read(whole / "run.pt")
    assert len(first["histories"][0]["nll"]) == STEPS
    assert differences(first, second) == []
    with xr.open_dataset(folder / "history.nc") as a, xr.open_dataset(whole / "history.nc") as b:
        xr.testing.assert_identical(a.load(), b.load())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_training_killed_three_times_equals_the_whole_run(
    scenario: str, uninterrupted: Any, tmp_path: Path
) -> None:
    members = 2 if scenario in ("ensemble", "curvature") else 1
    for moment in moments(scenario, members * STEPS):
        assert run_apart(killed_runs.train, scenario, tmp_path, moment) == KILLED
        checkpoint.read(tmp_path / "run.pt")
    assert run_apart(killed_runs.train, scenario, tmp_path, None) == 0
    assert_same_run(tmp_path, uninterrupted(scenario))


def test_a_kill_while_writing_leaves_the_earlier_checkpoint(
    uninterrupted: Any, tmp_path: Path
) -> None:
    scenario = "shuffled_loader"
    assert run_apart(killed_runs.train, scenario, tmp_path, None, 5) == KILLED
    assert len(checkpoint.read(tmp_path / "run.pt")["histories"][0]["nll"]) == 4
    left = [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    assert len(left) == 2  # the checkpoint, and the unfinished one beside it
    assert run_apart(killed_runs.train, scenario, tmp_path, None) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.nc", "run.pt"]
    assert_same_run(tmp_path, uninterrupted(scenario))


@pytest.mark.parametrize("kind", ["mean_field", "ensemble"])
def test_prediction_killed_three_times_equals_the_whole_run(kind: str, tmp_path: Path) -> None:
    whole, store = tmp_path / "whole.zarr", tmp_path / "run.zarr"
    assert run_apart(killed_runs.draw, kind, whole, None) == 0
    chains = 2 if kind == "ensemble" else 1
    rng = np.random.default_rng(len(kind))
    calls = [*rng.integers(1, 12 * chains, size=2), 1]
    for call in calls:
        moment = Moment(int(call), float(rng.uniform(0, 0.05)))
        assert run_apart(killed_runs.draw, kind, store, moment) == KILLED
        assert not store.exists()
    assert run_apart(killed_runs.draw, kind, store, None) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.zarr", "whole.zarr"]
    first, second = (
        xr.open_datatree(path, engine="zarr", consolidated=False).load() for path in (whole, store)
    )
    assert set(first.groups) == set(second.groups) >= {"/posterior", "/prior", "/constant_data"}
    for node in first.subtree:
        xr.testing.assert_equal(node.to_dataset(), second[node.path].to_dataset())
    ids = second["posterior/probs"].coords["case"].values.tolist()
    assert ids == killed_runs.cases()["id"]


@pytest.mark.parametrize("write", [70, 79, 103, 120, 172])
def test_a_kill_while_writing_a_store_leaves_nothing_in_it(write: int, tmp_path: Path) -> None:
    store = tmp_path / "run.zarr"
    assert run_apart(killed_runs.draw, "mean_field", store, None, write) == KILLED
    # The store to be, and at least one file of Zarr's, which writes several at a time.
    assert len(list(tmp_path.rglob("*.*.partial"))) >= 2
    assert run_apart(killed_runs.draw, "mean_field", store, None) == 0
    assert list(tmp_path.rglob("*.partial")) == []
    tree = xr.open_datatree(store, engine="zarr", consolidated=False).load()
    assert tree["posterior"].sizes["case"] == killed_runs.CASES


def run(folder: Path, **options: Any) -> xr.Dataset:
    """A short run in this process, resumed where there is a checkpoint."""
    model = classifier()
    defaults: dict[str, Any] = {"epochs": 2, "seed": 1, "resume": True, "num_cases": 44}
    settings = defaults | {"batches": killed_runs._batches()} | options
    path = folder / "run.pt"
    guide = MeanFieldNormal(model)
    return fit(model, guide, checkpoint=path, progress=False, device="cpu", **settings)


def test_a_complete_run_is_read_and_not_trained(tmp_path: Path, monkeypatch: Any) -> None:
    whole = run(tmp_path)
    written = (tmp_path / "run.pt").stat().st_mtime_ns
    monkeypatch.setattr(killed_runs.Trainer, "_step", None)
    xr.testing.assert_identical(run(tmp_path), whole)
    assert (tmp_path / "run.pt").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 2}, "seed"),
        ({"epochs": 1}, "epochs"),
        ({"num_cases": 45}, "num_cases"),
        ({"learning_rate": 1e-2}, "learning_rate"),
        ({"kl_weight": 0.5}, "kl_weight"),
        ({"schedule": "cosine"}, "schedule"),
        ({"precision": "bfloat16"}, "precision"),
        ({"batches": killed_runs._batches(seed=3)}, "batches.seed"),
        ({"batches": Batches(killed_runs.cases(), batch_size=22)}, "len\\(batches\\)"),
        (
            {"optimizer": lambda ps: torch.optim.SGD([{"params": ps[:1]}, {"params": ps[1:]}])},
            "optimizer",
        ),
    ],
)
def test_a_run_resumed_with_other_arguments_is_refused(
    change: dict[str, Any], name: str, tmp_path: Path
) -> None:
    run(tmp_path)
    before = (tmp_path / "run.pt").read_bytes()
    with pytest.raises(ValueError, match=name):
        run(tmp_path, **change)
    assert (tmp_path / "run.pt").read_bytes() == before


def test_an_existing_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(FileExistsError, match="resume=True"):
        run(tmp_path, resume=False)


def stored(folder: Path, guide_seed: int = 0, **options: Any) -> xr.DataTree:
    model = classifier()
    guide = MeanFieldNormal(model, init_scale=0.05 + guide_seed)
    settings: dict[str, Any] = {"draws": 2, "progress": False, "device": "cpu"} | options
    batches = settings.pop("batches", Batches(killed_runs.cases(), batch_size=8))
    return predict(model, guide, batches, store=folder / "run.zarr", **settings)


def interrupted(folder: Path, monkeypatch: Any) -> None:
    """Leave what a run leaves that stops after its first chunk of cases."""
    from ppl_med.inference import predictive
    from ppl_med.inference.prediction import sinks

    monkeypatch.setattr(predictive, "CHUNK_CASES", 16)
    append = sinks.ZarrSink.append
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def once(self: Any, chunk: Any) -> None:
            if chunk.start:
                raise KeyboardInterrupt
            append(self, chunk)

        patch.setattr(sinks.ZarrSink, "append", once)
        stored(folder)


def test_a_complete_store_is_opened_and_not_drawn_again(tmp_path: Path, monkeypatch: Any) -> None:
    whole = stored(tmp_path).load()
    monkeypatch.setattr("ppl_med.inference.predictive._Run.chunks", None)
    again = stored(tmp_path, resume=True).load()
    assert whole.identical(again)
    with pytest.raises(FileExistsError, match=r"run\.zarr"):
        stored(tmp_path)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"draws": 3}, "draws"),
        ({"guide_seed": 1}, "parameters"),
        ({"log_likelihood_of": "training"}, "log_likelihood_of"),
        ({"batches": Batches(killed_runs.cases() | {"id": None}, batch_size=8)}, "other cases"),
        ({"batches": Batches(killed_runs.cases(), batch_size=8, shuffle=True)}, "other cases"),
    ],
)
def test_a_store_resumed_with_other_arguments_is_refused(
    change: dict[str, Any], name: str, tmp_path: Path, monkeypatch: Any
) -> None:
    interrupted(tmp_path, monkeypatch)
    with pytest.raises(FileExistsError, match="resume=True"):
        stored(tmp_path)
    with pytest.raises(ValueError, match=name):
        stored(tmp_path, resume=True, **change)


def test_a_store_is_resumed_in_batches_of_another_size(tmp_path: Path, monkeypatch: Any) -> None:
    interrupted(tmp_path, monkeypatch)
    other = Batches(killed_runs.cases(), batch_size=12)
    resumed = stored(tmp_path, resume=True, batches=other).load()
    (tmp_path / "whole").mkdir()
    whole = stored(tmp_path / "whole").load()
    for node in whole.subtree:
        xr.testing.assert_allclose(
            node.to_dataset(), resumed[node.path].to_dataset(), rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize("scenario", ["shuffled_loader", "loader_with_generator", "ensemble"])
def test_a_run_resumed_after_every_step_equals_the_whole_run(
    scenario: str, uninterrupted: Any, tmp_path: Path
) -> None:
    assert run_apart(killed_runs.train_step_by_step, scenario, tmp_path) == 0
    assert_same_run(tmp_path, uninterrupted(scenario))


class Unreadable(Dataset[dict[str, Any]]):
    """Eight cases, of which one cannot be read at a certain access."""

    def __init__(self, fails_at: int) -> None:
        self.left, self.values = fails_at, torch.randn(8, 1, 4, 4, generator=seeded(0))

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.left -= 1
        if self.left == 0:
            raise OSError("the disk was away for a moment")
        return {"image": self.values[index] + torch.randn(()), "label": torch.tensor(index % 2)}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("with_generator", [False, True])
def test_a_case_that_could_not_be_read_is_read_when_resumed(
    with_generator: bool, tmp_path: Path
) -> None:
    """Wherever it was in the second epoch; its first batch has drawn the order already."""

    def run(name: str, fails_at: int) -> torch.Tensor:
        generator = seeded(3) if with_generator else None
        loader = DataLoader(Unreadable(fails_at), 2, shuffle=True, generator=generator)
        torch.manual_seed(0)
        model = BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), ["a", "b"])
        guide = PointEstimate(model)
        options: Any = {"epochs": 3, "learning_rate": 0.1, "progress": False, "resume": True}
        fit(model, guide, loader, checkpoint=tmp_path / name, **options)
        return guide.center()

    whole, looked_at = run("whole.pt", -1), 10  # before the first epoch
    for access in range(looked_at + 9, looked_at + 13):
        with pytest.raises(OSError, match="disk was away"):
            run(f"{access}.pt", access)
        assert torch.equal(run(f"{access}.pt", -1), whole)


def test_prior_draws_that_were_interrupted_are_drawn_anew(tmp_path: Path, monkeypatch: Any) -> None:
    from ppl_med.inference import predictive
    from ppl_med.inference.prediction import sinks

    monkeypatch.setattr(predictive, "CHUNK_CASES", 16)
    write = sinks.ZarrSink.append_prior
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def once(self: Any, chunk: Any) -> None:
            write(self, chunk)
            raise KeyboardInterrupt

        patch.setattr(sinks.ZarrSink, "append_prior", once)
        stored(tmp_path, prior_draws=2)
    resumed = stored(tmp_path, prior_draws=2, resume=True).load()
    (tmp_path / "whole").mkdir()
    whole = stored(tmp_path / "whole", prior_draws=2).load()
    for node in whole.subtree:
        xr.testing.assert_equal(node.to_dataset(), resumed[node.path].to_dataset())
