"""Files that are whole or not there: results, text and tables, and the folders of runs."""

from ppl_med.storage.atomic import replacing, write_text
from ppl_med.storage.chains import join_cases, join_chains
from ppl_med.storage.markdown import markdown_table
from ppl_med.storage.runs import check_same, open_run
from ppl_med.storage.trees import load, save, to_inference_data

__all__ = [
    "check_same",
    "join_cases",
    "join_chains",
    "load",
    "markdown_table",
    "open_run",
    "replacing",
    "save",
    "to_inference_data",
    "write_text",
]
