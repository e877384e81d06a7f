"""Files that are whole or not there: results, text and tables, and the folders of runs."""

from ppl_med.storage.atomic import replacing, write_text
from ppl_med.storage.case_columns import with_columns
from ppl_med.storage.chains import join_cases, join_chains
from ppl_med.storage.markdown import markdown_table
from ppl_med.storage.runs import check_same, open_run
from ppl_med.storage.trees import load, save, to_inference_data

concat = join_cases  # the name that users of arrays look for

__all__ = [
    "check_same",
    "concat",
    "join_cases",
    "join_chains",
    "load",
    "markdown_table",
    "open_run",
    "replacing",
    "save",
    "to_inference_data",
    "with_columns",
    "write_text",
]
