"""Several processes predict into one Zarr store, each its own regions, what one process gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from killed_runs import Moment, cases, classifier, die_in_zarr_write
from rank_processes import run_together

from ppl_med import storage
from ppl_med.data import Batches
from ppl_med.inference import MeanFieldNormal, predict, predictive
from ppl_med.inference.data_digest import DATA
from ppl_med.inference.prediction.posterior_sampler import PosteriorSampler
from ppl_med.inference.process_group import rank

CASES, BATCH_SIZE = 90, 4


def predicted(store: Path, **options: Any) -> None:
    """What every rank runs."""
    predictive.CHUNK_CASES = 8
    torch.set_num_threads(1)
    model = classifier()
    batches = options.pop("batches", Batches(cases(CASES), batch_size=BATCH_SIZE))
    settings: dict[str, Any] = {"draws": 3, "seed": 5, "resume": True, "prior_draws": 2} | options
    tree = predict(
        model,
        MeanFieldNormal(model),
        batches,
        store=store,
        progress=False,
        device="cpu",
        **settings,
    )
    assert tree["posterior/probs"].sizes["case"] == CASES


def groups_of(path: Path) -> dict[str, xr.Dataset]:
    loaded = storage.load(path)
    assert isinstance(loaded, xr.DataTree)
    return {node.path: node.to_dataset(inherit=False) for node in loaded.subtree}


def assert_same_bits(path: Path, expected: Path) -> None:
    """Every array and coordinate of two stores, bit for bit, and attributes."""
    found, wanted = groups_of(path), groups_of(expected)
    assert found.keys() == wanted.keys()
    for name, group in wanted.items():
        assert found[name].variables.keys() == group.variables.keys()
        for variable, values in group.variables.items():
            other = found[name].variables[variable]
            assert other.dims == values.dims and other.dtype == values.dtype
            assert other.values.tobytes() == values.values.tobytes(), f"{name}/{variable}"
            assert other.attrs == values.attrs
        attrs = [{**one.attrs, "wall_time_seconds": 0} for one in (found[name], group)]
        assert attrs[0] == attrs[1]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("alone") / "run.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictive, "CHUNK_CASES", 8)
        predicted(path)
    return path


@pytest.mark.parametrize("ranks", [2, 4])
def test_several_processes_write_what_one_writes(ranks: int, alone: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "run.zarr"
    assert run_together(predicted, ranks, tmp_path / "meet", path) == [0] * ranks
    assert_same_bits(path, alone)
    assert [one.name for one in path.parent.iterdir()] == ["run.zarr"]
