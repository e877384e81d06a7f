"""Resampling: its arguments, and labels drawn as if the probabilities were right."""

import numpy as np


def draw_labels(probs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a class index (case,) from every row of ``probs`` (case, class)."""
    below = np.cumsum(probs, 1)
    below /= below[:, -1:]
    # A class of probability 0 is never drawn: the uniform lies in [0, 1).
    return (below <= rng.random(len(probs))[:, None]).sum(1)


def check_replicates(replicates: int) -> None:
    """Raise unless ``replicates`` is an integer, 0 or more."""
    if isinstance(replicates, bool) or not isinstance(replicates, int | np.integer):
        raise TypeError(f"replicates must be an integer, not {replicates!r}.")
    if replicates < 0:
        raise ValueError(f"replicates must be 0 or more, not {replicates}.")


def check_level(level: float) -> None:
    """Raise unless ``level`` is a probability inside (0, 1)."""
    if isinstance(level, bool) or not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), not {level!r}.")
