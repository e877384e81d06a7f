"""Every example lists its options and is run by a test; the README code runs as it stands."""

import importlib
import os
import re
import subprocess
import sys

import pytest
from example_runs import ROOT
from test_examples_of_labels import LABELS
from test_examples_of_maps import MAPS

EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
SCRIPTS = sorted(
    str(path.relative_to(ROOT / "examples"))
    for path in (ROOT / "examples").rglob("*.py")
    if "tyro.cli(" in path.read_text(encoding="utf-8")
)


def test_no_example_is_left_out():
    assert sorted([*LABELS, *MAPS]) == EXAMPLES
    assert {*EXAMPLES} <= {*SCRIPTS}


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_lists_the_options_without_torch(name):
    """As a user runs it; Python itself tells what was imported on the way."""
    command = [sys.executable, "-X", "importtime", ROOT / "examples" / name, "--help"]
    paths = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    done = subprocess.run(
        command, env=paths, capture_output=True, text=True, encoding="utf-8", timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    resumed = ("--device", "--resume") if name in EXAMPLES else ()
    for option in ("--seed", "--out", "--smoke", *resumed):
        assert option in done.stdout
    modules = re.findall(r"^import time: .*\| +([\w.]+)$", done.stderr, re.MULTILINE)
    packages = {module.partition(".")[0] for module in modules}
    assert "tyro" in packages and not packages & {"torch", "pyro", "monai"}


def test_the_truth_study_offers_every_problem_and_guide(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    options, problems, guides = (
        importlib.import_module(f"truth.{name}") for name in ("options", "problems", "guides")
    )
    assert tuple(problems.PROBLEMS) == options.PROBLEM_NAMES
    assert tuple(guides.GUIDES) == options.GUIDE_NAMES


def test_a_second_run_moves_the_first_aside(tmp_path):
    from ppl_med.storage import open_run

    folder = open_run(tmp_path / "run", resume=False)
    (folder / "posterior.nc").write_text("kept")
    assert open_run(tmp_path / "run", resume=True) == folder
    assert (folder / "posterior.nc").read_text() == "kept"
    open_run(tmp_path / "run", resume=False)
    assert (tmp_path / "run.1" / "posterior.nc").read_text() == "kept"
    assert not (folder / "posterior.nc").exists()


def test_the_readme_runs_as_it_stands(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks, "the README shows no Python"
    for number, block in enumerate(blocks):
        script = tmp_path / f"block_{number}.py"
        script.write_text(block)
        command = [sys.executable, "-W", "error", script]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=tmp_path, env=one_thread, capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0, done.stderr[-3000:]
        accuracy = re.search(r"accuracy\s+float64 \S+ ([\d.]+)", done.stdout)
        assert accuracy is not None and float(accuracy[1]) > 0.8, "at chance level nothing is shown"


def test_the_tutorial_stays_short():
    folder = ROOT / "examples" / "write_your_own"
    lines = "".join((folder / f"{name}.py").read_text() for name in ("options", "run")).splitlines()
    assert len([line for line in lines if line.strip()]) < 60
