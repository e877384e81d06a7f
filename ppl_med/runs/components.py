"""From plain data to objects: ``{name: torch.nn.Linear, in_features: 4, out_features: 2}``.

    {name: <class or function>, <argument>: ...}       is called with the arguments
    {function: <class or function>, <argument>: ...}   is the function itself, arguments set

Arguments are read off the signature; those of ``*args`` are a list under the name that the
signature gives them. Arguments may be components themselves. ``${NAME}`` in a text is the
environment's variable of that name. Loggers write to paths inside the folder of the run. Names are
those of ``allowed_names``.
"""

import functools
import inspect
import os
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ppl_med.checks import known_keys
from ppl_med.runs.allowed_names import PLACES_TO_WRITE, resolve

CALL, REFERENCE = "name", "function"
_VARIABLE = re.compile(r"\$\{(\w+)\}")
# Arguments whose text MONAI imports from wherever it says, and those that allow unpickling.
_LOCATED = ("reader", "writer", "merger_cls")
_UNPICKLES = {"allow_pickle": True, "weights_only": False}


def is_component(value: Any) -> bool:
    """Whether plain data stands for a call."""
    return isinstance(value, Mapping) and CALL in value


class Builder:
    """Builds objects from plain data.

    Args:
        allow: Modules of the user's own whose names may be used.
        given: Arguments to supply by name wherever what is called takes them and the data do not
            have them.
        without: Arguments of torchvision and MONAI that are left out, with the value to take in
            their place, such as ``{"weights": None}`` for weights that will be replaced anyway.
        folder: Folder of the run, in which loggers write; None where nothing will be written.
    """

    def __init__(
        self,
        allow: Iterable[str] = (),
        given: Mapping[str, Any] | None = None,
        without: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.folder = Path() if folder is None else folder
        self.allow, self.given, self.without = tuple(allow), dict(given or {}), dict(without or {})

    def __call__(self, value: Any, where: str) -> Any:
        """The object of plain data, which stands at ``where`` in the file.

        Raises:
            ValueError: On names that are not allowed, unknown, missing or unfit arguments.
        """
        if isinstance(value, Mapping) and CALL in value and REFERENCE in value:
            raise ValueError(f"{where} has both {CALL!r} and {REFERENCE!r}; give one")
        if isinstance(value, Mapping) and (CALL in value or REFERENCE in value):
            return self._component(value, where)
        if isinstance(value, Mapping):
            return {key: self(one, f"{where}.{key}") for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self(one, f"{where}.{index}") for index, one in enumerate(value)]
        return _with_variables(value, where) if isinstance(value, str) else value

    def _component(self, value: Mapping[str, Any], where: str) -> Any:
        marker = CALL if CALL in value else REFERENCE
        name = value[marker]
        target = resolve(name, self.allow, f"{where}.{marker}")
        plain = {key: one for key, one in value.items() if key != marker}
        signature = inspect.signature(target)
        check_arguments(target, signature, plain, f"{where} ({name})")
        if name.startswith(("torchvision.", "monai.")):
            plain |= {key: self.without[key] for key in self.without.keys() & plain.keys()}
        arguments = {key: self(one, f"{where}.{key}") for key, one in plain.items()}
        _refuse_code(name, arguments, where)
        if name.startswith("ppl_med."):
            arguments = _with_tuples(target, arguments)
        key = PLACES_TO_WRITE.get(name)
        if key in arguments:
            arguments[key] = _inside(self.folder, arguments[key], f"{where}.{key}")
        for key, one in self.given.items() if marker == CALL else ():
            if key in signature.parameters and key not in arguments:
                arguments[key] = one
        positional: list[Any] = []
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL and parameter.name in arguments:
                positional = arguments.pop(parameter.name)
                if not isinstance(positional, list):
                    raise ValueError(f"{where}.{parameter.name} must be a list, got {positional!r}")
        if marker == REFERENCE:
            if not arguments and not positional:
                return target
            return functools.partial(target, *positional, **arguments)
        return _called(target, signature, positional, arguments, f"{where} ({name})")


def check_arguments(
    target: Callable[..., Any], signature: inspect.Signature, given: Iterable[str], where: str
) -> None:
    """Raise a ValueError on arguments that a function does not take; it names the nearest."""
    parameters = signature.parameters.values()
    options = [one.name for one in parameters if one.kind is not one.VAR_KEYWORD]
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        passed_on = _takes_the_rest(target)
        if passed_on is None:
            return
        options += passed_on
    known_keys(where, given, options)


def _takes_the_rest(target: Callable[..., Any]) -> list[str] | None:
    """What a builder such as ``resnet18(**kwargs)`` passes to the class it says it returns."""
    if inspect.isclass(target):
        return None
    try:
        built = typing.get_type_hints(target).get("return")
        parameters = inspect.signature(built).parameters.values()  # type: ignore[arg-type]
    except (NameError, TypeError, ValueError):
        return None
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return None
    return [one.name for one in parameters]


def _called(
    target: Callable[..., Any],
    signature: inspect.Signature,
    positional: list[Any],
    arguments: dict[str, Any],
    where: str,
) -> Any:
    try:
        signature.bind(*positional, **arguments)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from None
    try:
        return target(*positional, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"{where}: {error}") from error


def _with_tuples(target: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Lists, which are all that a file can say, as tuples where a function takes those."""
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):
        hints = {}
    kinds = {key: (hint, *typing.get_args(hint)) for key, hint in hints.items()}
    takes = {
        key for key, found in kinds.items() if any(typing.get_origin(one) is tuple for one in found)
    }
    return {
        key: tuple(one) if isinstance(one, list) and key in takes else one
        for key, one in arguments.items()
    }


def _refuse_code(name: str, arguments: Mapping[str, Any], where: str) -> None:
    """Arguments by which a class that is allowed would import or unpickle something else."""
    for key, value in arguments.items():
        if key in _UNPICKLES and bool(value) == _UNPICKLES[key]:
            raise ValueError(
                f"{where}.{key} may not be {value}: a file could then run code; leave it out"
            )
        if key in _LOCATED and name.startswith("monai."):
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, str):
                    resolve(f"monai.data.{one}", where=f"{where}.{key}")


def _inside(folder: Path, value: Any, where: str) -> Path:
    """A place in the folder of the run, to which a path is relative."""
    inside = isinstance(value, str) and (folder / value).resolve().is_relative_to(folder.resolve())
    if not inside or (folder / value).resolve() == folder.resolve():
        raise ValueError(
            f"{where} must be a path inside the folder of the run, such as log/epochs, got "
            f"{value!r}: a file may write nowhere else"
        )
    return folder / value


def _with_variables(text: str, where: str) -> str:
    def value(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise ValueError(f"{where} is {text!r}, but the environment has no {found[1]}; set it")
        return os.environ[found[1]]

    return _VARIABLE.sub(value, text)
