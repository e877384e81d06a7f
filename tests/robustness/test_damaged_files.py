"""A damaged file is read as before, or named in an error: for every reader and every result."""

import pickle
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import campaign
import killed_runs
import pytest
import torch
from posterior_trees import classification_tree
from processes import run_apart
from reader_folders import crops
from test_readers import READERS

from ppl_med import storage
from ppl_med.data import convert_lidc_pickle, load_lidc_crops
from ppl_med.inference import MeanFieldNormal, load, save

SMALL, LARGE = 8, 5200  # inputs of each target in the small campaign; of all in the large one
NO_CHECKSUM = {
    *(".jpg", ".txt", ".xml", ".pickle", ".mat", ".csv", ".tsv", ".dcm", ".dicom", ".json"),
}
HARMFUL = "harm"


def write_checkpoint(folder: Path) -> None:
    model = killed_runs.classifier()
    save(folder / "run.pt", model, MeanFieldNormal(model))


def read_checkpoint(folder: Path) -> Any:
    model = killed_runs.classifier()
    guide = MeanFieldNormal(model)
    load(folder / "run.pt", model, guide)
    tensors = {**model.state_dict(), **guide.state_dict()}
    return {k: v.numpy() for k, v in tensors.items() if isinstance(v, torch.Tensor)}


def write_result(suffix: str, folder: Path) -> None:
    storage.save(classification_tree(cases=6, draws=4), folder / f"run{suffix}")


def read_result(suffix: str, folder: Path) -> Any:
    return storage.load(folder / f"run{suffix}")


def write_pickle(folder: Path) -> None:
    (folder / "crops.pickle").write_bytes(pickle.dumps(crops(3)))


def read_pickle(folder: Path) -> Any:
    convert_lidc_pickle(folder / "crops.pickle", folder / "crops.npz")
    return load_lidc_crops(folder / "crops.npz")


Target = tuple[Callable[[Path], Any], Callable[[Path], Any], tuple[str, ...]]


def read_by_table(name: str, folder: Path) -> Any:
    return READERS[name].read(folder)


TARGETS: dict[str, Target] = {
    name: (reader.write, partial(read_by_table, name), (*reader.files, *reader.pictures))
    for name, reader in READERS.items()
} | {
    "convert_lidc_pickle": (write_pickle, read_pickle, ("crops.pickle",)),
    "checkpoint": (write_checkpoint, read_checkpoint, ("run.pt",)),
    "netcdf": (partial(write_result, ".nc"), partial(read_result, ".nc"), ("run.nc",)),
    "zarr": (
        partial(write_result, ".zarr"),
        partial(read_result, ".zarr"),
        (
            "run.zarr/zarr.json",
            "run.zarr/posterior/zarr.json",
            "run.zarr/posterior/probs/zarr.json",
            "run.zarr/posterior/probs/c/0/0/0/0",
            "run.zarr/observed_data/label/c/0",
            "run.zarr/posterior/class/c/0",
        ),
    ),
}


def work_through(name: str, inputs: int, folder: Path, first: int = 0) -> Counter[str]:
    """Damage the files of a target in turn; count what came of it, and fail on what must not be."""
    write, read, files = TARGETS[name]
    place, log = folder / "data", folder / "log"
    place.mkdir()
    write(place)
    counts, faults = Counter[str](), list[str]()
    for number, file in enumerate(files):
        seeds = range(first + number, first + inputs, len(files))
        while seeds:
            log.unlink(missing_ok=True)
            arguments = (name, place / file, seeds, read, place, log)
            content = (place / file).read_bytes()
            code = run_apart(campaign.read_damaged, *arguments, limit=7200)
            lines = log.read_text().splitlines() if log.exists() else []
            for line in lines:
                seed, _, what = line.split("\t", 2)
                what = what.strip("'\"") or f"process died with {code}"
                silent = what == "changed" and Path(file).suffix in NO_CHECKSUM
                counts[f"{what} ({Path(file).suffix})" if silent else what.split()[0]] += 1
                if not silent and what not in ("refused", "warned", "same"):
                    faults.append(f"{file}, seed {seed}: {what}")
            assert lines or code == 0, f"{name} ended with {code} before the first input"
            seeds = seeds[len(lines) :] if code else range(0)
            (place / file).write_bytes(content)
    assert not faults, "\n".join(faults[:20]) + f"\n{len(faults)} in all of {counts}"
    assert not list(place.rglob(HARMFUL))
    return counts


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_is_read_as_before_or_named(name: str, tmp_path: Path) -> None:
    counts = work_through(name, SMALL, tmp_path)
    assert counts.total() == SMALL and counts["refused"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_hundreds_of_damaged_files(name: str, tmp_path: Path) -> None:
    """All in all 5,200 inputs; the counts are printed with ``-s``."""
    number = -(-LARGE // len(TARGETS))
    counts = work_through(name, number, tmp_path, first=10_000)
    print(f"\n{name}: {dict(counts)}")
    assert counts.total() == number
