"""Tables of a study as text."""

from collections.abc import Iterable


def markdown_table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A table in Markdown: the titles of its columns, and the cells of every line."""
    titles = list(head)
    rows = (titles, ["---"] * len(titles), *lines)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
