"""Every example lists its options and is run by a test; the README code runs as it stands."""

import os
import re
import runpy
import subprocess
import sys

import pytest
from example_runs import ROOT
from test_examples_of_labels import LABELS
from test_examples_of_maps import MAPS

EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def test_no_example_is_left_out():
    assert sorted([*LABELS, *MAPS]) == EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_help_lists_the_options(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.syspath_prepend(ROOT / "examples")
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in ("--seed", "--device", "--out", "--smoke", "--resume"):
        assert option in text


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
    lines = (ROOT / "examples" / "write_your_own.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) < 60
