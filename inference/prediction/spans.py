"""Which cases are there: spans of positions, each [first, last) with the last left out."""

from collections.abc import Iterable, Sequence

Span = tuple[int, int]


def joined(spans: Iterable[Sequence[int]]) -> list[Span]:
    """The same positions in spans that are in order and do not touch."""
    found: list[Span] = []
    for first, last in sorted((int(first), int(last)) for first, last in spans):
        if first >= last:
            continue
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def cut_out(spans: Iterable[Span], hole: Span) -> list[Span]:
    """The positions outside of a span."""
    first, last = hole
    parts = [((a, min(b, first)), (max(a, last), b)) for a, b in spans]
    return joined(part for pair in parts for part in pair)


def covered(spans: Iterable[Span], part: Span) -> bool:
    """Whether all positions of a span are there."""
    return any(a <= part[0] and part[1] <= b for a, b in joined(spans))


def touched(spans: Iterable[Span], part: Span) -> bool:
    """Whether some positions of a span are there."""
    return any(a < part[1] and part[0] < b for a, b in spans)


def num_positions(spans: Iterable[Span]) -> int:
    """How many positions there are."""
    return sum(last - first for first, last in joined(spans))
