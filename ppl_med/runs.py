"""Folders of runs: a new run never overwrites an earlier one."""

from pathlib import Path


def open_run(folder: str | Path, *, resume: bool) -> Path:
    """Make the folder of a run, and move an earlier run aside unless it is to be resumed.

    Args:
        folder: Where the run writes.
        resume: Go on in the folder as it is.

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
