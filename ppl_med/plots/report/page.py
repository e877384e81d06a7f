"""A self-contained HTML page: pictures inside, nothing fetched from anywhere.

The HTML stands in ``templates``; jinja2 escapes every text that is put into it. The only script is
the one that moves sliders, on pages that have some; the policy of the page names its hash, so that
a browser runs no other.
"""

import base64
import csv
import hashlib
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from ppl_med.plots.glyphs import draw_all_text
from ppl_med.plots.theme import ALEATORIC, EPISTEMIC

_DPI = 180
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PARTS = _TEMPLATES.get_template("parts.html").module
_SCRIPT = _TEMPLATES.get_template("sliders.js").render().strip()
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Args:
        anchor: For links.
        title: Plain text.
        body: HTML.
        sliders: Whether the body has sliders of `ppl_med.plots.report.viewer`, which need a script.
    """

    anchor: str
    title: str
    body: str
    sliders: bool = False


def render(sections: Sequence[Section], **values: Any) -> str:
    """Return the whole document.

    Args:
        sections: In reading order.
        values: ``title`` and ``lead``, plain text; ``notes``, paragraphs of plain text; ``cards``,
            each (name, value, standard error or "", unit); ``masks``, whether a draw is a mask;
            ``smoke``, whether the figures mean nothing.
    """
    page = _TEMPLATES.get_template("report.html")
    script = _SCRIPT if any(section.sliders for section in sections) else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return page.render(
        sections=sections,
        aleatoric=ALEATORIC,
        epistemic=EPISTEMIC,
        script=script,
        policy=f"; script-src 'sha256-{digest}'" if script else "",
        **values,
    )


def part(name: str, *values: Any) -> str:
    """Return one of the pieces of ``parts.html``, filled in."""
    return str(getattr(_PARTS, name)(*values)).strip()


def paragraph(text: str) -> str:
    """Return plain text as an HTML paragraph."""
    return part("paragraph", text)


def picture(figure: Figure, alt: str, *, wide: bool = False) -> str:
    """Return a figure as an inline PNG.

    Args:
        figure: The figure to show.
        alt: Plain text for readers who cannot see the figure.
        wide: Keep it wider on a small screen, where it scrolls sideways.

    Returns:
        HTML. Names that no installed font can draw are numbered in the picture and stand below it.
    """
    names = draw_all_text(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return part("picture", data, alt, f"{100 * figure.get_figwidth():.0f}", wide, names)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Return a table whose first column names the row.

    Args:
        head: Column names, plain text; empty for none.
        rows: Cells, plain text.
        kind: CSS class.

    Returns:
        HTML.
    """
    return part("table", head, rows, kind)


def data_table(
    name: str,
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    most: int = 20,
    shown: Sequence[str] | None = None,
) -> str:
    """Return a table of numbers, with a link that saves all of it as CSV.

    Args:
        name: What the table is of, plain text; also the name of the file.
        head: Names of the columns. Those called "<name> lower" and "<name> upper" are shown in the
            cell of <name>, as its interval.
        rows: Cells: text, numbers in full precision, or None. The first names the row.
        most: Rows shown; the file has all.
        shown: Columns shown, by name; all by default.

    Returns:
        HTML.
    """
    rows = [list(row) for row in rows]
    names = [one for one in head if shown is None or one in shown]
    ends = {one: (f"{one} lower", f"{one} upper") for one in names if f"{one} upper" in head}
    inside = {end for pair in ends.values() for end in pair}
    names = [one for one in names if one not in inside]
    cells = []
    for row in rows[:most]:
        known = dict(zip(head, row, strict=True))
        cells.append([_with_interval(known, one, ends.get(one)) for one in names])
    note = f"{most} of {len(rows)} rows shown; the file has all." if len(rows) > most else ""
    body = part("table", names, cells, "", f"Table: {name}")
    return body + download(name, head, rows, note)


def download(
    name: str, head: Sequence[str], rows: Iterable[Sequence[object]], note: str = ""
) -> str:
    """Return a link that saves a table as CSV; the table is in the page.

    Args:
        name: What the table is of, plain text; also the name of the file.
        head: Names of the columns.
        rows: Cells, as for `data_table`.
        note: Said before the link.
    """
    file = f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-') or 'table'}.csv"
    data = base64.b64encode(csv_text(head, rows).encode("utf-8-sig")).decode()
    return part("download", name, file, data, note)


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write rows as CSV; text that a spreadsheet would take for a formula gets an apostrophe."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([_plain_cell(cell) for cell in head])
    writer.writerows([_plain_cell(cell) for cell in row] for row in rows)
    return buffer.getvalue()


def written(value: object) -> str:
    """Write a cell: numbers with three decimals or digits, a dash for what is not known."""
    if value is None:
        return "–"
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        return str(value)
    if isinstance(value, int) or not math.isfinite(number := float(value)):
        return "–" if isinstance(value, float) and math.isnan(value) else str(value)
    return f"{number:.3f}" if number == 0 or 0.001 <= abs(number) < 1000 else f"{number:.3g}"


def _with_interval(row: dict[str, object], name: str, ends: tuple[str, str] | None) -> str:
    text = written(row[name])
    if ends is None or "–" in (found := [written(row[end]) for end in ends]):
        return text
    return f"{text} ({found[0]} to {found[1]})"


def _plain_cell(cell: object) -> object:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
