"""Sphinx configuration: API reference from the docstrings, tutorials that are executed.

    sphinx-build -W --keep-going .github/docs docs_html

The pages below ``api/`` are written at the start of a build, one for each package: a new module
needs no line in the documentation.
"""

import os
import sys
from pathlib import Path

SOURCE = Path(__file__).parent
ROOT = SOURCE.parents[1]
sys.path[:0] = [str(SOURCE), str(ROOT)]
os.environ.setdefault("TQDM_DISABLE", "1")  # no progress bars in the tutorials
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["PYTHONPATH"] = str(ROOT)  # so that the kernels run this checkout

import api_pages  # noqa: E402
import docstrings  # noqa: E402

import ppl_med  # noqa: E402

project = "ppl_med"
author = "The ppl_med developers"
release = version = ppl_med.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "myst_nb"]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb"}
exclude_patterns = ["_build"]
default_role = "code"

# Annotations hold axis names, which are no types: the docstrings say what is meant.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 2
nb_execution_mode = "force"
nb_execution_timeout = 1200
ON_REAL_DATA = ["monai_volumes", "own_program"]
if "PPL_MED_DATA" not in os.environ:  # shown without results
    nb_execution_excludepatterns = [f"tutorials/{page}.md" for page in ON_REAL_DATA]
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"

html_theme = "furo"
html_title = f"ppl_med {release}"
html_copy_source = False
html_show_sphinx = False

api_pages.write(SOURCE / "api")


def setup(app):
    """Adapt docstrings before napoleon reads them."""
    app.connect("autodoc-process-docstring", docstrings.adapt, priority=400)
