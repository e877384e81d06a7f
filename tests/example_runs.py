"""Runs of the examples in a process of their own, and what a run must leave."""

import tempfile
from pathlib import Path

import pytest
from processes import run_apart, run_script

ROOT = Path(__file__).parents[1]
NO_DATA = (
    *("brain.py", "depth.py", "mauna_loa.py", "quickstart.py", "rater_variance.py"),
    *("street_modes.py", "two_classes.py", "write_your_own.py"),
)


def run(*arguments: str | Path, cwd: Path = ROOT) -> str:
    """Run a script with its options in a process of its own and give what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        printed, errors = Path(folder) / "printed", Path(folder) / "errors"
        code = run_apart(run_script, [*map(str, arguments)], cwd, printed, errors, limit=1800)
        assert code == 0, printed.read_text()[-3000:] + errors.read_text()[-3000:]
        return printed.read_text()


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
