"""Folders of runs: a new run never overwrites an earlier one, nor resumes another one."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppl_med.storage.atomic import write_text


def open_run(folder: str | Path, *, resume: bool) -> Path:
    """Make the folder of a run, and move an earlier run aside unless it is to be resumed.

    Args:
        folder: Where the run writes.
        resume: Keep the folder as it is.

    Returns:
        The folder, which exists. An earlier run is renamed to ``<folder>.1``, ``<folder>.2``, …

    Raises:
        NotADirectoryError: If the path is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"out must be a folder, but {folder} is a file")
    if folder.exists() and not resume and any(folder.iterdir()):
        number = 1
        while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        folder.rename(aside)
        print(f"The earlier run in {folder} is now {aside}.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_same(options: Any, folder: str | Path, free: Sequence[str] = ()) -> None:
    """Raise if a run's folder was begun with other options; else note them there.

    Call it after ``open_run``, before anything in the folder is read.

    Args:
        options: Dataclass of this call's options. ``out``, ``device`` and ``resume`` may always
            differ.
        folder: Folder of the run.
        free: Names of other options that may differ, such as those that name parts of a study.

    Raises:
        ValueError: If an option differs; the message names the first.
    """
    ours = {
        name: str(value)
        for name, value in dataclasses.asdict(options).items()
        if name not in ("out", "device", "resume", *free)
    }
    path = Path(folder) / "options.json"
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in ours if earlier.get(name) != ours[name]]
        if changed:
            name = changed[0]
            raise ValueError(
                f"--{name.replace('_', '-')} is {ours[name]}, but the run in {folder} was begun "
                f"with {earlier.get(name)}; use another --out, or resume with the same options"
            )
    write_text(path, json.dumps(ours, indent=1) + "\n")
