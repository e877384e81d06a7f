"""Tutorials that start from a user's data: scripts of at most forty lines, which run as they stand.

The documentation executes every page when it is built.
"""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from ppl_med import storage
from ppl_med.analysis import scoring, uncertainty

FOLDER = Path(__file__).resolve().parents[1] / ".github" / "docs" / "tutorials"
MOST_LINES = 40
ON_REAL_DATA = ["monai_volumes", "own_program"]
ON_FILES = {"chest_findings": [], "films_and_table": ["report.html"], "films_of_sites": []}
CELL = re.compile(r"```\{code-cell\}\n(:tags: \[(.*?)\]\n)?(.*?)```", re.DOTALL)


def cells(page: str) -> list[tuple[str, str]]:
    """Tags and code of every cell, without what only a notebook understands."""
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    found = [(tags or "", code) for _, tags, code in CELL.findall(text)]
    return [(tags, re.sub(r"(?m)^%[^%].*\n", "", code)) for tags, code in found]


def run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the names of a page stand for at its end."""
    pytest.importorskip("pyro", reason="the tutorials train networks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names: dict[str, Any] = {"__name__": page}
    for number, (_, code) in enumerate(cells(page)):
        if written := re.match(r"%%writefile (\S+)\n", code):
            Path(written[1]).write_text(code[written.end() :], encoding="utf-8")
            continue
        if code.startswith("!torchrun "):
            command = [sys.executable, "-m", "torch.distributed.run", *code.split()[1:]]
            subprocess.run(command, check=True)
            continue
        exec(compile(code, f"{page}, cell {number}", "exec"), names)
    return names


@pytest.mark.parametrize("page", [*ON_REAL_DATA, *ON_FILES, "cluster"])
def test_a_tutorial_is_a_short_script(page: str) -> None:
    """Without the cell that puts data there, which the reader has."""
    code = "".join(code for tags, code in cells(page) if "hide-input" not in tags)
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    assert 10 < len(lines) <= MOST_LINES


@pytest.mark.skipif("PPL_MED_DATA" not in os.environ, reason="needs the data sets")
@pytest.mark.slow  # the documentation runs them whenever it is built
@pytest.mark.parametrize("page", ON_REAL_DATA)
def test_a_tutorial_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages
        names = run(page, tmp_path, monkeypatch)
    if page == "monai_volumes":
        check_in_register(names)


def check_in_register(names: dict[str, Any]) -> None:
    """Maps lie on the grids of the files that were read; sizes are those of the masks, in mm³."""
    nibabel = pytest.importorskip("nibabel")
    tree, files = names["tree"], names["files"]
    sources = tree["constant_data"].dataset["filename_or_obj"]
    masks = files[files["map"] == "mask"]
    assert len(masks) == sources.sizes["case"]
    for case, path in zip(masks["id"], masks["path"], strict=True):
        source, written = nibabel.load(str(sources.sel(case=case).item())), nibabel.load(path)
        assert written.shape == source.shape
        assert np.allclose(written.affine, source.affine)
    sized = names["sizes"](tree, level=0.8)
    assert sized["median"].attrs["units"] == "mm^3"


@pytest.mark.slow  # the documentation runs them whenever it is built
@pytest.mark.parametrize("page", ON_FILES)
def test_a_tutorial_leaves_its_files(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = run(page, tmp_path, monkeypatch)
    for file in ON_FILES[page]:
        assert (names["work"] / file).stat().st_size > 1000


@pytest.mark.slow  # the documentation runs it whenever it is built
def test_a_cluster_gives_what_one_process_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages
        names = run("cluster", tmp_path, monkeypatch)
    (store,) = tmp_path.rglob("run.zarr")
    tree = storage.load(store)
    assert isinstance(tree, xr.DataTree) and tree["posterior"].sizes["case"] == 600
    xr.testing.assert_allclose(names["score"], scoring.score(tree))
    xr.testing.assert_allclose(names["result"], uncertainty.entropy(tree))
    assert "100% Completed" in capsys.readouterr().out
