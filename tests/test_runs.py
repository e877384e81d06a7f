"""Folders of runs: earlier ones are kept, and another run does not go on in them."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from ppl_med.storage import check_same, open_run


@dataclass
class Options:
    """Of an example."""

    out: Path
    seed: tuple[int, ...] = (0,)
    draws: int = 32
    resume: bool = False


def test_an_earlier_run_is_moved_aside_unless_resumed(tmp_path: Path) -> None:
    folder = open_run(tmp_path / "run", resume=False)
    (folder / "table.md").write_text("1")
    assert (open_run(folder, resume=True) / "table.md").exists()
    assert not list(open_run(folder, resume=False).iterdir())
    assert (tmp_path / "run.1" / "table.md").read_text() == "1"
    with pytest.raises(NotADirectoryError, match="out must be a folder"):
        open_run(tmp_path / "run.1" / "table.md", resume=False)


def test_other_options_do_not_go_on_in_a_run(tmp_path: Path) -> None:
    first = Options(tmp_path)
    check_same(first, tmp_path, free=("seed",))
    check_same(Options(tmp_path / "moved", (1, 2), resume=True), tmp_path, free=("seed",))
    with pytest.raises(ValueError, match=r"--draws is 8, but the run in .* was begun with 32"):
        check_same(Options(tmp_path, draws=8), tmp_path, free=("seed",))
    check_same(first, tmp_path, free=("seed",))
    assert [path.name for path in tmp_path.iterdir()] == ["options.json"]
