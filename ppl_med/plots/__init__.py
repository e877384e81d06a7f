"""Figures from Datasets: each function takes named arrays and returns a matplotlib ``Figure``.

Nothing here touches ``matplotlib.pyplot``: no global state, no display, nothing to close.
Save with ``figure.savefig("name.png")``. Colours mean the same in every figure: aleatoric
uncertainty is orange, epistemic uncertainty is blue.
"""
