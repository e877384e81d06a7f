"""Results that survive: round trips, full disks, crashes, damaged files."""

import errno
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5netcdf
import numpy as np
import pytest
import xarray as xr
from posterior_trees import array, classification_tree

from ppl_med import storage
from ppl_med.storage import atomic, trees

BOTH = pytest.mark.parametrize("suffix", [".nc", ".zarr"])


def rich_tree() -> xr.DataTree:
    tree = classification_tree(cases=6, draws=4)
    sex = xr.DataArray(["f", "m", "f", "f", "m", "Zoë"], dims="case")
    constant = {"sex": sex, "flag": sex == "f", "age": sex.copy(data=np.arange(6.0))}
    tree["constant_data"] = xr.Dataset(constant).assign_coords(case=array(tree, "posterior/case"))
    array(tree, "posterior/probs").attrs["units"] = "probability"
    array(tree, "log_likelihood/label").values[0, 0, 0] = -np.inf
    tree.attrs.update(guide="MeanFieldNormal", wall_time=1.5, versions=["torch 2", "pyro 1.9"])
    return tree


@BOTH
def test_a_tree_comes_back_identical(suffix: str, tmp_path: Path) -> None:
    tree = rich_tree()
    path = storage.save(tree, tmp_path / f"run{suffix}")
    loaded = storage.load(path)
    assert isinstance(loaded, xr.DataTree)
    xr.testing.assert_identical(loaded, tree)
    for node in tree.subtree:
        for name, variable in node.variables.items():
            assert loaded[node.path].variables[name].dtype == variable.dtype, name
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@BOTH
def test_a_dataset_comes_back_identical(suffix: str, tmp_path: Path) -> None:
    history = xr.Dataset(
        {"elbo": ("step", np.array([-3.0, np.nan, np.inf]))},
        coords={"epoch": ("step", [0, 0, 1])},
        attrs={"units": "nats per case"},
    )
    loaded = storage.load(storage.save(history, tmp_path / f"history{suffix}"))
    assert isinstance(loaded, xr.Dataset)
    xr.testing.assert_identical(loaded, history)


@BOTH
def test_integer_and_object_ids_come_back(suffix: str, tmp_path: Path) -> None:
    for ids in ([7, 3, 5], np.array(["b", "a", "cc"], dtype=object)):
        data = xr.Dataset({"label": ("case", [0, 1, 0])}, coords={"case": ids})
        loaded = storage.load(storage.save(data, tmp_path / f"ids{suffix}"))
        assert loaded.coords["case"].values.tolist() == list(ids)


