"""A store of predict that was damaged, cut off or shared is refused or goes on; nothing is lost."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
import xarray as xr
import zarr
from killed_runs import cases, classifier
from posterior_trees import array, classification_tree

from ppl_med import storage
from ppl_med.data import Batches
from ppl_med.inference import MeanFieldNormal, fit, predict, predictive
from ppl_med.inference.prediction import zarr_sink
from ppl_med.storage import atomic, locks


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictive, "CHUNK_CASES", 16)


def run(batches: Any = None, *, batch_size: int = 8, **options: Any) -> xr.DataTree:
    torch.manual_seed(0)
    model = classifier()
    given = batches if batches is not None else Batches(cases(), batch_size=batch_size)
    settings: dict[str, Any] = {"draws": 2, "progress": False, "device": "cpu"} | options
    return predict(model, MeanFieldNormal(model), given, **settings)


class Stopped(Exception):
    """Stands for the end of a process."""


def stopped(batches: int, batch_size: int = 8) -> Iterator[Any]:
    """Batches of a process that ends after a few of them."""

    class Some:
        def __len__(self) -> int:
            return len(whole)

        def __iter__(self) -> Iterator[Any]:
            # The dry run looks at the first one.
            for number, batch in enumerate(whole):
                if number == batches:
                    raise Stopped
                yield batch

    whole = list(Batches(cases(), batch_size=batch_size))
    return Some()  # type: ignore[return-value]


def interrupted(path: Path, batches: int = 3) -> None:
    with pytest.raises(Stopped):
        run(stopped(batches), store=path)


def assert_probs(path: Path, expected: xr.DataTree) -> None:
    loaded = storage.load(path)
    assert isinstance(loaded, xr.DataTree)
    xr.testing.assert_equal(array(loaded, "posterior/probs"), array(expected, "posterior/probs"))


# ------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("damage", ["chunk", "variable", "shape", "attribute", "empty"])
def test_a_store_that_lost_something_is_not_read_as_fill_values(
    damage: str, tmp_path: Path
) -> None:
    """Without a word, labels of a lost chunk would be class 0."""
    path = tmp_path / "run.zarr"
    run(store=path)
    label = path / "observed_data/label"
    note = {"shape": label / "zarr.json", "attribute": path / "zarr.json"}.get(damage)
    if damage == "variable":
        shutil.rmtree(label)
    elif note is not None:
        content = json.loads(note.read_text())
        if damage == "shape":
            content["shape"] = [content["shape"][0] + 1]
        else:
            content["attributes"]["seed"] = 7
        note.write_text(json.dumps(content))
    else:
        chunk = label / "c/1"
        chunk.unlink()
        if damage == "empty":
            chunk.touch()
    with pytest.raises(ValueError, match=r"run\.zarr.*damaged"):
        storage.load(path)
    if damage != "attribute":
        with pytest.raises(ValueError, match=r"run\.zarr is damaged.*delete it"):
            run(store=path, resume=True)


def test_every_chunk_carries_a_checksum(tmp_path: Path) -> None:
    run(store=tmp_path / "run.zarr")
    storage.save(classification_tree(cases=6, draws=4), tmp_path / "saved.zarr")
    for name in ("run.zarr", "saved.zarr"):
        root = zarr.open_group(tmp_path / name, mode="r")
        arrays = [one for _, one in root.members(max_depth=None) if isinstance(one, zarr.Array)]
        assert arrays
        for one in arrays:
            assert "Crc32cCodec" in [type(codec).__name__ for codec in one.compressors]
    chunk = next(tmp_path.glob("run.zarr/posterior/probs/c/*/*/*/*"))
    content = bytearray(chunk.read_bytes())
    for place in (0, len(content) // 2, len(content) - 1):
        content[place] ^= 1
        chunk.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            storage.load(tmp_path / "run.zarr")
        content[place] ^= 1


def test_an_interrupted_store_that_lost_a_chunk_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    interrupted(path)
    (tmp_path / "run.zarr.partial/observed_data/label/c/0").unlink()
    with pytest.raises(ValueError, match=r"observed_data/label lacks 1 of 1 chunks.*delete it"):
        run(store=path, resume=True)
    (tmp_path / "run.zarr.partial.json").write_text("{")
    with pytest.raises(ValueError, match=r"partial\.json is damaged.*delete it and"):
        run(store=path, resume=True)


def test_labels_of_one_class_are_written_all_the_same(tmp_path: Path) -> None:
    arrays = cases()
    arrays["label"] = np.zeros_like(arrays["label"])
    run(Batches(arrays, batch_size=8), store=tmp_path / "run.zarr")
    assert len(list((tmp_path / "run.zarr/observed_data/label/c").iterdir())) == 3


def test_a_netcdf_file_says_that_it_was_changed(tmp_path: Path) -> None:
    tree = classification_tree(cases=6, draws=4)
    path = storage.save(tree, tmp_path / "run.nc")
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(content) - 30, 200):
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"run\.nc.*its checksum is wrong"):
            storage.load(path)
        content[place] ^= 1
    path.write_bytes(content)
    with xr.open_datatree(path, engine="h5netcdf") as other:  # as any other program reads it
        xr.testing.assert_identical(other["posterior"].dataset.load(), tree["posterior"].dataset)
    added = xr.Dataset({"more": ("case", np.arange(6.0))})
    added.to_netcdf(path, mode="a", group="added", engine="h5netcdf")
    loaded = storage.load(path)
    assert isinstance(loaded, xr.DataTree) and "added" in loaded.children


# ------------------------------------------------------------------------------------ appends


def batches_with(change: Any) -> list[dict[str, Any]]:
    batches = list(Batches(cases(), batch_size=8))
    for batch in batches:
        change(batch)
    return batches


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.pop("age"), "/?constant_data is there for some cases only"),
        (lambda b: b.update(sex=b["age"]), "sex of constant_data is there for some cases only"),
        (lambda b: b.update(age=b["age"].float()), "age of constant_data is float32"),
        (lambda b: b.update(age=b["age"][:, None]), r"age of constant_data is float64 \(case, age"),
    ],
)
def test_what_follows_in_a_store_must_fit(change: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    interrupted(path, 2)
    with pytest.raises(ValueError, match=message):
        run(batches_with(change), store=path, resume=True)
    run(store=path, resume=True)
    assert_probs(path, run())


@pytest.mark.parametrize("names", [["yes", "no"], None])
def test_coordinates_of_later_cases_are_compared(
    names: list[str] | None, tmp_path: Path, monkeypatch: Any
) -> None:
    """Other class names for the same numbers, as after a change of the program, or none."""
    path = tmp_path / "run.zarr"
    interrupted(path, 2)
    coords = predictive.TreeBuilder.start

    def renamed(self: Any, *args: Any) -> Any:
        chunk = coords(self, *args)
        del chunk.coords["class"]
        chunk.coords |= {} if names is None else {"class": names}
        return chunk

    monkeypatch.setattr(predictive.TreeBuilder, "start", renamed)
    with pytest.raises(ValueError, match=r"coordinate class of posterior differs"):
        run(store=path, resume=True)


def test_another_batch_size_loses_nothing_when_killed(tmp_path: Path, monkeypatch: Any) -> None:
    """The note of progress is there whenever the process ends."""
    path, whole = tmp_path / "run.zarr", run()
    interrupted(path, 5)  # 32 cases
    with monkeypatch.context() as patch:
        patch.setattr(zarr_sink.ZarrSink, "_write", lambda *_: (_ for _ in ()).throw(Stopped))
        with pytest.raises(Stopped):
            run(store=path, resume=True, batch_size=12)  # chunks of 24 cases, the second one cut
    assert json.loads((tmp_path / "run.zarr.partial.json").read_text())["cases_done"] == [[0, 24]]
    run(store=path, resume=True, batch_size=12)
    assert_probs(path, whole)
    assert os.listdir(tmp_path) == ["run.zarr"]


@pytest.mark.parametrize("prior_draws", [0, 2])
@pytest.mark.parametrize("sealed", [False, True])
def test_a_run_killed_before_its_store_is_moved_into_place_goes_on(
    sealed: bool, prior_draws: int, tmp_path: Path, monkeypatch: Any
) -> None:
    """The last batch is not full, and summaries of the store hold arrays that are made anew."""
    path, seal = tmp_path / "run.zarr", zarr_sink.seal_store
    options: dict[str, Any] = {"batch_size": 7, "prior_draws": prior_draws}

    def killed(partial: Path) -> None:
        if sealed:
            seal(partial)
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(zarr_sink, "seal_store", killed)
        run(store=path, **options)
    run(store=path, resume=True, **options)
    expected = run(**options)
    assert_probs(path, expected)
    loaded: Any = storage.load(path)
    for group in expected.children:
        xr.testing.assert_equal(loaded[group].to_dataset(), expected[group].to_dataset())


@pytest.mark.parametrize("complete", [False, True])
def test_what_a_run_killed_in_its_last_note_left_is_gone(complete: bool, tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    if complete:
        run(store=path)
        (tmp_path / "run.zarr.partial.json").write_text("{}")
    else:
        interrupted(path)
    for name in ("lock", "0123.partial"):
        (tmp_path / f".run.zarr.partial.json.{name}").touch()
    run(store=path, resume=True)
    assert os.listdir(tmp_path) == ["run.zarr"]


# ------------------------------------------------------------------------------------ writing


def test_a_target_that_cannot_be_written_is_named_before_any_work(
    tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(predictive.PosteriorSampler, "kept", None)
    for name in ("run.nc", "run.zarr"):
        with pytest.raises(OSError, match=rf"store .*{name} could not be written"):
            run(store=tmp_path / "file" / name)


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_prediction_outlives_a_target_that_fails_at_the_end(
    everywhere: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    path, save = tmp_path / "out" / "run.nc", storage.save
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail(tree: Any, target: Any) -> Path:
        if everywhere or Path(target) == path:
            raise OSError(28, "the disk is full")
        return save(tree, target)

    monkeypatch.setattr(storage, "save", fail)
    expected = array(run(), "posterior/probs")
    if everywhere:
        with pytest.warns(UserWarning, match=r"the disk is full.*write it with"):
            tree = run(store=path)
    else:
        with pytest.raises(OSError, match=r"the disk is full.*safe in") as caught:
            run(store=path)
        (there,) = tmp_path.glob("ppl_med_*/run.nc")
        assert str(there) in str(caught.value)
        loaded = storage.load(there)
        assert isinstance(loaded, xr.DataTree)
        tree = loaded
    xr.testing.assert_equal(array(tree, "posterior/probs"), expected)


@pytest.mark.parametrize("wrong", [None, float("nan"), {"a": 1}, b"p1", 3])
@pytest.mark.parametrize("store", [None, "run.nc", "run.zarr"])
def test_ids_that_no_file_can_hold_are_counted(wrong: Any, store: Any, tmp_path: Path) -> None:
    batches = list(Batches(cases(), batch_size=8))
    batches[0]["id"] = [*batches[0]["id"][:3], wrong, *batches[0]["id"][4:]]
    missing = wrong is None or wrong != wrong
    told = r"id must be .* for 1 of 16 cases, first at position 3"
    if missing:
        told = r"id is missing .* in 1 of 8 entries, at position\(s\) 3"
    with pytest.raises(ValueError, match=told):
        run(batches, store=None if store is None else tmp_path / store)
    batches[0]["id"] = [wrong] * 8
    if wrong != 3:
        told = r"id is missing .* in 8 of 8" if missing else r"id must be .*first at position 0"
        with pytest.raises(ValueError, match=told):
            run(batches)


def test_a_folder_that_is_no_store_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    (path / "photos").mkdir(parents=True)
    (path / "photos/one.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="no Zarr store is never replaced"):
        storage.save(classification_tree(), path)
    path.rename(tmp_path / "run.zarr.partial")
    with pytest.raises(FileExistsError, match=r"holds photos; move it away"):
        run(store=path, resume=True)
    assert (tmp_path / "run.zarr.partial/photos/one.txt").read_text() == "precious"


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_what_killed_saves_left_is_gone_after_the_next(suffix: str, tmp_path: Path) -> None:
    path, tree = tmp_path / f"run{suffix}", classification_tree(cases=6, draws=4)
    storage.save(tree, path)
    left = tmp_path / f".run{suffix}.0123.partial"
    earlier = atomic.set_aside(path)
    for one in (left, earlier):
        shutil.copytree(path, one) if path.is_dir() else shutil.copy(path, one)
    (tmp_path / f".run{suffix}.lock").write_text("process 1 on another host")
    path.rename(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone") if suffix == ".zarr" else (tmp_path / "gone").unlink()
    with pytest.raises(FileNotFoundError, match="previous result at"):
        storage.load(path)
    storage.save(tree, path)
    assert os.listdir(tmp_path) == [path.name]


# ------------------------------------------------------------------------------------ two at once


def hold(path: Path, ready: Path, release: Path) -> None:
    """Hold a lock until told to release it."""
    import time

    with locks.locked(path, "store"):
        ready.touch()
        while not release.exists():
            time.sleep(0.01)


def lock_again(path: Path, result: Path) -> None:
    """Note what a second process is told, by name of the file it wants."""
    torch.set_num_threads(1)
    model = classifier()
    guide, batches = MeanFieldNormal(model), Batches(cases(16), batch_size=8)
    settings: dict[str, Any] = {"progress": False, "device": "cpu"}
    told = {}
    for name in ("run.zarr", "run.nc", "run.pt"):
        try:
            if name == "run.pt":
                fit(model, guide, batches, checkpoint=path / name, resume=True, **settings)
            else:
                predict(model, guide, batches, draws=2, store=path / name, **settings)
        except BlockingIOError as error:
            told[name] = str(error)
    result.write_text(json.dumps(told))


def test_the_second_process_is_told_and_changes_nothing(tmp_path: Path) -> None:
    folder, result = tmp_path / "runs", tmp_path / "told"
    folder.mkdir()
    names = ("run.zarr", "run.nc", "run.pt")
    with locks.locked(folder / names[0]), locks.locked(folder / names[1]):
        with locks.locked(folder / names[2]):
            assert processes.run_apart(lock_again, folder, result) == 0
    told = json.loads(result.read_text())
    for name in names:
        assert f"process {os.getpid()} on" in told[name] and "another path" in told[name]
        assert str(folder / name) in told[name]
    assert os.listdir(folder) == []


def test_the_lock_of_a_killed_process_locks_nobody_out(tmp_path: Path) -> None:
    ready, path = tmp_path / "ready", tmp_path / "run.zarr"
    process = processes.start(hold, path, ready, tmp_path / "release")
    while not ready.exists():
        process.join(0.01)
    with pytest.raises(BlockingIOError, match=rf"process {process.pid} on .* is writing to store"):
        with locks.locked(path, "store"):
            pass
    process.kill()
    process.join()
    assert (tmp_path / ".run.zarr.lock").exists()
    with locks.locked(path, "store"), locks.locked(path, "store"):
        assert (tmp_path / ".run.zarr.lock").exists()
    assert not (tmp_path / ".run.zarr.lock").exists()


def test_two_threads_are_two_writers(tmp_path: Path) -> None:
    import threading

    path, found = tmp_path / "run.zarr", list[BaseException]()

    def second() -> None:
        try:
            with locks.locked(path, "store", wait=0.1):
                pass
        except BlockingIOError as error:
            found.append(error)

    with locks.locked(path, "store"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "another thread of this process is writing" in str(found[0])
    second()
    assert len(found) == 1


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    def fails(file: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(locks, "_lock", fails)
    with pytest.warns(UserWarning, match="a file system without locks"):
        with locks.locked(tmp_path / "run.zarr", "store"):
            pass
    assert os.listdir(tmp_path) == []
