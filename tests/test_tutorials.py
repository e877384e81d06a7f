"""Tutorials on real data: scripts of at most forty lines that run as they stand on the page.

The others run when the documentation is built.
"""

import os
import re
import warnings
from pathlib import Path

import pytest

PAGES = Path(__file__).resolve().parents[1] / ".github" / "docs" / "tutorials"
MOST_LINES = 40
ON_REAL_DATA = ["monai_volumes", "own_program"]


def code(page: str) -> str:
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    return "\n".join(re.findall(r"```\{code-cell\}\n(.*?)```", text, re.DOTALL))


@pytest.mark.parametrize("page", ON_REAL_DATA)
def test_a_tutorial_is_a_short_script(page: str) -> None:
    lines = [line for line in code(page).splitlines() if line.strip()]
    assert len(lines) <= MOST_LINES


@pytest.mark.skipif("PPL_MED_DATA" not in os.environ, reason="needs the data sets")
@pytest.mark.parametrize("page", ON_REAL_DATA)
def test_a_tutorial_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages
        exec(compile(code(page), page, "exec"), {"__name__": page})