@BOTH
def test_a_loaded_result_can_be_saved_again_over_itself(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"run{suffix}"
    storage.save(rich_tree(), path)
    loaded = storage.load(path)
    storage.save(loaded, path)
    xr.testing.assert_identical(storage.load(path), rich_tree())
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@BOTH
@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EIO, "bad"),
        KeyboardInterrupt(),
    ],
)
def test_a_failed_save_leaves_the_earlier_result(
    suffix: str, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"run{suffix}"
    storage.save(rich_tree(), path)

    def fail(original: Callable[..., object]) -> Callable[..., object]:
        def write(tree: object, partial: Path) -> None:
            original(tree, partial)
            raise failure

        return write

    for name in ("_write_netcdf", "_write_zarr"):
        monkeypatch.setattr(trees, name, fail(getattr(trees, name)))
    with pytest.raises(type(failure)) as caught:
        storage.save(classification_tree(), path)
    if getattr(failure, "errno", None) == errno.ENOSPC:
        assert "the disk is full" in str(caught.value)
        assert caught.value.errno == errno.ENOSPC  # type: ignore[attr-defined]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    xr.testing.assert_identical(storage.load(path), rich_tree())


@BOTH
def test_a_write_cut_short_by_the_system_is_reported(suffix: str, tmp_path: Path) -> None:
    """A real short write: the process may make no file above 20 kB."""
    path = tmp_path / f"run{suffix}"
    storage.save(rich_tree(), path)
    code = (
        "import os, resource, numpy as np, xarray as xr\n"
        "from ppl_med import storage\n"
        "data = xr.Dataset({'noise': ('case', np.random.default_rng(0).random(10**6))})\n"
        "tree = xr.DataTree.from_dict({'/posterior': data})\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (20000, {resource.RLIM_INFINITY}))\n"
        "try:\n"
        f"    storage.save(tree, {str(path)!r})\n"
        "except OSError as error:\n"
        # No clean-up at exit: HDF5 may crash there over the file that it could not write.
        "    os._exit(9 if 'the disk is full' in str(error) else 1)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    xr.testing.assert_identical(storage.load(path), rich_tree())


def test_a_swap_that_fails_half_way_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.zarr"
    storage.save(rich_tree(), path)
    replace, failed = atomic.os.replace, []

    def last_move_fails(source: Path, target: Path) -> None:
        if target == path and str(source).endswith(".partial"):
            failed.append(not path.exists())
            raise OSError(errno.EIO, "input/output error")
        replace(source, target)

    monkeypatch.setattr(atomic.os, "replace", last_move_fails)
    with pytest.raises(OSError, match="input/output"):
        storage.save(classification_tree(), path)
    assert failed == [True]
    xr.testing.assert_identical(storage.load(path), rich_tree())
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_crash_between_the_moves_leaves_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    storage.save(rich_tree(), path)
    path.rename(tmp_path / ".run.zarr.previous")
    with pytest.raises(FileNotFoundError, match="previous result at"):
        storage.load(path)


@BOTH
def test_missing_file(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no saved result"):
        storage.load(tmp_path / f"nothing{suffix}")


@pytest.mark.parametrize("name", ["run.pkl", "run.h5", "run"])
def test_unknown_suffix(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"must end in \.nc or \.zarr"):
        storage.load(tmp_path / name)
    with pytest.raises(ValueError, match=r"must end in \.nc or \.zarr"):
        storage.save(rich_tree(), tmp_path / name)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.9995])
def test_a_truncated_file_is_refused(share: float, tmp_path: Path) -> None:
    path = storage.save(rich_tree(), tmp_path / "run.nc")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="truncated, damaged"):
        storage.load(path)


def test_other_content_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.nc"
    path.write_text("case,label\n1,0\n")
    with pytest.raises(ValueError, match="truncated, damaged"):
        storage.load(path)
    (tmp_path / "run.zarr").mkdir()
    with pytest.raises(ValueError, match="truncated, damaged"):
        storage.load(tmp_path / "run.zarr")


