"""A self-contained HTML page: pictures inside, no script, nothing fetched from anywhere.

The HTML stands in ``templates``; jinja2 escapes every text that is put into it.
"""

import base64
import io
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


@dataclass(frozen=True)
class Section:
    """One part of the page: ``anchor`` for links, ``title`` as plain text, ``body`` as HTML."""

    anchor: str
    title: str
    body: str


def render(sections: Sequence[Section], **values: Any) -> str:
    """Return the whole document.

    Args:
        sections: In reading order.
        values: ``title`` and ``lead``, plain text; ``notes``, paragraphs of plain text; ``cards``,
            each (name, value, standard error or "", unit); ``masks``, whether a draw is a mask;
            ``smoke``, whether the figures mean nothing.
    """
    page = _TEMPLATES.get_template("report.html")
    return page.render(sections=sections, aleatoric=ALEATORIC, epistemic=EPISTEMIC, **values)


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
