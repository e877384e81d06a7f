"""Writes one page of API reference for each package: its docstring, then its public names.

A package that lists names in ``__all__`` shows those, under the modules that define them. A package
that lists none shows the public names of each of its modules. A module's docstring says what the
names in it share: of a model its program, its sites and their dims, and the reference.
"""

import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

import ppl_med

ROOT = "ppl_med"
LEFT_OUT = {"ppl_med.moved"}


def write(folder: Path) -> None:
    """Write ``<package>.rst`` into the folder, and delete pages of packages that are gone."""
    folder.mkdir(exist_ok=True)
    found = _pages()
    contents = "".join(f"   {name}\n" for name in sorted(found))
    pages = {f"{name}.rst": text for name, text in found.items()}
    pages["index.rst"] = (
        _title("API reference", "=") + f"\n.. toctree::\n   :maxdepth: 1\n\n{contents}"
    )
    for page in folder.glob("*.rst"):
        if page.name not in pages:
            page.unlink()
    for name, text in pages.items():
        page = folder / name
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def _pages() -> dict[str, str]:
    """Text of every page by the name of its package."""
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(ppl_med.__path__, f"{ROOT}.")
        if not any(part.startswith("_") for part in found.name.split("."))
        and found.name not in LEFT_OUT
    ]
    packages = [ppl_med, *(module for module in modules if hasattr(module, "__path__"))]
    pages: dict[str, str] = {}
    seen: set[int] = set()  # what a package shows is not shown again by a package inside it
    for package in sorted(packages, key=lambda package: package.__name__):
        inside = [m for m in modules if m.__name__.rpartition(".")[0] == package.__name__]
        text = _page(package, [m for m in inside if not hasattr(m, "__path__")], seen)
        if text:
            pages[package.__name__] = text
    return pages


def _page(package: ModuleType, modules: list[ModuleType], seen: set[int]) -> str:
    """A package's page; empty where it has no public name."""
    name = package.__name__
    groups: dict[ModuleType, list[str]] = {}
    if hasattr(package, "__all__"):
        for public in package.__all__:
            value = getattr(package, public)
            if id(value) not in seen:
                seen.add(id(value))
                groups.setdefault(_home(value, package), []).append(f"{name}.{public}")
    else:
        groups = {module: [f"{module.__name__}.{n}" for n in _names(module)] for module in modules}
    parts = [_title(name, "="), f".. automodule:: {name}\n   :no-members:\n"]
    for module, names in sorted(groups.items(), key=lambda group: group[0].__name__):
        if names:
            parts.append(_section(package, module, names))
    return "\n".join(parts) if len(parts) > 2 else ""


def _section(package: ModuleType, module: ModuleType, names: list[str]) -> str:
    """A module's docstring and the names that it defines."""
    lines = []
    if module is not package:
        lines += [_title(module.__name__.removeprefix(f"{package.__name__}."), "-")]
        lines += [f".. automodule:: {module.__name__}\n   :no-members:\n   :no-index:\n"]
    for name in names:
        lines.append(_directive(name))
    return "\n".join(lines)


def _directive(name: str) -> str:
    """The autodoc directive for an object, with its options."""
    owner, _, attribute = name.rpartition(".")
    value = getattr(importlib.import_module(owner), attribute)
    if inspect.isclass(value):
        return f".. autoclass:: {name}\n   :members:\n"
    kind = "autofunction" if inspect.isfunction(value) else "autodata"
    return f".. {kind}:: {name}\n"


def _home(value: object, package: ModuleType) -> ModuleType:
    """The module that defines an object, if it is one of ours."""
    module = getattr(value, "__module__", None) or ""
    ours = module.startswith(f"{ROOT}.") and callable(value)
    return importlib.import_module(module) if ours else package


def _names(module: ModuleType) -> list[str]:
    """Public classes and functions that a module defines, in the order of the source."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and (inspect.isclass(value) or inspect.isfunction(value))
    ]


def _title(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"
