"""Checks of arguments, in one dialect: "name must be ..., got ...; fix".

Every check takes the value and the name of the argument, returns the value as the plain Python
object that was meant, and raises a ``ValueError`` before any work starts. NumPy scalars and tensors
of one number count as numbers; bool does not.
"""

import difflib
import math
import numbers
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

Choice = TypeVar("Choice")


def reject(name: str, rule: str, value: Any, fix: str = "") -> NoReturn:
    """Raise the error of an argument.

    Args:
        name: The argument.
        rule: What it must be.
        value: What it was.
        fix: What to do, where the rule does not say it.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{name} must be {rule}, got {value!r}" + (f"; {fix}" if fix else ""))


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number: an ``int`` or a NumPy integer, no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number, no bool."""
    if isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False


def whole(
    name: str, value: Any, least: int | None = 1, most: int | None = None, fix: str = ""
) -> int:
    """A whole number of a range, both ends included; None leaves an end open.

    Raises:
        ValueError: If it is none.
    """
    fits = is_whole(value) and (least is None or value >= least) and (most is None or value <= most)
    if not fits:
        reject(name, "a whole number" + _range(least, most), value, fix)
    return int(value)


def finite(
    name: str, value: Any, least: float | None = None, most: float | None = None, fix: str = ""
) -> float:
    """A finite number of a range, both ends included; None leaves an end open.

    Raises:
        ValueError: If it is none.
    """
    fits = (
        is_finite(value) and (least is None or value >= least) and (most is None or value <= most)
    )
    if not fits:
        reject(name, "a finite number" + _range(least, most), value, fix)
    return float(value)


def positive(name: str, value: Any, fix: str = "") -> float:
    """A finite number above 0.

    Raises:
        ValueError: If it is none.
    """
    if not (is_finite(value) and value > 0):
        reject(name, "a finite number above 0", value, fix)
    return float(value)


def inside(name: str, value: Any, low: float = 0.0, high: float = 1.0, fix: str = "") -> float:
    """A number strictly between two others, such as a level in (0, 1).

    Raises:
        ValueError: If it is none.
    """
    if not (is_finite(value) and low < value < high):
        reject(name, f"strictly between {low:g} and {high:g}", value, fix)
    return float(value)


def share(name: str, value: Any, fix: str = "") -> float:
    """A number in [0, 1): 0 is welcome, 1 is not.

    Raises:
        ValueError: If it is none.
    """
    if not (is_finite(value) and 0 <= value < 1):
        reject(name, "in [0, 1)", value, fix)
    return float(value)


def choice(name: str, value: Choice, options: Iterable[Choice], fix: str = "") -> Choice:
    """One of a few options.

    Raises:
        ValueError: If it is none of them.
    """
    known = list(options)
    try:
        found = value in known
    except (TypeError, ValueError):  # an array has no one truth value
        found = False
    if not found:
        *most, last = map(repr, known)
        reject(name, f"{', '.join(most)} or {last}" if most else last, value, fix)
    return value


def nearest(value: Any, options: Iterable[str]) -> str:
    """The end of a message about a name that is none: "; did you mean ...?", or nothing."""
    found = difflib.get_close_matches(str(value), list(options), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def known_keys(name: str, given: Iterable[str], options: Iterable[str]) -> None:
    """Raise a ValueError where a mapping has a key that it cannot have; it names the nearest."""
    options = list(options)
    for key in given:
        if key not in options:
            known = ", ".join(options) or "nothing"
            raise ValueError(f"{name} has no {key!r}{nearest(key, options)} (it takes {known})")


def different_names(name: str, values: Any, least: int = 1, fix: str = "") -> tuple[str, ...]:
    """Names, all different, at least so many; one string is no list of names.

    Raises:
        ValueError: If they are not.
    """
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    if not is_list or len(values) < least or len(set(values)) < len(values):
        count = {1: "one or more", 2: "two or more"}.get(least, f"{least} or more")
        reject(name, f"{count} different names", values, fix)
    return tuple(values)


def a_path(name: str, value: Any, fix: str = "") -> Path:
    """The path of a file or folder.

    Raises:
        ValueError: If it is none, or an empty text.
    """
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        reject(name, "the path of a file or folder", value, fix)
    return Path(value)


def present(name: str, values: Any) -> list[Any]:
    """Names of cases or of groups, none of which is missing: None, NaN, NaT or an empty string.

    Args:
        name: The argument.
        values: A list, an array or a tensor, one entry per case.

    Returns:
        The values as plain Python objects.

    Raises:
        ValueError: If any is missing; it says how many are, and where.
    """
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    if getattr(getattr(values, "dtype", None), "kind", "") in ("i", "u", "b"):
        return listed
    missing = [position for position, value in enumerate(listed) if _is_missing(value)]
    if missing:
        places = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise ValueError(
            f"{name} is missing (None, NaN or empty) in {len(missing)} of {len(listed)} entries, "
            f"at position(s) {places}; every case needs one: look it up, or drop the case"
        )
    return listed


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, str | bytes):
        return not value.strip()
    try:
        return bool(value != value)  # NaN
    except (TypeError, ValueError):
        return False


def _range(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least} to {most}"
    if least is not None:
        return f", {least:g} or more"
    return "" if most is None else f", {most:g} or less"
