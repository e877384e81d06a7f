"""Batches in groups: what is predicted before something is written, with ids that are unique."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ppl_med.inference.batches import BatchSpec, num_cases_in
from ppl_med.inference.prediction.tree_builder import case_ids
from ppl_med.programs.sites import Program, select_arguments


@dataclass
class CaseGroup:
    """Some whole batches in their order, the position of their first case, and all ids."""

    start: int
    batches: list[dict[str, Any]]
    ids: list[Any]


def case_groups(
    model: Program, spec: BatchSpec, batches: Any, num_cases: int
) -> Iterator[CaseGroup]:
    """Groups of so many cases at least; the last one holds the rest.

    Raises:
        ValueError: A batch does not fit the model, or an id comes twice.
    """
    known: dict[Any, int] = {}
    for start, group in _grouped(spec, batches, num_cases):
        ids = case_ids(start, group, [select_arguments(model, batch) for batch in group])
        for position, name in enumerate(ids, start):
            if known.setdefault(name, position) != position:
                raise ValueError(
                    f"id {name!r} appears 2 times, at positions {known[name]} and {position}; "
                    "every case needs an id of its own, and is predicted once"
                )
        yield CaseGroup(start, group, ids)


def check_ids(model: Program, batches: Any, expected: list[Any]) -> None:
    """Raise where the batches hold other cases than a complete result."""
    ids: list[Any] = []
    for batch in batches:
        ids += case_ids(len(ids), [batch], [select_arguments(model, batch)])
    if list(map(str, ids)) != list(map(str, expected)):
        raise ValueError(
            f"the store holds {len(expected)} cases, the batches {len(ids)}, and they differ; "
            "pass the batches it was made with, or another store"
        )


def _grouped(
    spec: BatchSpec, batches: Any, num_cases: int
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    group: list[dict[str, Any]] = []
    start = size = 0
    for batch in batches:
        spec.check(batch)
        group.append(batch)
        size += num_cases_in(batch)
        if size >= num_cases:
            yield start, group
            group, start, size = [], start + size, 0
    if group:
        yield start, group
