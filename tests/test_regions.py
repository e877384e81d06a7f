"""Several processes predict into one Zarr store, each its own regions, what one process gives."""

import shutil
import socket
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from killed_runs import Moment, cases, classifier, die_in_zarr_write
from rank_processes import run_together
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ppl_med import storage
from ppl_med.axes import SPACE
from ppl_med.data import Batches
from ppl_med.inference import MeanFieldNormal, predict, predictive, process_group
from ppl_med.inference.prediction import regions, zarr_layout
from ppl_med.inference.prediction.case_arrays import CaseArrays
from ppl_med.inference.prediction.posterior_sampler import PosteriorSampler
from ppl_med.inference.prediction.regions import Regions
from ppl_med.inference.process_group import barrier, rank

CASES, BATCH_SIZE, GROUP = 90, 4, 8
Death = tuple[int, int, float, int | None]  # rank, call, seconds after it, or write of Zarr


def predicted(store: Path | None, death: Death | None = None, **options: Any) -> xr.DataTree:
    """What every rank runs; one of them is killed on the way, where there is a ``death``."""
    torch.set_num_threads(1)
    if death is not None and death[0] == rank():
        if death[3] is None:
            Moment(death[1], death[2]).arm(PosteriorSampler, "run")
        else:
            die_in_zarr_write(death[3])
    torch.manual_seed(options.pop("weights", 0))
    model = classifier()
    guide = MeanFieldNormal(model, init_scale=options.pop("init_scale", 0.05))
    batches = options.pop("batches", Batches(cases(CASES), batch_size=BATCH_SIZE))
    settings = {"draws": 3, "seed": 5, "resume": True, "prior_draws": 2, "device": "cpu"}
    settings |= {"store": store, "progress": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictive, "CHUNK_CASES", GROUP)
        patch.setattr(zarr_layout, "MOST_BYTES", options.pop("most_bytes", 64))  # in shards by 64
        return predict(model, guide, batches, **{**settings, **options})


def write(store: Path, death: Death | None = None) -> None:
    assert predicted(store, death)["posterior/probs"].sizes["case"] == CASES


def groups_of(path: Path) -> dict[str, xr.Dataset]:
    loaded = storage.load(path)
    assert isinstance(loaded, xr.DataTree)
    return {node.path: node.to_dataset(inherit=False) for node in loaded.subtree}


def write_few(store: Path) -> None:
    predicted(store, batches=Batches(cases(6), batch_size=BATCH_SIZE))


