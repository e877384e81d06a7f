"""Parts of ``examples/brain.py``: the scans, the nets, the leakage, the picture."""
