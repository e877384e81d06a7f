"""Collective insight: sensitivity of the union, best matches and agreement in diversity.

    sensitivity S  share of the union of the graders' masks inside the union of the samples
    d_max       D  mean over graders of the Dice of the best sample
    agreement   A  1 - (|min V_Y - min V_S| + |max V_Y - max V_S|) / 2, with V the variance over
                   pixels of the difference of two masks, for all pairs of different graders (Y)
                   and of different samples (S)
    released    3 S D A / (S + D + A), as in the formula of the paper: not a harmonic mean
                   (0.9, 0.9, 0.9 gives 0.81)
    harmonic    3 / (1/S + 1/D + 1/A), what its name promises

Read it with care. V scales with the share of the image that is foreground, so A is close to 1 for
small lesions whatever the samples; S and D only grow with larger masks and with more samples.

Source: Rahman et al., Ambiguous Medical Image Segmentation Using Diffusion Models, CVPR 2023,
arXiv:2304.04745.
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.segmentation import overlap
from ppl_med.analysis.segmentation.comparison import open_comparison
from ppl_med.analysis.tree import Case, ClassList, Posterior

_FIGURES = ("released", "harmonic", "sensitivity", "d_max", "agreement")


def collective_insight(
    tree: Posterior,
    annotations: xr.DataArray | None = None,
    *,
    samples: str = "mode",
    classes: ClassList = None,
    empty: float = 1.0,
) -> xr.Dataset:
    """Score samples by the collective insight of Rahman et al. and its three parts.

    Args:
        tree: The tree of `predict`; or ``probs``, or masks (chain, draw, case, row, col).
        annotations: Graders' masks (case, grader, row, col), -1 where not annotated.
        samples: "mode" (argmax of every draw) or "draw" (posterior_predictive/mask).
        classes: Classes to score, each as a binary mask; the parts are averaged over them.
        empty: Sensitivity and Dice of a class that both sides lack: 1, or nan to leave it out. A
            class that only the samples have counts 0 (the published formula divides by zero).

    Returns:
        Dataset over case, 0..1: ``released``, ``harmonic``, ``sensitivity``, ``d_max``,
        ``agreement``, each with ``_mean`` and ``_se`` over cases. ``agreement`` and both scores
        are NaN where a case has one grader, or with a single sample: there is no pair.

    Raises:
        TypeError, ValueError: Samples, annotations or classes are missing or malformed.
    """
    pair = open_comparison(tree, annotations, samples, classes, empty)
    rows = [_insight(case, pair.classes, empty) for case in pair.cases()]
    figures = dict(zip(_FIGURES, np.array(rows).T, strict=True))
    return pair.result(figures, undefined="agreement needs two graders and two samples")


def _insight(case: Case, classes: np.ndarray, empty: float) -> tuple[float, ...]:
    if not case.comparable:
        return (np.nan,) * len(_FIGURES)
    masks = np.concatenate([case.samples, case.graders])
    counts, number = overlap.count(masks, masks, classes), len(case.samples)
    cross = overlap.Counts(
        counts.both[:, :number, number:], counts.first[:, :number], counts.first[:, number:]
    )
    pairs = overlap.known_mean(overlap.dice_per_class(cross, empty))
    best = float(pairs.max(0).mean())
    found = _sensitivity(case, classes, empty)
    spread = _difference_variance(counts, case.samples.shape[1])
    agreement = _agreement(spread[:, :number, :number], spread[:, number:, number:])
    parts = np.array([found, best, agreement])
    total = float(parts.sum())
    released = 3 * float(parts.prod()) / total if total != 0 else 0.0
    harmonic = 0.0
    if np.isnan(parts).any():
        harmonic = np.nan
    elif (parts > 0).all():
        harmonic = 3 / float((1 / parts).sum())
    return released, harmonic, found, best, agreement


def _sensitivity(case: Case, classes: np.ndarray, empty: float) -> float:
    values = np.empty(len(classes))
    for index, number in enumerate(classes):
        wanted = (case.graders == number).any(0)
        given = (case.samples == number).any(0)
        if wanted.any():
            values[index] = (wanted & given).sum() / wanted.sum()
        else:
            values[index] = 0.0 if given.any() else empty
    return float(overlap.known_mean(values))


def _difference_variance(counts: overlap.Counts, num_pixels: int) -> np.ndarray:
    # a - b is 1, 0 or -1, so its mean square is the share of pixels where the masks differ.
    left, right = counts.first[:, :, None], counts.second[:, None, :]
    square = (left + right - 2 * counts.both) / num_pixels
    return square - ((left - right) / num_pixels) ** 2


def _agreement(samples: np.ndarray, graders: np.ndarray) -> float:
    if samples.shape[1] < 2 or graders.shape[1] < 2:
        return np.nan
    gap = np.zeros(len(samples))
    for extreme in (np.min, np.max):
        gap += np.abs(extreme(_pairs(samples), axis=1) - extreme(_pairs(graders), axis=1))
    return float((1 - gap / 2).mean())


def _pairs(matrix: np.ndarray) -> np.ndarray:
    rows, columns = np.triu_indices(matrix.shape[1], k=1)
    return matrix[:, rows, columns]
