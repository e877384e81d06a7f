"""Lets docstrings that are written for the reader of the source pass for reStructuredText.

Formulas and aligned tables in a module's docstring become literal blocks, so that their columns
stay columns. Axis names such as ``*space`` and absolute values such as ``|y - mean|`` are escaped:
neither is emphasis nor a substitution.
"""

import re
from typing import Any, get_origin

STAR = re.compile(r"(?<![\w*\\`])\*(?=\w+[\s,)\]])(?![^*\n]*\w\*)")
BAR = re.compile(r"(?<!\\)\|")
COLUMNS = re.compile(r"\S {2,}\S")
LIST = re.compile(r"\s*([-*]|\d+\.) ")


def adapt(app: Any, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Change the lines of one docstring in place; an ``autodoc-process-docstring`` handler."""
    if what == "data" and getattr(obj, "__doc__", None) in {
        type(obj).__doc__,
        getattr(get_origin(obj), "__doc__", None),
    }:
        lines[:] = []  # a constant without a docstring has that of its type
    elif what == "module":
        lines[:] = [line for block in _blocks(lines) for line in _shown(block)]
    else:
        lines[:] = [_escaped(line) for line in lines]


def _blocks(lines: list[str]) -> list[list[str]]:
    """Runs of lines between blank lines."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


def _shown(block: list[str]) -> list[str]:
    """A block as a paragraph, or literally where its layout means something."""
    indented = any(line.startswith(" ") for line in block)
    columns = sum(bool(COLUMNS.search(line.strip())) for line in block) > 1
    if LIST.match(block[0]) or not (indented or columns):
        return [*(_escaped(line) for line in block), ""]
    return ["::", "", *(f"    {line}" for line in block), ""]


def _escaped(line: str) -> str:
    """A line whose stars and bars are text; what stands in double backquotes stays as it is."""
    parts = re.split(r"(``.*?``|`[^`]*`|:math:`[^`]*`)", line)
    parts[::2] = [BAR.sub(r"\\|", STAR.sub(r"\\*", part)) for part in parts[::2]]
    return "".join(parts)
