"""Sampled masks beside those of graders: opened, checked and described in one place."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.segmentation import overlap
from ppl_med.analysis.segmentation.summary import case_dataset, describe
from ppl_med.analysis.tree import (
    UNANNOTATED,
    Case,
    ClassList,
    Draws,
    Posterior,
    class_indices,
    class_labels,
    compared_cases,
    count_left_out,
    open_annotations,
    open_draws,
    open_probabilities,
)


@dataclass(frozen=True)
class Comparison:
    """Sampled masks, the graders' masks, and the classes that are scored.

    Args:
        draws: Sampled masks or probabilities.
        graded: Masks of the graders (case, grader, ...), -1 where not annotated.
        classes: Indices of the scored classes.
        attrs: Conventions, repeated in the attributes of the result.
    """

    draws: Draws
    graded: xr.DataArray
    classes: np.ndarray
    attrs: Mapping[str, object]

    def cases(self) -> Iterator[Case]:
        """Yield the masks of every case, on the pixels where they can be compared."""
        return compared_cases(self.draws, self.graded)

    def result(self, figures: Mapping[str, np.ndarray], **attrs: object) -> xr.Dataset:
        """Return figures per case (case,) without unit, their means over cases, and attributes."""
        return self.describe(case_dataset(self.graded, figures, "1"), **attrs)

    def describe(self, result: xr.Dataset, **attrs: object) -> xr.Dataset:
        """Add the conventions, and what was left out, to the attributes of a result."""
        return describe(
            result, **{**count_left_out(self.graded, empty=True), **self.attrs, **attrs}
        )


def open_comparison(
    tree: Posterior,
    annotations: xr.DataArray | None,
    samples: str | None,
    classes: ClassList,
    empty: float | None = None,
    *,
    averaged: bool = False,
    copies: bool = False,
) -> Comparison:
    """Find samples, annotations and classes, and check them, without reading the samples.

    Args:
        tree: The tree of `predict`; or ``probs``, or masks (chain, draw, case, row, col).
        annotations: Graders' masks (case, grader, row, col); None takes those of the tree.
        samples: "mode" or "draw"; None where samples are not compared.
        classes: Indices or names; None for all but class 0.
        empty: Overlap of a class that both masks lack; None where overlaps are not used.
        averaged: Whether the mean over samples is compared, so that ``samples`` may be "probs".
        copies: Keep draws that are copies of others, where each has a weight of its own.

    Raises:
        TypeError, ValueError: Samples, annotations, classes or ``empty`` are missing or malformed.
    """
    attrs: dict[str, object] = {}
    if averaged:
        checks.choice("samples", samples, ("probs", "mode", "draw"))
    if empty is not None:
        attrs["empty"] = overlap.check_empty(empty)
    if samples == "probs":
        draws = open_probabilities(tree)
    else:
        draws = open_draws(tree, samples or "mode", copies=copies)
    if samples is not None:
        attrs |= {"samples": samples, "num_samples": draws.num_samples}
    numbers = class_indices(classes, draws)
    attrs["classes"] = class_labels(numbers, draws)
    return Comparison(draws, open_annotations(tree, annotations, draws), numbers, attrs)


def mean_predictions(
    draws: Draws, classes: np.ndarray, samples: str
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield runs of cases with their mean prediction (case, class, pixel), a probability.

    Args:
        draws: Sampled masks or probabilities.
        classes: Indices of the classes.
        samples: "probs" averages probabilities, else the masks of that name are averaged.
    """
    for block in draws.blocks():
        if samples == "probs":
            yield block, mean_probabilities(draws, block, classes)
        else:
            masks = draws.masks(block)
            yield block, np.stack([(masks == number).mean(1) for number in classes], axis=1)


def mean_probabilities(draws: Draws, block: slice, classes: np.ndarray | None = None) -> np.ndarray:
    """Return the mean over draws of class probabilities (case, class, pixel), float64."""
    number = draws.array.sizes["class"] if classes is None else len(classes)
    chosen = slice(None) if classes is None else classes
    total = np.zeros((block.stop - block.start, number, draws.num_pixels))
    for piece in draws.probabilities(block):
        total += piece[:, chosen]
    return total / draws.num_samples


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
