"""One HTML file that shows a posterior, and the pieces that further sections are made of.

write_report  the whole report
Section       one part of the page, given to ``write_report(sections=...)``
paragraph     plain text as HTML
picture       a figure as HTML
table         a table as HTML
"""

from ppl_med.moved import renamed
from ppl_med.plots.report.page import Section, paragraph, picture, table
from ppl_med.plots.report.writer import write_report

__all__ = ["Section", "paragraph", "picture", "table", "write_report"]

__getattr__ = renamed(__name__, {"report": "write_report"})