@pytest.mark.parametrize("damage", ["delete", "empty", "halve", "metadata"])
def test_a_damaged_store_is_refused(damage: str, tmp_path: Path) -> None:
    """zarr itself reads a missing chunk as zeros: label 0, silently."""
    path = storage.save(rich_tree(), tmp_path / "run.zarr")
    for name in ("posterior/probs", "observed_data/label"):
        storage.save(rich_tree(), path)
        chunk = next(p for p in (path / name / "c").rglob("*") if p.is_file())
        content = chunk.read_bytes()
        if damage == "delete":
            chunk.unlink()
        elif damage == "metadata":
            (path / name / "zarr.json").write_text("{")
        else:
            chunk.write_bytes(content[: len(content) // 2 if damage == "halve" else 0])
        with pytest.raises(ValueError, match="truncated, damaged"):
            storage.load(path)


@BOTH
def test_an_array_of_zeros_is_complete(suffix: str, tmp_path: Path) -> None:
    data = xr.Dataset({"label": ("case", np.zeros(5, int)), "x": ("case", np.full(5, np.nan))})
    loaded = storage.load(storage.save(data, tmp_path / f"zeros{suffix}"))
    xr.testing.assert_identical(loaded, data)


@pytest.mark.parametrize("value", [None, True, {"a": 1}, [[1, 2]], object(), [1, "a", None]])
def test_attributes_that_cannot_be_stored_are_named(value: object, tmp_path: Path) -> None:
    tree = rich_tree()
    array(tree, "posterior/probs").attrs["extra"] = value
    with pytest.raises(TypeError, match="'extra' of /posterior/probs"):
        storage.save(tree, tmp_path / "run.nc")
    assert not list(tmp_path.iterdir())


def test_other_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        storage.save({"probs": 1}, tmp_path / "run.nc")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no groups"):
        storage.save(xr.DataTree(xr.Dataset({"a": 1})), tmp_path / "run.nc")
    ids = xr.Dataset({"a": ("case", np.array(["x", None], dtype=object))})
    with pytest.raises(TypeError, match="/a holds Python objects"):
        storage.save(ids, tmp_path / "run.zarr")


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "run.nc").mkdir()
    with pytest.raises(OSError, match="folder is in the way"):
        storage.save(rich_tree(), tmp_path / "run.nc")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.nc"]


def test_files_of_other_programs_load(tmp_path: Path) -> None:
    with h5netcdf.File(tmp_path / "other.nc", "w") as file:
        file.dimensions = {"case": 3}
        file.create_variable("label", ("case",), data=np.arange(3))
    np.testing.assert_array_equal(storage.load(tmp_path / "other.nc")["label"], [0, 1, 2])
    rich_tree().to_dataset().to_zarr(tmp_path / "other.zarr", consolidated=False)
    assert isinstance(storage.load(tmp_path / "other.zarr"), xr.Dataset)


def test_storage_and_analysis_import_without_torch() -> None:
    code = (
        "import sys, ppl_med.storage, ppl_med.analysis, ppl_med.analysis.uncertainty, "
        "ppl_med.analysis.scoring, ppl_med.analysis.conformal; "
        "sys.exit(len({'torch', 'pyro', 'arviz', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nets_are_joined_as_chains(tmp_path: Path) -> None:
    trees = [classification_tree(cases=5, draws=3, seed=seed) for seed in (0, 1)]
    for tree in trees:
        tree.attrs["guide"] = "PointEstimate"
    joined = storage.join_chains(trees)
    number = array(trees[0], "posterior/probs").sizes["chain"]
    assert array(joined, "posterior/probs").sizes["chain"] == 2 * number == joined.attrs["chains"]
    assert array(joined, "posterior/chain").values.tolist() == list(range(2 * number))
    assert joined.attrs["guide"] == "Ensemble of PointEstimate"
    for place, tree in enumerate(trees):
        part = array(joined, "posterior/probs").isel(chain=slice(place * number, None))
        np.testing.assert_array_equal(part.values[:number], array(tree, "posterior/probs").values)
    few = storage.join_chains(trees, groups=("posterior",))
    assert {"posterior", "observed_data"} <= set(few.children) and "log_likelihood" not in few
    storage.save(joined, tmp_path / "joined.nc")
    other = classification_tree(cases=4, draws=3)
    with pytest.raises(ValueError, match=r"exact"):
        storage.join_chains([trees[0], other])
    with pytest.raises(ValueError, match="one or more"):
        storage.join_chains([])


def test_a_table_in_markdown() -> None:
    assert storage.markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_cases_follow_each_other_and_what_has_none_keeps_its_axes() -> None:
    whole = classification_tree()
    posterior = whole["posterior"].to_dataset()
    shape = posterior.sizes["chain"], posterior.sizes["draw"]
    posterior["weight_norm"] = (("chain", "draw"), np.arange(np.prod(shape)).reshape(shape) / 7)
    whole["posterior"] = xr.DataTree(posterior)
    parts = [whole.isel(case=slice(0, 2)), whole.isel(case=slice(2, None))]
    joined = storage.join_cases(parts)
    assert joined["posterior/weight_norm"].dims == ("chain", "draw")
    for name in whole.children:
        xr.testing.assert_equal(joined[name].to_dataset(), whole[name].to_dataset())
    with pytest.raises(ValueError, match=r"share 2 case id\(s\)"):
        storage.join_cases([parts[0], whole])
    other = parts[1].copy()
    other["posterior"] = xr.DataTree(
        other["posterior"].to_dataset().assign(weight_norm=posterior["weight_norm"] + 1)
    )
    with pytest.raises(ValueError, match="posterior: the trees are not of one posterior"):
        storage.join_cases([parts[0], other])
    with pytest.raises(ValueError, match="different groups"):
        storage.join_cases([parts[0], parts[1].filter(lambda node: node.name != "observed_data")])
    with pytest.raises(ValueError, match="one or more"):
        storage.join_cases([])
