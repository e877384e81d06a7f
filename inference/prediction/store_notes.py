"""Files beside a store in the making that say which of its cases are complete.

Of ``run.zarr`` they are ``run.zarr.partial.json``, and of several processes that write to it one of
every other rank, ``run.zarr.partial.<rank>.json``. Each holds the lock of its own while it writes.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppl_med.inference.prediction.spans import Span, joined
from ppl_med.inference.process_group import rank
from ppl_med.storage.atomic import remove_leftovers, write_text
from ppl_med.storage.locks import locked

WHAT = "note of progress"


@dataclass
class Noted:
    """What an interrupted run noted.

    ``every_chunk`` is False of an earlier version, which left out chunks of one value.
    """

    cases: list[Span]
    attrs: dict[str, Any]
    every_chunk: bool


class StoreNotes:
    """The notes of one store."""

    def __init__(self, path: Path) -> None:
        self.folder, self.partial = path.parent, f"{path.name}.partial"
        self.main = path.with_name(f"{self.partial}.json")
        self.own = path.with_name(f"{self.partial}.{rank()}.json") if rank() else self.main

    def write(self, cases: Sequence[Span], attrs: Mapping[str, Any], every_chunk: bool) -> None:
        """Note what this process has completed."""
        state = {"cases_done": cases, "attrs": attrs, "every_chunk": every_chunk}
        write_text(self.own, json.dumps(state))

    def read(self) -> Noted | None:
        """What all processes of an interrupted run have noted; None where nothing is complete.

        Raises:
            ValueError: A note is damaged, or of another run.
        """
        if not self.main.exists():
            return None
        found = self._read(self.main)
        for path in self._paths():
            if path != self.main and path.exists():
                other = self._read(path)
                if other.attrs != found.attrs:
                    raise self._damaged(path)
                found.cases += other.cases
        found.cases = joined(found.cases)
        return found if found.cases else None

    def check_unused(self) -> None:
        """Raise a BlockingIOError where a process of an earlier run still writes to the store."""
        for path in self._paths():
            with locked(path, "store"):
                pass

    def gather(self, found: Noted) -> None:
        """Put all that was noted into the one note of this process, on rank 0."""
        self.write(found.cases, found.attrs, found.every_chunk)
        self._remove([path for path in self._paths() if path != self.main])

    def remove(self) -> None:
        """Remove all notes, and what a process killed while it wrote one left of it."""
        self._remove(self._paths())

    def _remove(self, paths: Sequence[Path]) -> None:
        for path in paths:
            with locked(path, WHAT):
                path.unlink(missing_ok=True)
                remove_leftovers(path)

    def _paths(self) -> list[Path]:
        """Where notes are, or locks and other remains of them."""
        if not self.folder.is_dir():
            return []
        name = re.compile(rf"\.?({re.escape(self.partial)}(\.\d+)?\.json)(\..*)?")
        found = {match[1] for one in self.folder.iterdir() if (match := name.fullmatch(one.name))}
        return [self.folder / one for one in sorted(found)]

    def _read(self, path: Path) -> Noted:
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            attrs, every_chunk = dict(state["attrs"]), bool(state.get("every_chunk"))
            cases = state["cases_done"]  # an earlier version noted how many of the first ones
            spans = joined(cases if isinstance(cases, list) else [(0, int(cases))])
        except (ValueError, TypeError, KeyError) as error:
            raise self._damaged(path) from error
        return Noted(spans, attrs, every_chunk)

    def _damaged(self, path: Path) -> ValueError:
        return ValueError(
            f"{path} is damaged, so nobody knows how far the interrupted run came; "
            f"delete it and {self.folder / self.partial}, and predict again"
        )
