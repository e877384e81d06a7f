"""Share of draws, and of graders, that put a pixel in a class."""

from collections.abc import Callable, Iterator

import numpy as np

from ppl_med.analysis.posterior import Posterior
from ppl_med.analysis.segmentation.annotations import UNANNOTATED
from ppl_med.analysis.segmentation.draws import Draws, open_draws, open_probabilities

Blocks = Callable[[np.ndarray], Iterator[tuple[slice, np.ndarray]]]


def foreground_blocks(tree: Posterior, samples: str) -> tuple[Draws, Blocks]:
    """Open the mean prediction of every pixel.

    Args:
        tree: The tree of `predict`, its ``probs``, or masks.
        samples: "probs" averages probabilities, "mode" and "draw" the masks of that name.

    Returns:
        The draws, and a function of class indices that yields runs of cases with their mean
        prediction (case, class, pixel), a probability.

    Raises:
        TypeError, ValueError: ``samples`` is unknown, or the tree lacks what it names.
    """
    if samples not in ("probs", "mode", "draw"):
        raise ValueError(f"samples must be 'probs', 'mode' or 'draw', not {samples!r}.")
    if samples == "probs":
        draws = open_probabilities(tree)
        return draws, lambda numbers: _mean_probabilities(draws, numbers)
    draws = open_draws(tree, samples)
    return draws, lambda numbers: _mean_masks(draws, numbers)


def grader_fraction(masks: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of graders per class and pixel, and which pixels all graders annotated.

    Args:
        masks: One case (grader, ...), -1 where not annotated.
        numbers: Indices of the classes.

    Returns:
        Fractions (class, pixel), 0 outside the domain, and the domain (pixel); a grader who
        annotated nothing is left out, and without any grader the domain is empty.
    """
    masks = masks.reshape(len(masks), -1)
    known = masks != UNANNOTATED
    present = known.any(1)
    if not present.any():
        empty = np.zeros(masks.shape[1], bool)
        return np.zeros((len(numbers), masks.shape[1])), empty
    domain = known[present].all(0)
    kept = masks[present]
    fraction = np.stack([(kept == number).mean(0) for number in numbers])
    return fraction * domain, domain


def _mean_probabilities(draws: Draws, numbers: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    for block in draws.blocks():
        total = np.zeros((block.stop - block.start, len(numbers), draws.num_pixels))
        for piece in draws.probabilities(block):
            total += piece[:, numbers]
        yield block, total / draws.num_samples


def _mean_masks(draws: Draws, numbers: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    for block in draws.blocks():
        masks = draws.masks(block)
        yield block, np.stack([(masks == number).mean(1) for number in numbers], axis=1)
