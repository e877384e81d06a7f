"""A self-contained HTML page: pictures inside, no script, nothing fetched from anywhere."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.figure import Figure

from ppl_med.plots.theme import ALEATORIC, EPISTEMIC

_DPI = 180

# The policy makes the browser itself refuse anything that is not in the file.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
"""

_STYLE = """
:root { color-scheme: light; --ink: #1f2933; --muted: #5b6570; --line: #e4e7eb; --soft: #f6f7f9; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: #fff; color: var(--ink); font: 17px/1.6 system-ui, -apple-system,
  "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
main, header, footer { max-width: 880px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 56px; }
h1 { font-size: 34px; line-height: 1.2; letter-spacing: -0.01em; margin: 0 0 8px;
  overflow-wrap: anywhere; }
h2 { font-size: 23px; line-height: 1.3; margin: 0 0 10px; }
h3 { font-size: 17px; margin: 28px 0 4px; }
p { margin: 0 0 12px; max-width: 68ch; }
.lead { color: var(--muted); overflow-wrap: anywhere; }
nav { margin: 18px 0 0; display: flex; flex-wrap: wrap; gap: 6px 18px; font-size: 15px; }
nav a { color: var(--ink); text-decoration: underline; text-decoration-color: #b8c0c9;
  text-underline-offset: 4px; }
section { margin: 64px 0 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 14px;
  margin: 30px 0 0; padding: 0; }
.card { border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px;
  display: flex; flex-direction: column; }
.card .name { font-size: 14px; line-height: 1.35; color: var(--muted); flex: 1; }
.card .value { font-size: 32px; line-height: 1.25; font-weight: 650;
  font-variant-numeric: tabular-nums; }
.card .value small { display: block; font-size: 16px; font-weight: 400; color: var(--muted); }
.card .unit { font-size: 13px; color: var(--muted); }
.words { background: var(--soft); border-radius: 10px; padding: 18px 22px; margin: 30px 0 0; }
.words p { margin: 0 0 8px; } .words p:last-child { margin: 0; }
.notes { border-left: 4px solid var(--ink); padding: 4px 0 4px 18px; margin: 30px 0 0; }
.notes p:last-child { margin: 0; }
.swatch { display: inline-block; width: 14px; height: 14px; border-radius: 3px; margin-right: 8px;
  vertical-align: -2px; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.aleatoric { background: ALEATORIC; } .epistemic { background: EPISTEMIC; }
figure { margin: 20px 0 0; overflow-x: auto; }
figure img { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 15px; margin: 14px 0 0;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 9px 14px 9px 0;
  border-bottom: 1px solid var(--line); overflow-wrap: break-word; }
th { font-weight: 600; } thead th { color: var(--muted); font-weight: 500; font-size: 14px; }
.provenance td { overflow-wrap: anywhere; } .provenance th { width: 32%; }
.bar { display: grid; grid-template-columns: 9em 1fr 9em; gap: 12px; align-items: center;
  margin: 8px 0; font-size: 15px; }
.bar .track { background: var(--soft); border-radius: 4px; height: 20px; }
.bar .fill { display: block; background: #4b5763; border-radius: 4px; height: 20px;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
footer { margin-top: 72px; padding-top: 18px; padding-bottom: 48px; color: var(--muted);
  font-size: 14px; }
@media (max-width: 640px) {
  body { font-size: 16px; } main, header, footer { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 28px; } h1 { font-size: 27px; } section { margin-top: 48px; }
  figure img { min-width: 480px; } figure.wide img { min-width: 720px; }
  .cards { grid-template-columns: 1fr 1fr; } .card { padding: 12px 14px; }
  .card .value { font-size: 25px; }
  .bar { grid-template-columns: 6em 1fr 6.5em; } .scroll table { min-width: 560px; }
}
@media print {
  body { font-size: 10.5pt; } nav { display: none; }
  main, header, footer { max-width: none; padding: 0; }
  header { padding-top: 0; } section { margin-top: 26pt; } figure, .scroll { overflow: visible; }
  figure img { min-width: 0; max-height: 195mm; width: auto; max-width: 100%; }
  h2, h3, section > p { break-after: avoid; } section, p { break-inside: avoid; }
  figure, tr, .card, .words, .notes { break-inside: avoid; }
}
""".replace("ALEATORIC", ALEATORIC).replace("EPISTEMIC", EPISTEMIC)


@dataclass(frozen=True)
class Section:
    """One part of the page: ``anchor`` for links, ``title`` as plain text, ``body`` as HTML."""

    anchor: str
    title: str
    body: str


def page(title: str, lead: str, opening: str, sections: Sequence[Section], footer: str) -> str:
    """Join the parts to a whole HTML document.

    Args:
        title: Plain text.
        lead: Plain text under the title.
        opening: HTML between the title and the first section.
        sections: In reading order.
        footer: Plain text.

    Returns:
        The document.
    """
    links = "".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in sections)
    body = "".join(
        f'<section id="{s.anchor}"><h2>{escape(s.title)}</h2>{s.body}</section>\n' for s in sections
    )
    return (
        _HEAD.format(title=escape(title), style=_STYLE)
        + f'<body>\n<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>'
        + f'<nav aria-label="Sections">{links}</nav></header>\n<main>{opening}\n{body}</main>\n'
        + f"<footer>{escape(footer)}</footer>\n</body>\n</html>\n"
    )


def paragraph(text: str) -> str:
    """Return plain text as an HTML paragraph."""
    return f"<p>{escape(text)}</p>"


def picture(figure: Figure, alt: str, *, wide: bool = False) -> str:
    """Return a figure as an inline PNG.

    Args:
        figure: What to draw.
        alt: What a reader who cannot see it should know; plain text.
        wide: Keep it wider on a small screen, where it scrolls sideways.

    Returns:
        HTML.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    kind = ' class="wide"' if wide else ""
    size = f"max-width:{100 * figure.get_figwidth():.0f}px"
    return (
        f'<figure{kind}><img style="{size}" src="data:image/png;base64,{data}" '
        f'alt="{escape(alt)}"></figure>'
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Return a table whose first column names the row.

    Args:
        head: Column names, plain text; empty for none.
        rows: Cells, plain text.
        kind: CSS class.

    Returns:
        HTML.
    """
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = "".join(_row(cells) for cells in rows)
    header = f"<thead><tr>{top}</tr></thead>" if head else ""
    name = f' class="{escape(kind)}"' if kind else ""
    return f'<div class="scroll"><table{name}>{header}<tbody>{lines}</tbody></table></div>'


def _row(cells: Sequence[str]) -> str:
    rest = "".join(f"<td>{escape(cell)}</td>" for cell in cells[1:])
    return f'<tr><th scope="row">{escape(cells[0])}</th>{rest}</tr>'


def card(name: str, value: str, error: str, unit: str) -> str:
    """Return one headline figure; plain text, ``error`` a standard error or empty."""
    small = f' <small title="standard error">± {escape(error)} s.e.</small>' if error else ""
    return (
        f'<div class="card"><div class="name">{escape(name)}</div>'
        f'<div class="value">{escape(value)}{small}</div>'
        f'<div class="unit">{escape(unit)}</div></div>'
    )


def bar(name: str, share: float, text: str) -> str:
    """Return a labelled bar that fills ``share`` (0 to 1) of its track."""
    return (
        f'<div class="bar"><span>{escape(name)}</span><span class="track">'
        f'<span class="fill" style="width:{100 * share:.2f}%"></span></span>'
        f"<span>{escape(text)}</span></div>"
    )
