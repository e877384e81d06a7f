"""Where the files of a data set lie, and the lists that divide them among splits."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from ppl_med.data.disjoint import check_disjoint


def find_place(
    folder: str | PathLike[str], name: str, needed: Sequence[str], *, module: str
) -> Path:
    """The folder itself, or its subfolder of the data set's name, whichever holds what is needed.

    Args:
        folder: Given by the user.
        name: Of the subfolder.
        needed: Files and folders that must be there.
        module: Whose docstring describes the layout, for the message.

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


def read_list(path: Path) -> list[str]:
    """Names in a list, one a line, all of them inside its folder.

    Args:
        path: Of the list.

    Raises:
        ValueError: It is empty, or has a name twice or one that leads out of the folder.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{path} must hold names, one a line, each once; it has {len(names)}")
    for name in names:
        inner = PurePosixPath(name)
        if inner.is_absolute() or ".." in inner.parts:
            raise ValueError(f"{path} names {name!r}, outside its folder; use relative names")
    return names


def check_files(paths: Sequence[Path], *, needed_by: Path) -> None:
    """Raise unless all files are there.

    Args:
        paths: Of the files.
        needed_by: The list or folder that names them, for the message.

    Raises:
        FileNotFoundError: A file is missing; the message counts them and names the first.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{needed_by} needs {len(missing)} file(s) that are not there, first {missing[0]}"
        )


def check_splits(splits: Mapping[str, Mapping[str, Any]], key: str = "id") -> None:
    """Raise if two splits share an id, or a patient.

    Args:
        splits: Arrays by name, for every split.
        key: The array that must not overlap.

    Raises:
        ValueError: Two splits share an entry of it.
    """
    for first, second in combinations(splits, 2):
        names = (first, second) if key == "id" else (f"{key}s of {first}", f"{key}s of {second}")
        check_disjoint(splits[first][key], splits[second][key], names=names)
