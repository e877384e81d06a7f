"""A rank that dies ends the run, which then goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_runs
import torch
from killed_runs import differences
from processes import PLACES
from rank_runs import LONG_EPOCHS, at_step, noisy, rank, run_ranks, send, trained

MOMENTS = [(1, 3), (0, 6)]  # rank and step


def die(folder: Path, victim: int, step: int) -> None:
    with at_step(step, send(signal.SIGKILL, victim)):
        trained(noisy(), checkpoint=folder / f"{victim}.pt", checkpoint_every=0)


def go_on(folder: Path) -> None:
    """What became of each run that was killed, and of one that was not."""
    for victim, _ in MOMENTS:
        found = trained(noisy(), checkpoint=folder / f"{victim}.pt", resume=True)
        torch.save(found, folder / f"killed{victim}-{rank()}.pt")
    uninterrupted(folder)


def uninterrupted(folder: Path, **options: Any) -> None:
    torch.save(trained(noisy(), **options), folder / f"whole-{rank()}.pt")


def long_uninterrupted(folder: Path) -> None:
    uninterrupted(folder, epochs=LONG_EPOCHS)


def read(folder: Path, name: str) -> list[dict]:
    return [torch.load(folder / f"{name}-{own}.pt", weights_only=False) for own in range(2)]


def test_a_run_whose_rank_was_killed_goes_on_as_if_it_was_not(tmp_path: Path) -> None:
    for victim, step in MOMENTS:
        codes = run_ranks(2, die, tmp_path, victim, step)
        assert codes[victim] == -signal.SIGKILL and codes[1 - victim] not in (0, None)
    assert run_ranks(2, go_on, tmp_path) == [0, 0]
    for victim, _ in MOMENTS:
        assert not differences(read(tmp_path, "whole"), read(tmp_path, f"killed{victim}"))


@pytest.mark.slow
def test_torchrun_starts_a_run_again_after_five_deaths(tmp_path: Path) -> None:
    command = [*(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")]
    command += ["--max-restarts", "5", "--monitor-interval", "0.1", "--standalone"]
    command += [str(Path(rank_runs.__file__)), str(tmp_path), "5"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, PLACES)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, timeout=900, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.count("exitcode: -9") >= 5
    assert run_ranks(2, long_uninterrupted, tmp_path) == [0, 0]
    assert not differences(read(tmp_path, "whole"), read(tmp_path, "after5"))
