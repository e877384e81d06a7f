"""One HTML file that shows a posterior, and the pieces that further sections are made of.

report_tree   the report on any tree, computed and written
write_report  a report of what was computed before
Section       one part of the page, given to ``write_report(sections=...)``
paragraph     plain text as HTML
picture       a figure as HTML
table         a table as HTML
data_table    a table of numbers, which can be saved as CSV
"""

from ppl_med.moved import renamed
from ppl_med.plots.report.page import Section, data_table, paragraph, picture, table
from ppl_med.plots.report.tree_report import report_tree
from ppl_med.plots.report.writer import write_report

__all__ = [
    "Section",
    "data_table",
    "paragraph",
    "picture",
    "report_tree",
    "table",
    "write_report",
]

__getattr__ = renamed(__name__, {"report": "write_report"})
