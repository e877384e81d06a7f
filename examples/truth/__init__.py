"""Parts of ``examples/truth.py``: the problems, the guides, the scores and the picture."""