def assert_same_bits(path: Path, expected: Path) -> None:
    """Every array and coordinate of two stores, bit for bit, and attributes; nothing beside it."""
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
    assert [one.name for one in path.parent.iterdir()] == ["run.zarr"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process writes, without shards."""
    path = tmp_path_factory.mktemp("alone") / "run.zarr"
    predicted(path, most_bytes=2**24)
    return path


def slow(number: int, *quick: int) -> list[Any]:
    marks = [() if one in quick else pytest.mark.slow for one in range(number)]
    return [pytest.param(one, marks=mark) for one, mark in enumerate(marks)]


@pytest.mark.parametrize("run", slow(20, 1))
def test_several_processes_write_what_one_writes(run: int, alone: Path, tmp_path: Path) -> None:
    path, ranks = tmp_path / "runs" / "run.zarr", 2 + run % 3
    assert run_together(write, ranks, tmp_path / "meet", path) == [0] * ranks
    assert_same_bits(path, alone)
    probs: Any = zarr.open_group(path, mode="r")["posterior/probs"]
    assert probs.shards == (1, 3, GROUP, 2) and probs.nchunks > 4 * probs._nshards
    assert len(list(path.glob("posterior/probs/c/*/*/*/*"))) == -(-CASES // GROUP)


def test_a_rank_without_cases_waits_for_the_others(tmp_path: Path) -> None:
    """Two groups of cases for three ranks."""
    expected, path = (tmp_path / name / "run.zarr" for name in ("one", "three"))
    write_few(expected)
    assert run_together(write_few, 3, tmp_path / "meet", path, limit=60) == [0] * 3
    assert_same_bits(path, expected)


@pytest.mark.parametrize("seed", slow(20, 0))
def test_a_rank_killed_at_any_moment_loses_nothing(seed: int, alone: Path, tmp_path: Path) -> None:
    """As under ``torchrun``, all are started anew then, and here in another number."""
    rng, path = np.random.default_rng(seed), tmp_path / "runs" / "run.zarr"
    died = 0
    for attempt in range(4):
        ranks = 1 + attempt % 2 if attempt == 3 else int(rng.integers(2, 5))
        call, at_write = int(rng.integers(3, 20)), int(rng.integers(1, 30))
        way = at_write if rng.random() < 0.4 else None
        death = (int(rng.integers(ranks)), call, float(rng.uniform(0, 0.05)), way)
        meet = tmp_path / f"meet{attempt}"
        codes = run_together(write, ranks, meet, path, death if attempt < 3 else None)
        assert path.exists() >= (codes == [0] * ranks)
        died += -9 in codes
    assert died > 0 and codes == [0] * ranks
    assert_same_bits(path, alone)


@pytest.mark.parametrize("write_of_zarr", slow(8, 0))
def test_a_run_killed_in_its_first_writes_goes_on(
    write_of_zarr: int, alone: Path, tmp_path: Path
) -> None:
    path = tmp_path / "runs" / "run.zarr"
    death = (0, 0, 0.0, write_of_zarr + 1)
    assert run_together(write, 1, tmp_path / "meet0", path, death) == [-9]
    assert run_together(write, 1, tmp_path / "meet1", path) == [0]
    assert_same_bits(path, alone)


def test_what_is_left_of_a_run_can_be_removed_again_when_that_was_interrupted(
    tmp_path: Path,
) -> None:
    partial = tmp_path / "run.zarr.partial"
    for name in ("observed_data", "posterior"):
        zarr.open_group(partial, mode="a").create_group(name)
    remove = shutil.rmtree

    def once(path: Path, **options: Any) -> None:
        remove(path, **options)
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", once)
        for _ in range(2):
            with pytest.raises(InterruptedError):
                predicted(tmp_path / "run.zarr")
    assert predicted(tmp_path / "run.zarr")["posterior/probs"].sizes["case"] == CASES


def test_after_a_restart_nobody_finds_the_addresses_of_the_dead(monkeypatch: Any) -> None:
    """``torchrun`` keeps its store, in which a rank that starts early would read them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    named = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    found = []
    for start in "01":
        for name, value in {**named, "TORCHELASTIC_RESTART_COUNT": start}.items():
            monkeypatch.setenv(name, value)
        found.append(process_group._meeting_place()["store"])
        found[0].set("address", "of the dead")
    assert [store.check(["address"]) for store in found] == [True, False]


# --- what cannot be the same


def told(call: Any) -> str:
    """What an error says."""
    with pytest.raises((ValueError, OSError)) as caught:
        call()
    return str(caught.value)


class Rows(Dataset):
    """Cases by themselves, with their ids."""

    def __len__(self) -> int:
        return CASES

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[index] for name, values in cases(CASES).items()}


def parts() -> DataLoader:
    """Of which each process gets every other case."""
    return DataLoader(Rows(), 4, sampler=DistributedSampler(Rows(), shuffle=False))


def wrong_calls(folder: Path) -> None:
    """Calls that no rank gets through; what they are told is written down."""
    path, own = folder / "run.zarr", rank()
    found = [
        told(lambda: predicted(None, resume=False)),
        told(lambda: predicted(folder / "run.nc", resume=False)),
        told(lambda: predicted(path, init_scale=0.1 + own)),
        told(lambda: predicted(path, seed=own)),
        told(lambda: predicted(path, batches=Batches(cases(CASES + own), batch_size=4))),
        told(lambda: predicted(path, batches=[*Batches(cases(80), batch_size=4)][own::2])),
    ]
    found.append(told(lambda: predicted(path, batches=parts())))
    assert not [*folder.glob("run.zarr*")]  # it is told before any work
    barrier()
    path.mkdir(exist_ok=True)
    barrier()
    found.append(told(lambda: predicted(path, resume=False)))
    (folder / f"told{own}").write_text("\n".join(found))


