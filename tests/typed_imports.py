"""ppl_med as it is imported in tests: beartype checks every annotation of its functions.

Not by ``beartype.claw``: it puts itself around whole classes, so that ``dependent_property`` of
torch is none any more, and refuses hints that name what only type checkers import.
"""

import ast
import dataclasses
import importlib.abc
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any, get_type_hints

from beartype import BeartypeConf, beartype

PACKAGE, DECORATOR = "ppl_med", "_typed"


class WrongType(TypeError, Warning):
    """A value that is not of the annotated type: an error, as every warning is in tests."""


CHECKS: Callable[[Any], Any] = beartype(
    # An int is welcome where a float is annotated, as for every type checker (PEP 484).
    conf=BeartypeConf(is_pep484_tower=True, violation_type=WrongType)
)


def typed(target: Any) -> Any:
    """The function with its annotations checked; of a class, those of the fields of a dataclass."""
    if isinstance(target, type):
        if dataclasses.is_dataclass(target) and "__init__" in vars(target):
            target.__init__ = typed(target.__init__)  # type: ignore[method-assign]
        return target
    kept = target.__annotations__
    names = vars(sys.modules[target.__module__])
    target.__annotations__ = {name: resolved(hint, names) for name, hint in kept.items()}
    try:
        return CHECKS(target)
    finally:
        target.__annotations__ = kept


def resolved(hint: Any, names: dict[str, Any]) -> Any:
    """The type that a hint names; anything where it is not known yet, or to type checkers only."""

    def one(value: Any) -> None:
        pass

    one.__annotations__ = {"value": hint}
    try:
        return get_type_hints(one, names, include_extras=True)["value"]
    except NameError:
        return Any


class Decorated(ast.NodeTransformer):
    """Puts the decorator next to a function, and before the decorators of a class."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.decorator_list.append(ast.copy_location(ast.Name(DECORATOR, ast.Load()), node))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        node.decorator_list.insert(0, ast.copy_location(ast.Name(DECORATOR, ast.Load()), node))
        return node


class Loader(SourceFileLoader):
    """Loads a module with the decorator everywhere; no compiled file is read or written."""

    def path_stats(self, path: Any) -> Any:
        raise OSError

    def source_to_code(self, data: Any, path: Any, **options: Any) -> Any:  # type: ignore[override]
        return compile(Decorated().visit(ast.parse(data)), path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        setattr(module, DECORATOR, typed)
        super().exec_module(module)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of ppl_med for the loader."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] != PACKAGE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(name, spec.loader.path)
        return spec


def install() -> None:
    """From now on; before ppl_med is imported."""
    assert PACKAGE not in sys.modules
    sys.meta_path.insert(0, Finder())
