"""Draws that are copies of each other: how many functions there are.

An ensemble of point estimates has as many functions as members, however often each is drawn, and a
point estimate has one. Errors, ranks and divisors count functions, not draws. Chains are units:
equal draws of two chains are two functions that agree.
"""

import numpy as np


def num_copies(kind: np.ndarray) -> int:
    """Return how often every function of a chain was drawn.

    Args:
        kind: Equal numbers for equal draws (chain, draw).

    Returns:
        r, where every function stands r times in its chain; else 1. Draws of a discrete
        distribution agree by chance, some more often than others: they are independent all the
        same.
    """
    counts = [np.unique(chain, return_counts=True)[1] for chain in kind]
    often = int(counts[0][0])
    return often if all((count == often).all() for count in counts) else 1
