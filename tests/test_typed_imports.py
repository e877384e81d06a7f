"""A value in ppl_med that is not of the annotated type is seen."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typed_imports import Loader, WrongType

from ppl_med.plots.report.page import Section

NUMBER: Any = 3
SOURCE = """
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from somewhere import Unknown

def argument(value: str | None): ...

def result(value) -> str:
    return value

def inside(value):
    def inner(value: "str"): ...
    inner(value)

def passes(value: float, other: "Unknown") -> "Later": return other

class Method:
    def __init__(self, value: str): ...

@dataclass(frozen=True)
class Field:
    value: str

class Later: ...
"""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that is imported as those of ppl_med are."""
    path = tmp_path / "planted.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("planted", loader=Loader("planted", str(path)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "planted", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("place", ["argument", "result", "inside", "Method", "Field"])
def test_a_wrong_type_is_an_error(place: str, planted: ModuleType) -> None:
    call: Callable[[Any], Any] = getattr(planted, place)
    call("text")
    with pytest.raises(WrongType, match=place):
        call(NUMBER)


def test_an_int_is_a_float_and_what_is_not_known_yet_is_anything(planted: ModuleType) -> None:
    assert planted.passes(1, 2) == 2


def test_the_package_itself_is_checked() -> None:
    with pytest.raises(WrongType):
        Section(NUMBER, "title", "body")


def test_nothing_is_checked_where_users_are_meant(types_unchecked: None) -> None:
    assert Section(NUMBER, "title", "body").anchor == NUMBER
