"""Killed at any moment, resumed again and again: the result is that of an uninterrupted run."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import campaign
import killed_runs
import numpy as np
import pytest
import xarray as xr
from killed_runs import SCENARIOS
from posterior_trees import classification_tree
from processes import run_apart

from ppl_med import storage
from ppl_med.inference import checkpoint

SMALL, LARGE = 3, 70  # kills of each of the three, in the small and in the large campaign


def kill(
    rng: np.random.Generator, longest: float, function: Callable[..., None], *args: Any
) -> bool:
    """Run a function apart, kill it at a moment of its whole time; whether it was killed."""
    code = run_apart(campaign.killed_after, float(rng.uniform(0, longest)), function, *args)
    assert code in (0, campaign.KILLED)
    return code != 0


def whole(function: Callable[..., None], *args: Any) -> float:
    """Run a function to its end; the seconds it took."""
    start = time.monotonic()
    assert run_apart(campaign.killed_after, None, function, *args) == 0
    return time.monotonic() - start


def killed_until_done(
    kills: int,
    rng: np.random.Generator,
    longest: float,
    start: Callable[[int], tuple[Any, ...]],
    check: Callable[[int], None],
) -> int:
    """Start runs one after the other, each killed up to five times and then let go to its end."""
    done = 0
    for run in itertools.count():
        arguments = start(run)
        for _ in range(5):
            if done == kills or not kill(rng, longest, *arguments):
                break
            done += 1
        else:
            whole(*arguments)
        if done == kills:
            whole(*arguments)
        check(run)
        if done == kills:
            return run + 1
    raise AssertionError


def kill_fits(kills: int, folder: Path, seed: int) -> None:
    names = list(SCENARIOS)
    longest, expected = 0.0, {}
    for name in names[: max(1, kills // 14)]:
        (folder / name).mkdir()
        longest = max(longest, whole(killed_runs.train, name, folder / name, None))
        expected[name] = checkpoint.read(folder / name / "run.pt")["states"]
    names = list(expected)

    def start(run: int) -> tuple[Any, ...]:
        place = folder / f"run{run}"
        place.mkdir()
        return killed_runs.train, names[run % len(names)], place, None

    def check(run: int) -> None:
        name, place = names[run % len(names)], folder / f"run{run}"
        states = checkpoint.read(place / "run.pt")["states"]
        found, given = (
            dict(checkpoint.named_tensors(dict(enumerate(one)))) for one in (states, expected[name])
        )
        assert campaign.same(found, given)
        histories = [xr.load_dataset(p / "history.nc") for p in (place, folder / name)]
        xr.testing.assert_identical(*histories)
        assert {file.name for file in place.iterdir()} == {"run.pt", "history.nc"}

    killed_until_done(kills, np.random.default_rng(seed), longest, start, check)


def kill_predictions(kills: int, folder: Path, seed: int) -> None:
    longest = whole(killed_runs.draw, "single", folder / "whole.zarr", None)
    expected = storage.load(folder / "whole.zarr")

    def start(run: int) -> tuple[Any, ...]:
        return killed_runs.draw, "single", folder / f"runs{run}" / "run.zarr", None

    def check(run: int) -> None:
        place = folder / f"runs{run}"
        tree = storage.load(place / "run.zarr")
        for one in (tree, expected):
            one.attrs.pop("wall_time_seconds", None)
        xr.testing.assert_identical(tree, expected)
        assert [file.name for file in place.iterdir()] == ["run.zarr"]

    killed_until_done(kills, np.random.default_rng(seed), longest, start, check)


def result(version: int) -> xr.DataTree:
    return classification_tree(cases=40, draws=20, seed=version)


def save_again_and_again(path: Path, seconds: float) -> None:
    trees = [result(version) for version in (0, 1)]
    end = time.monotonic() + seconds
    for tree in itertools.cycle(trees):
        storage.save(tree, path)
        if time.monotonic() > end:
            return


def kill_saves(kills: int, folder: Path, seed: int) -> None:
    """What is there is one of the two results, whole, or the message says where it is."""
    rng, versions = np.random.default_rng(seed), [result(version) for version in (0, 1)]
    for number in range(kills):
        path = folder / f"saves{number % 10}" / ("run.zarr" if number % 2 else "run.nc")
        path.parent.mkdir(exist_ok=True)
        code = run_apart(
            campaign.killed_after, float(rng.uniform(0.3, 1.3)), save_again_and_again, path, 60.0
        )
        assert code == campaign.KILLED
        try:
            found = storage.load(path)
        except FileNotFoundError as error:
            left = path.with_name(f".{path.name}.previous")
            if not left.exists():  # killed before the first save was over
                continue
            assert str(left) in str(error)
            left.rename(path)
            found = storage.load(path)
            path.rename(left)
        assert any(found.identical(version) for version in versions)  # type: ignore[arg-type]
    for path in [file for place in folder.glob("saves*") for file in place.iterdir()]:
        if path.name in ("run.zarr", "run.nc"):
            storage.save(versions[0], path)
            assert [file.name for file in path.parent.iterdir()] == [path.name]


CAMPAIGNS = {"fit": kill_fits, "predict": kill_predictions, "save": kill_saves}


@pytest.mark.parametrize("verb", CAMPAIGNS)
def test_killed_and_resumed(verb: str, tmp_path: Path) -> None:
    CAMPAIGNS[verb](SMALL, tmp_path, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("verb", CAMPAIGNS)
def test_killed_dozens_of_times(verb: str, tmp_path: Path) -> None:
    """210 kills over the three."""
    CAMPAIGNS[verb](LARGE, tmp_path, seed=1)
