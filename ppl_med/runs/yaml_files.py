"""YAML as people write it: the scalars of YAML 1.2, no key twice, no object of any kind.

PyYAML's own loader reads ``no`` as False, ``1e-3`` as text and ``12:30`` as a number of seconds.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from ppl_med.checks import a_path

_DIGITS = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_SCALARS = {
    "tag:yaml.org,2002:bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "tag:yaml.org,2002:null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:int": (r"^[-+]?[0-9]+$", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        rf"^(?:[-+]?{_DIGITS}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+0123456789.",
    ),
}


_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Plain data of YAML 1.2."""

    yaml_implicit_resolvers: Any = {}  # noqa: RUF012

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        own: set[str] = set()  # before ``<<`` brings in those of another mapping
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ValueError(f"line {line}: the key {key!r} must be text; put it in quotes")
            if key in own:
                raise ValueError(f"line {line}: the key {key!r} stands there twice")
            own.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Writes what ``_Loader`` reads back."""

    yaml_implicit_resolvers: Any = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, (_pattern, _first) in _SCALARS.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))
_Loader.add_implicit_resolver(_MERGE, re.compile(r"^<<$"), ["<"])
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(str(node.value)))


def parse_yaml(text: str, what: str = "text") -> Any:
    """Read plain data: dicts with text as keys, lists, text, numbers, true, false and null.

    Raises:
        ValueError: If it is no YAML, holds objects, or a key twice; it names the line.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} is no plain YAML: {error}") from error


def read_yaml(path: str | Path) -> Any:
    """Read a file; see ``parse_yaml``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not as ``parse_yaml`` wants it.
    """
    path = a_path("config", path)
    if not path.is_file():
        raise FileNotFoundError(f"config {path} does not exist")
    return parse_yaml(path.read_text(encoding="utf-8"), str(path))


def as_yaml(content: Any) -> str:
    """Plain data as YAML, keys in their order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
