"""Where the files of a data set lie, the lists that divide them among splits, and damaged files."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path, PurePosixPath

from ppl_med.checks import a_path

SPLITS = ("train", "val", "test")


def find_place(
    folder: str | PathLike[str], name: str, needed: Sequence[str], *, module: str
) -> Path:
    """The folder itself, or its subfolder ``name``, whichever holds all that is needed.

    ``module`` is the one whose docstring describes the layout, for the message.
    """
    root = a_path("folder", folder)
    if not root.is_dir():
        raise FileNotFoundError(f"folder {str(root)!r} is not there")
    for place in (root, root / name):
        if all((place / one).exists() for one in needed):
            return place
    raise FileNotFoundError(
        f"folder {str(root)!r} has neither {', '.join(needed)} nor {name}/ with them; the layout "
        f"is described in {module}"
    )


def split_files(place: Path, name: str) -> dict[str, Path]:
    """The splits that are there, each with its file; ``name`` is such as "{}.txt"."""
    paths = {split: place / name.format(split) for split in SPLITS}
    return {split: path for split, path in paths.items() if path.exists()}


def read_list(path: Path) -> list[str]:
    """Names in a list, one a line, all of them inside its folder; see ``read_table``."""
    return [name for (name,) in read_table(path, 1)]


def read_table(path: Path, columns: int, *, strip: str = "") -> list[list[str]]:
    """Names in a list, all of them inside its folder, for every line those of its columns.

    ``strip`` is taken from the beginning of names, the place where others kept the data set.

    White space separates the columns; with one column, a name may hold spaces. An empty list,
    another number of columns, and a name that comes twice in the first column or leads out of the
    folder are refused.
    """
    with naming_file(path, "list of names"):
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [[line] if columns == 1 else line.split() for line in lines if line]
    firsts = {row[0] for row in rows}
    if not rows or len(firsts) < len(rows) or any(len(row) != columns for row in rows):
        raise ValueError(
            f"{path} must hold {columns} name(s) a line, each once; it has {len(rows)} lines"
        )
    rows = [[name.removeprefix(strip) for name in row] for row in rows]
    for name in (name for row in rows for name in row):
        inner = PurePosixPath(name)
        if inner.is_absolute() or ".." in inner.parts:
            raise ValueError(f"{path} names {name!r}, outside its folder; use relative names")
    return rows


def check_files(paths: Sequence[Path], *, needed_by: Path) -> None:
    """Raise unless all files are there that a list or folder, ``needed_by``, names."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{needed_by} needs {len(missing)} file(s) that are not there, first {missing[0]}"
        )


def some_of(names: Sequence[object], total: int, what: str = "files") -> str:
    """How many of how many, and the first five: "2 of 9 files (a.png, b.png)"."""
    shown = ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} of {total} {what} ({shown})"


@contextmanager
def naming_file(path: Path, kind: str, fix: str = "download or write it again") -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into an error that names file and fix."""
    try:
        yield
    except (FileNotFoundError, PermissionError, ModuleNotFoundError):
        raise
    except MemoryError as error:
        raise MemoryError(
            f"{path} needs more memory than there is, as a damaged {kind} may: {fix}, or use a "
            "machine with more"
        ) from error
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(f"{path} is no {kind} that can be read: {error}; {fix}") from error


def check_memory(size: int) -> None:
    """Raise a MemoryError where an array of so many bytes cannot fit, before it is made."""
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # unknown on this system
        return
    if size > there:
        raise MemoryError(f"{size / 1e9:.1f} GB are needed, of {there / 1e9:.1f} GB")
