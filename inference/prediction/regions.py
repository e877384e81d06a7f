"""Which groups of cases a process predicts, where several processes write to one store.

A group is what one call of a sink's ``append`` takes: whole batches in their order, the same ones
that a process on its own would run, so that every number is the same. A group fills one Zarr chunk
(one shard, where an array has shards) along the cases, which no other process touches.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from ppl_med.inference.prediction.spans import Span, covered, touched
from ppl_med.inference.process_group import num_ranks, of_all_ranks, rank


class Regions:
    """Deals the groups of cases that are to be done to the ranks, in turn.

    Args:
        done: Spans of cases that are complete.
        ids: Ids of the cases by position, as far as they are done.
        grid: Cases along a chunk of the store; None where the first group determines it.
    """

    def __init__(
        self, done: Sequence[Span] = (), ids: Sequence[Any] = (), grid: int | None = None
    ) -> None:
        self.done, self.ids, self.grid = list(done), ids, grid
        self.num_cases = 0
        self._to_do = 0
        self._names = hashlib.sha256()

    def is_mine(self, start: int, ids: Sequence[Any]) -> bool:
        """Whether this process is to predict the cases from ``start`` on; call it for every group.

        Raises:
            ValueError: The cases are done, but were others; or several processes would write into
                one chunk.
        """
        group = (start, start + len(ids))
        self.num_cases = group[1]
        self._names.update("\0".join(map(str, ids)).encode() + b"\0")
        if num_ranks() > 1:
            self._check_grid(group)
        if covered(self.done, group):
            if list(map(str, ids)) != list(map(str, self.ids[slice(*group)])):
                raise ValueError(
                    f"batches hold other cases than the interrupted run, or in another order, "
                    f"among positions {start} to {group[1] - 1}; pass the same batches"
                )
            return False
        self._to_do += 1
        return (self._to_do - 1) % num_ranks() == rank()

    def _check_grid(self, group: Span) -> None:
        start, end = group
        self.grid = self.grid or end - start
        if start % self.grid or end - start > self.grid:
            raise ValueError(
                f"batches: cases {start} to {end - 1} would share a chunk of the store, of "
                f"{self.grid} cases, with those of another process; of several processes, batches "
                "must hold equally many cases (all but the last), and a store is resumed in "
                "batches of the size before; or predict on one process"
            )
        if touched(self.done, group) and not covered(self.done, group):
            raise ValueError(
                f"batches: some of the cases {start} to {end - 1} are in the store already, in "
                "other batches; resume on one process, or with batches of the size before"
            )

    def check_same_cases(self) -> None:
        """Raise a ValueError where processes have not seen the same cases in the same order."""
        found = of_all_ranks((self.num_cases, self._names.hexdigest()))
        other = next((at for at, one in enumerate(found) if one != found[0]), None)
        if other is not None:
            raise ValueError(
                f"batches: rank {other} has other cases than rank 0, or in another order "
                f"({found[other][0]} against {found[0][0]}); pass the same batches on every "
                "process, without a DistributedSampler: predict deals them itself"
            )


def check_same_call(settings: dict[str, Any]) -> None:
    """Raise a ValueError where processes call ``predict`` on different things.

    Args:
        settings: What must be the same on all ranks, by name.
    """
    found = of_all_ranks(settings)
    for other, theirs in enumerate(found):
        for name in [*found[0], *theirs]:
            if theirs.get(name) != found[0].get(name):
                raise ValueError(
                    f"rank {other} has another {name} than rank 0: {theirs.get(name)!r} and "
                    f"{found[0].get(name)!r}; all processes must predict the same batches by the "
                    "same trained model and guide (load one file of weights on all), with the same "
                    "arguments"
                )
