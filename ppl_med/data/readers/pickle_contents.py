"""What a pickle would make, followed step by step before any of it is made.

A pickle is a program for a small machine, and a few bytes of it can ask for gigabytes or for years:
tuples that hold each other twice, the place 2^30 of its memory, a text longer than the file. Here
the machine is run with the depth of every value in the place of the value. Refused is what no
pickle of plain arrays does: it shares no tuple, list or dict, names its entries by texts, and
numbers the places of its memory one after the other.
"""

import pickletools
from pathlib import Path
from typing import Any, NoReturn

MOST_STEPS, MOST_DEPTH = 10**7, 50
_MARK, _CONTAINER = -1, 1000  # which is added to the depth of a tuple, list or dict

_PLAIN = {
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2"),
    *("LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"),
    *("BINBYTES8", "BYTEARRAY8", "GLOBAL"),
}
_EMPTY = {"EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"}
_COUNTED = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def check_pickle(path: Path) -> None:
    """Raise a ValueError where a pickle does other things than to hold plain arrays.

    It takes some seconds a million steps, and as much memory as the longest text of the file.
    """
    with path.open("rb") as file:
        _Machine().run(_Limited(file, path.stat().st_size))


class _Limited:
    """A file from which nobody reads more than is there."""

    def __init__(self, file: Any, size: int) -> None:
        self.file, self.left = file, size

    def read(self, size: int) -> bytes:
        """So many bytes; a ValueError where the file is shorter."""
        self.check(size)
        self.left -= size
        return self.file.read(size)

    def check(self, size: int) -> None:
        """Raise a ValueError where so many bytes are not left."""
        if size > self.left:
            raise ValueError(f"it tells of {size} bytes where {self.left} are left")

    def readline(self) -> bytes:
        """The bytes to the end of the line."""
        line = self.file.readline()
        self.left -= len(line)
        return line


class _Machine:
    """The stack and the memory of the machine, with depths for values."""

    def __init__(self) -> None:
        self.stack: list[int] = []
        self.memory: dict[int, int] = {}

    def run(self, file: _Limited) -> None:
        """Follow a program to its end."""
        for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):  # type: ignore[arg-type]
            if step > MOST_STEPS:
                raise ValueError(f"it has more than {MOST_STEPS} steps")
            name = opcode.name
            if name in _PLAIN:
                self.stack.append(0)
            elif name == "FRAME":
                file.check(int(argument or 0))
            elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                self._put(name, argument)
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                self._get(argument)
            elif name not in ("PROTO", "STOP"):
                self._build(name)

    def _put(self, name: str, place: Any) -> None:
        place = len(self.memory) if name == "MEMOIZE" else int(place)
        if place > len(self.memory) + 1:
            raise ValueError(f"it asks for place {place} of a memory of {len(self.memory)}")
        self.memory[place] = self._top()

    def _get(self, place: Any) -> None:
        depth = self.memory.get(int(place))
        if depth is None or depth >= _CONTAINER:
            _refuse("a tuple, list or dict in two places" if depth else "an empty memory")
        self.stack.append(depth)

    def _build(self, name: str) -> None:
        if name == "MARK":
            self.stack.append(_MARK)
        elif name in _EMPTY:
            self._push([])
        elif name in _COUNTED:
            self._push([self._pop() for _ in range(_COUNTED[name])])
        elif name in ("TUPLE", "LIST"):
            self._push(self._to_mark())
        elif name == "DICT":
            self._push(self._items(self._to_mark()))
        elif name == "STACK_GLOBAL":
            self._pop(), self._pop()
            self.stack.append(0)
        elif name == "REDUCE":
            self._push([self._pop(), self._pop()], container=False)
        elif name in ("APPEND", "BUILD"):
            self._join([self._pop()])
        elif name == "APPENDS":
            self._join(self._to_mark())
        elif name == "SETITEM":
            value, key = self._pop(), self._pop()
            self._join(self._items([key, value]))
        elif name == "SETITEMS":
            self._join(self._items(self._to_mark()))
        else:
            _refuse(name)

    def _items(self, depths: list[int]) -> list[int]:
        if any(depths[::2]):
            _refuse("an entry that is named by other things than a text")
        return depths

    def _push(self, parts: list[int], *, container: bool = True) -> None:
        depth = 1 + max((part % _CONTAINER for part in parts), default=0)
        if depth > MOST_DEPTH:
            _refuse(f"things in each other, {MOST_DEPTH} deep")
        self.stack.append(depth + _CONTAINER * container)

    def _join(self, parts: list[int]) -> None:
        """Put parts into what lies on top."""
        whole = self._pop()
        self._push([whole % _CONTAINER - 1, *parts], container=whole >= _CONTAINER)

    def _to_mark(self) -> list[int]:
        parts: list[int] = []
        while (depth := self._raw_pop()) != _MARK:
            parts.append(depth)
        return parts[::-1]

    def _top(self) -> int:
        depth = self._pop()
        self.stack.append(depth)
        return depth

    def _pop(self) -> int:
        depth = self._raw_pop()
        if depth == _MARK:
            raise ValueError("it takes more than is there")
        return depth

    def _raw_pop(self) -> int:
        if not self.stack:
            raise ValueError("it takes more than is there")
        return self.stack.pop()


def _refuse(what: str) -> NoReturn:
    raise ValueError(f"refused {what}: only arrays, numbers, strings, lists and dicts are read")