def test_what_cannot_be_the_same_is_refused_on_all_ranks(tmp_path: Path) -> None:
    assert run_together(wrong_calls, 2, tmp_path / "meet", tmp_path) == [0, 0]
    first, second = ((tmp_path / f"told{own}").read_text().splitlines() for own in (0, 1))
    assert first == second
    assert "on 2 processes, which need store='run.zarr'" in first[0] and "run.nc" in first[1]
    for line, name in zip(first[2:6], ("parameters_sha256", "seed", "data", "data"), strict=True):
        assert f"rank 1 has another {name}" in line
    assert "batches have a DistributedSampler" in first[6]
    assert "run.zarr exists" in first[7]


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "num_ranks", lambda: 2)
    monkeypatch.setattr(regions, "of_all_ranks", lambda value: [value, value])


@pytest.mark.usefixtures("two_ranks")
def test_every_group_that_is_not_done_goes_to_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"p{number}" for number in range(38)]
    dealt = []
    for own in range(2):
        monkeypatch.setattr(regions, "rank", lambda own=own: own)
        some = Regions([(0, 8), (16, 24)], ids, 8)
        starts = range(0, 38, 8)
        dealt.append([start for start in starts if some.is_mine(start, ids[start : start + 8])])
        some.check_same_cases()
        assert some.num_cases == 38
    assert dealt == [[8, 32], [24]]


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize(
    ("done", "group", "message"),
    [
        ([], (6, 14), r"cases 6 to 13 would share a chunk of the store, of 8 cases"),
        ([], (8, 24), r"cases 8 to 23 would share a chunk"),
        ([(0, 4)], (0, 8), r"some of the cases 0 to 7 are in the store already"),
        ([(0, 8)], (0, 8), r"other cases than the interrupted run.*positions 0 to 7"),
    ],
)
def test_two_ranks_never_share_a_chunk(done: Any, group: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Regions(done, ["another"] * 8, 8).is_mine(group[0], ["p"] * (group[1] - group[0]))


@pytest.mark.usefixtures("two_ranks")
def test_ranks_that_saw_other_cases_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "of_all_ranks", lambda value: [value, (3, "other")])
    some = Regions()
    some.is_mine(0, ["p0", "p1"])
    with pytest.raises(ValueError, match=r"rank 1 has other cases.*\(3 against 2\).*Distributed"):
        some.check_same_cases()


# --- shards


def ones(first: int, last: int) -> xr.Dataset:
    values = np.ones((1, 4, last - first, 3))
    case = [f"p{number}" for number in range(first, last)]
    return xr.Dataset({"probs": (("chain", "draw", "case", "class"), values)}, {"case": case})


def fill_ones(folder: Path) -> None:
    """Every rank fills its own shards, at the same time."""
    arrays = CaseArrays(folder)
    if rank() == 0:
        arrays.make("posterior", ones(0, 16))
        arrays.resize(16 * 33)
    barrier()
    for group in range(1 + rank(), 33, 4):
        arrays.fill("posterior", ones(16 * group, 16 * (group + 1)), 16 * group, grows=False)


def test_no_one_is_lost_where_four_processes_fill_shards(tmp_path: Path, monkeypatch: Any) -> None:
    """Ones, so that a shard that two had written, or nobody, would be missing in the sum."""
    monkeypatch.setattr(zarr_layout, "MOST_BYTES", 256)
    with pytest.raises(ValueError, match="hold more than 16 cases"):
        CaseArrays(tmp_path / "a.zarr").make("posterior", ones(0, 16))
        CaseArrays(tmp_path / "a.zarr").fill("posterior", ones(16, 32), 16, grows=False)
    folder = tmp_path / "run.zarr"
    assert run_together(fill_small, 4, tmp_path / "meet", folder) == [0] * 4
    probs: Any = zarr.open_group(folder, mode="r")["posterior/probs"]
    assert probs.shards == (1, 4, 16, 3) and probs.shape == (1, 4, 528, 3)
    assert probs[:].sum() == 4 * 528 * 3


