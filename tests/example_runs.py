"""Runs of the examples in a process of their own, and what a run must leave."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NO_DATA = ("depth.py", "quickstart.py", "street_modes.py", "write_your_own.py")


def run(*arguments: str | Path, cwd: Path = ROOT) -> str:
    """Run Python with warnings as errors and give what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def check_run_and_resume(
    name: str, options: list[str], folder: Path, request: pytest.FixtureRequest
) -> None:
    """Run an example for seconds, then go on with it: the same files and the same last line."""
    out, extra = folder / "run", [*options]
    if name not in NO_DATA:
        extra += ["--data", str(request.getfixturevalue("data_folder"))]
    first = run(ROOT / "examples" / name, "--smoke", "--out", out, *extra)
    results = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    assert any(part.startswith("posterior") for path in results for part in path.parts), first
    again = run(ROOT / "examples" / name, "--smoke", "--out", out, "--resume", *extra)
    assert {path.relative_to(out) for path in out.rglob("*") if path.is_file()} == results
    assert again.splitlines()[-1] == first.splitlines()[-1]
    assert not out.with_name("run.1").exists()
