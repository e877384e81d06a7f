"""Resampling: labels drawn as if the probabilities were right."""

import numpy as np


def draw_labels(probs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a class index (case,) from every row of ``probs`` (case, class)."""
    below = np.cumsum(probs, 1)
    below /= below[:, -1:]
    # A class of probability 0 is never drawn: the uniform lies in [0, 1).
    return (below <= rng.random(len(probs))[:, None]).sum(1)