@pytest.mark.parametrize(
    ("shape", "dims", "chunks", "shards"),
    [
        ((1, 32, 512, 10), ("class",), (1, 32, 512, 10), None),  # 1.3 MB: a small one is one chunk
        ((1, 32, 512, 250), ("class",), (1, 32, 256, 250), (1, 32, 512, 250)),
        ((2, 32, 64, 50, 50), ("row", "col"), (2, 16, 16, 50, 50), (2, 32, 64, 50, 50)),
        ((1, 31, 64, 100, 99), ("row", "col"), (1, 1, 16, 100, 99), (1, 31, 64, 100, 99)),
        ((1, 16, 1, 999, 72, 72), SPACE[3], (1, 1, 1, 333, 72, 72), (1, 1, 1, 999, 72, 72)),
        ((1, 32, 2, 128, 128, 64), SPACE[3], (1, 1, 2, 128, 128, 64), None),
    ],
)
def test_chunks_are_to_be_read_and_shards_to_be_written(
    shape: Any, dims: Any, chunks: Any, shards: Any, monkeypatch: Any
) -> None:
    """Both divide each other, chunks of large arrays hold 1 to 16 MiB; the last two are large."""
    monkeypatch.setattr(zarr_layout, "MOST_BYTES", 2**24)  # `predicted` makes shards of few bytes
    values = np.broadcast_to(np.zeros(()), shape)
    dataset = xr.Dataset({"probs": (("chain", "draw", "case", *dims), values)})
    found = zarr_layout.layout(dataset)["probs"]
    assert found["chunks"] == chunks and found.get("shards") == shards
    if shards is not None:
        assert 2**20 <= 8 * np.prod(chunks) <= 2**24
        assert all(one % other == 0 for one, other in zip(shards, chunks, strict=True))


def test_dask_reads_several_chunks_of_small_cases(alone: Path, monkeypatch: Any) -> None:
    """A case of 3 draws and 2 classes has 48 bytes at most, chunks of the store 8 cases."""
    monkeypatch.setattr(zarr_layout, "MOST_BYTES", 2 * GROUP * 48)
    found = zarr_layout.dask_chunks(alone)["case"]
    assert found % GROUP == 0 and found >= 2 * GROUP
    with warnings.catch_warnings(action="error"):  # of chunks that would be cut
        tree = xr.open_datatree(alone, engine="zarr", consolidated=False, chunks={"case": found})
    stored = xr.open_datatree(alone, engine="zarr", consolidated=False)
    for name in ("posterior", "observed_data"):
        xr.testing.assert_equal(tree[name].to_dataset(), stored[name].to_dataset())
    monkeypatch.setattr(zarr_layout, "MOST_BYTES", 48)
    assert zarr_layout.dask_chunks(alone) == {}


def test_a_tree_in_shards_is_saved_anew(alone: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Dask writes by chunks, of which two may not share a shard."""
    monkeypatch.setattr(predictive, "CHUNK_CASES", GROUP)
    monkeypatch.setattr(zarr_layout, "MOST_BYTES", 64)
    tree = predicted(tmp_path / "run.zarr")
    chunks: Any = tree["posterior/probs"].chunks
    assert set(chunks[2]) == {2}
    storage.save(tree, tmp_path / "again.zarr")
    again = groups_of(tmp_path / "again.zarr")
    for name, group in groups_of(alone).items():
        xr.testing.assert_equal(again[name], group)


def fill_small(folder: Path) -> None:
    zarr_layout.MOST_BYTES = 256
    fill_ones(folder)
