"""Where the files of a data set lie, the lists that divide them among splits, and damaged files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path, PurePosixPath

SPLITS = ("train", "val", "test")


def find_place(
    folder: str | PathLike[str], name: str, needed: Sequence[str], *, module: str
) -> Path:
    """The folder itself, or its subfolder of the data set's name, whichever holds what is needed.

    Args:
        folder: Given by the user.
        name: Name of the subfolder.
        needed: Files and folders that must be there.
        module: Module whose docstring describes the layout, for the message.

    Raises:
        FileNotFoundError: There is no such folder, or neither holds them all.
    """
    root = Path(folder)
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
    """Names in a list, one a line, all of them inside its folder.

    Args:
        path: Path of the list.

    Raises:
        ValueError: It is empty, or has a name twice or one that leads out of the folder.
    """
    return [name for (name,) in read_table(path, 1)]


def read_table(path: Path, columns: int) -> list[list[str]]:
    """Names in a list of so many columns, all of them inside its folder.

    Args:
        path: Path of the list.
        columns: Names on a line, separated by white space; with 1, a name may hold spaces.

    Raises:
        ValueError: It is empty, has another number of columns, has a name of the first column
            twice, or a name that leads out of the folder.
    """
    with naming_file(path, "list of names"):
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [[line] if columns == 1 else line.split() for line in lines if line]
    firsts = {row[0] for row in rows}
    if not rows or len(firsts) < len(rows) or any(len(row) != columns for row in rows):
        raise ValueError(
            f"{path} must hold {columns} name(s) a line, each once; it has {len(rows)} lines"
        )
    for name in (name for row in rows for name in row):
        inner = PurePosixPath(name)
        if inner.is_absolute() or ".." in inner.parts:
            raise ValueError(f"{path} names {name!r}, outside its folder; use relative names")
    return rows


def check_files(paths: Sequence[Path], *, needed_by: Path) -> None:
    """Raise unless all files are there.

    Args:
        paths: Paths of the files.
        needed_by: The list or folder that names them, for the message.

    Raises:
        FileNotFoundError: A file is missing; the message counts them and names the first.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{needed_by} needs {len(missing)} file(s) that are not there, first {missing[0]}"
        )


@contextmanager
def naming_file(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into an error that names the file.

    Args:
        path: Path of the file.
        kind: What the file should be, for the message.

    Raises:
        ValueError: The file cannot be read as what it should be.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(f"{path} is no {kind} that can be read: {error}") from error
