"""Overlap of samples with graders: best matches, reconstructions, thresholded mean masks.

    dice_max   mean over samples of the Dice of the best grader: are samples plausible?
    d_max      mean over graders of the Dice of the best sample: is every grader found? It can
               only grow with the number of samples.
    oracle_iou IoU of a grader's mask with its own reconstruction through the posterior code: the
               ceiling that the latent code sets.
    soft_dice  Dice of the mean prediction and the mean annotation, both cut at the same levels:
               pixel by pixel, blind to whether samples are coherent.

Overlap is per class and averaged over classes before the best match is chosen.

Sources: Wu et al., D-Persona, CVPR 2024 (Dice_max, its reverse, Dice_soft); Rahman et al.,
arXiv:2304.04745 (D_max); Kohl et al., arXiv:1905.13077 (reconstruction IoU).
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.segmentation import overlap
from ppl_med.analysis.segmentation.comparison import (
    grader_fraction,
    mean_predictions,
    open_comparison,
)
from ppl_med.analysis.segmentation.summary import case_dataset
from ppl_med.analysis.tree import UNANNOTATED, ClassList, Posterior, open_annotations

_THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


def dice_max(
    tree: Posterior,
    annotations: xr.DataArray | None = None,
    *,
    samples: str = "mode",
    classes: ClassList = None,
    empty: float = 1.0,
) -> xr.Dataset:
    """Average, over samples, the Dice coefficient with the best matching grader.

    Args:
        tree: The tree of `predict`; or ``probs``, or masks (chain, draw, case, row, col).
        annotations: Graders' masks (case, grader, row, col), -1 where not annotated.
        samples: "mode" (argmax of every draw) or "draw" (posterior_predictive/mask).
        classes: Classes whose Dice is averaged; by default all but class 0.
        empty: Dice of a class that both masks lack: 1, or nan to leave it out of the mean.

    Returns:
        Dataset with ``dice_max`` (case), 0..1, and ``dice_max_mean``, ``dice_max_se``.

    Raises:
        TypeError, ValueError: Samples, annotations or classes are missing or malformed.
    """
    return _best("dice_max", 1, tree, annotations, samples, classes, empty)


def d_max(
    tree: Posterior,
    annotations: xr.DataArray | None = None,
    *,
    samples: str = "mode",
    classes: ClassList = None,
    empty: float = 1.0,
) -> xr.Dataset:
    """Average, over graders, the Dice coefficient with the best matching sample.

    Args:
        tree: As for `dice_max`, like all other arguments.
        annotations: Graders' masks (case, grader, row, col).
        samples: "mode" or "draw".
        classes: Classes whose Dice is averaged.
        empty: Dice of a class that both masks lack.

    Returns:
        Dataset with ``d_max`` (case), 0..1, and ``d_max_mean``, ``d_max_se``.

    Raises:
        TypeError, ValueError: As for `dice_max`.
    """
    return _best("d_max", 0, tree, annotations, samples, classes, empty)


def oracle_iou(
    tree: Posterior,
    reconstruction: xr.DataArray,
    annotations: xr.DataArray | None = None,
    *,
    classes: ClassList = None,
    empty: float = 1.0,
) -> xr.Dataset:
    """Compare every grader's mask with its reconstruction from the posterior mean.

    Args:
        tree: The tree of `predict`, for the classes and the annotations.
        reconstruction: Masks (case, grader, row, col) decoded from the code that the guide
            proposes for that grader's mask.
        annotations: Graders' masks (case, grader, row, col), -1 where not annotated; only
            annotated pixels count, grader by grader.
        classes: Classes whose IoU is averaged; by default all but class 0.
        empty: IoU of a class that both masks lack: 1, or nan to leave it out of the mean.

    Returns:
        Dataset with ``iou`` (case), the mean over graders, its ``_mean`` and ``_se``, and
        ``iou_per_grader`` (case, grader), NaN where the grader is absent.

    Raises:
        TypeError, ValueError: An array is missing or malformed, or sizes differ.
    """
    pair = open_comparison(tree, annotations, None, classes, empty)
    graded = pair.graded
    rebuilt = open_annotations(tree, reconstruction, pair.draws, "reconstruction")
    if rebuilt.sizes["grader"] != graded.sizes["grader"]:
        raise ValueError(
            f"reconstruction holds {rebuilt.sizes['grader']} grader(s), the annotations "
            f"{graded.sizes['grader']}; reconstruct the mask of every grader."
        )
    values = np.full((graded.sizes["case"], graded.sizes["grader"]), np.nan)
    for case in range(graded.sizes["case"]):
        truth = graded.isel(case=case).values.reshape(values.shape[1], -1)
        masks = rebuilt.isel(case=case).values.reshape(values.shape[1], -1)
        for grader, known in enumerate(truth != UNANNOTATED):
            if known.any():
                given = masks[[grader]][:, known], truth[[grader]][:, known]
                values[case, grader] = overlap.pairwise(*given, pair.classes, empty)[0, 0]
    result = pair.result({"iou": overlap.known_mean(values.T)})
    result["iou_per_grader"] = (("case", "grader"), values, {"units": "1"})
    return result


def soft_dice(
    tree: Posterior,
    annotations: xr.DataArray | None = None,
    *,
    thresholds: Sequence[float] = _THRESHOLDS,
    samples: str = "probs",
    classes: ClassList = None,
    empty: float = 1.0,
) -> xr.Dataset:
    """Compare the mean prediction with the mean annotation, both cut at several levels.

    Args:
        tree: The tree of `predict`; or ``probs``, or masks (chain, draw, case, row, col).
        annotations: Graders' masks (case, grader, row, col), -1 where not annotated.
        thresholds: Levels in [0, 1); a pixel is in where its mean is above, not at, the level.
        samples: What is averaged over draws: "probs", or the masks "mode" or "draw".
        classes: Classes whose Dice is averaged; by default all but class 0.
        empty: Dice of a class that both masks lack: 1, or nan to leave it out of the mean.

    Returns:
        Dataset with ``dice`` (case, threshold), 0..1, and ``dice_over_thresholds`` (case), the
        score of the QUBIQ challenge and of D-Persona, each with ``_mean`` and ``_se``.

    Raises:
        TypeError, ValueError: Samples, annotations, classes or thresholds are malformed.
    """
    levels = np.array(thresholds, dtype=np.float64)
    if levels.ndim != 1 or not levels.size or not ((levels >= 0) & (levels < 1)).all():
        checks.reject("thresholds", "a list of levels in [0, 1)", thresholds)
    pair = open_comparison(tree, annotations, samples, classes, empty, averaged=True)
    values = np.full((pair.draws.num_cases, len(levels)), np.nan)
    for block, means in mean_predictions(pair.draws, pair.classes, samples):
        masks = pair.graded.isel(case=block).values
        for offset, mean in enumerate(means):
            truth, domain = grader_fraction(masks[offset], pair.classes)
            values[block.start + offset] = _dice_at(
                mean[:, domain], truth[:, domain], levels, empty
            )
    axis = {"threshold": levels}
    result = case_dataset(pair.graded, {"dice": values}, "1", dims=("threshold",), coords=axis)
    total = case_dataset(pair.graded, {"dice_over_thresholds": values.mean(1)}, "1")
    return pair.describe(result.assign(total.data_vars))


def _best(
    name: str,
    axis: int,
    tree: Posterior,
    annotations: xr.DataArray | None,
    samples: str,
    classes: ClassList,
    empty: float,
) -> xr.Dataset:
    pair = open_comparison(tree, annotations, samples, classes, empty)
    values = np.full(pair.draws.num_cases, np.nan)
    for index, case in enumerate(pair.cases()):
        if case.comparable:
            pairs = overlap.pairwise(case.samples, case.graders, pair.classes, empty, "dice")
            values[index] = pairs.max(axis).mean()
    return pair.result({name: values})


def _dice_at(mean: np.ndarray, truth: np.ndarray, levels: np.ndarray, empty: float) -> np.ndarray:
    if not mean.size:
        return np.full(len(levels), np.nan)
    result = np.empty(len(levels))
    for index, level in enumerate(levels):
        left, right = mean > level, truth > level
        both, total = (left & right).sum(1), left.sum(1) + right.sum(1)
        dice = np.divide(2 * both, total, out=np.full(len(total), float(empty)), where=total > 0)
        result[index] = overlap.known_mean(dice)
    return result
