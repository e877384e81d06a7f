"""Are two classes, or two data sets, told apart by the outline of the foreground alone?

A check before any network is trained or trusted. A logistic regression sees the binarised masks,
no intensity, and is tested on patients that it was not fitted on. Where its AUROC is clearly above
1/2, a network can do the same, whatever it is thought to look at: normalise the shapes
(``normalize_shape``) or ask the network (``swap_test`` with ``swap_shape``).

It is a lower bound: a linear model that finds nothing does not prove that a network finds nothing.

References: Sdika, "Uncertainties and explainability" (lecture): IXI told from BraTS and HCP by the
brain mask; Tinauer et al., arXiv 2025 (binarised brains of ADNI); Hanley and McNeil, Radiology 143,
1982 (variance of the AUROC); Newcombe, Statistics in Medicine 25, 2006 (its score interval, which
has a width at an AUROC of 1 too).
"""

from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from torch import Tensor
from torch.nn import functional

from ppl_med.analysis.statistics.ranking import auroc, rank
from ppl_med.checks import choice, inside, present, whole
from ppl_med.explain.confounding.shape import as_foregrounds, check_one_spacing

Features = Literal["mask", "descriptors"]
CELLS = 8  # along each axis, to which masks are averaged
REACH = 3.0  # root mean square of a case's distance from the mean, where the weights are N(0, 1)


def outline_auroc(
    mask: NDArray[Any],
    label: ArrayLike,
    *,
    patient: ArrayLike | None = None,
    spacing: ArrayLike | None = None,
    features: Features = "mask",
    folds: int = 5,
    permutations: int = 99,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """AUROC at which a linear model tells two classes from binarised masks, by cross-validation.

    Args:
        mask: Foregrounds, (case, [depth,] row, col), bool or 0 and 1; holes are allowed.
        label: Class or data set of each, two different values, such as names.
        patient: Patient of each, who is never in training and test; None means all differ.
        spacing: mm along each axis of every case (case, axis), which must be one for all.
        features: "mask" averages the mask over 8 cells along each axis, "descriptors" takes its
            volume, middle, sides and second moments, which serve turned outlines too.
        folds: Number of folds, 2 or more.
        permutations: How often labels are drawn anew among patients, for the p-value.
        level: Level of the interval.
        seed: Seed of folds and permutations.

    Returns:
        ``auroc`` of the second label in sorted order against the first, with ``auroc_lower`` and
        ``auroc_upper``: score interval by Hanley and McNeil's variance, in which the scans of a
        patient count as one. It says how large the AUROC is, of models fitted on this many cases.
        Whether there is any is what ``p_value`` says, of permuted labels, NaN without: as the folds
        share their cases, the AUROC of outlines that tell nothing varies more than the interval
        knows (of 30 and 30, 8 in 100 intervals of 95 % miss 1/2). ``sensitivity``, ``specificity``
        and ``balanced_accuracy`` at even odds. ``score`` (case), log-odds in nats of the model that
        has not seen the patient, with classes weighted equally, and ``fold`` (case). Attributes:
        ``classes``, ``num_patients``.

    Raises:
        ValueError: If a mask is empty, spacings differ, there are not two labels with as many
            patients each as folds, or an argument does not fit.
    """
    choice("features", features, get_args(Features))
    inside("level", level)
    whole("folds", folds, 2)
    whole("permutations", permutations, 0)
    whole("seed", seed, 0)
    masks = as_foregrounds("mask", mask)
    if spacing is not None:
        check_one_spacing(spacing, masks)
    names, truth = np.unique(_per_case("label", label, masks), return_inverse=True)
    if len(names) != 2:
        raise ValueError(f"label has {len(names)} different value(s); this tells two apart")
    everyone = np.arange(len(masks)) if patient is None else _per_case("patient", patient, masks)
    group = np.unique(everyone, return_inverse=True)[1]
    counts = [len(np.unique(group[truth == one])) for one in (0, 1)]
    if min(counts) < folds:
        raise ValueError(
            f"label has {counts[0]} and {counts[1]} patients of its two values; {folds} folds need "
            "as many of each"
        )
    values = _in_cells(masks) if features == "mask" else _descriptors(masks)
    score, fold = _out_of_fold(values, truth, group, folds, seed)
    value = _auroc(score, truth)
    low, high = _score_interval(value, counts[1], counts[0], level)
    random, above = np.random.default_rng(seed), 0
    for _ in range(permutations):
        drawn = _permuted(truth, group, random)
        above += _auroc(_out_of_fold(values, drawn, group, folds, seed)[0], drawn) >= value
    rates = {
        "sensitivity": (score[truth == 1] > 0).mean(),
        "specificity": (score[truth == 0] <= 0).mean(),
    }
    rates["balanced_accuracy"] = (rates["sensitivity"] + rates["specificity"]) / 2
    rates["p_value"] = (1 + above) / (1 + permutations) if permutations else np.nan
    result = xr.Dataset(
        {
            "auroc": value,
            "auroc_lower": low,
            "auroc_upper": high,
            **rates,
            "score": ("case", score, {"units": "nats"}),
            "fold": ("case", fold),
        },
        attrs={
            "classes": [str(name) for name in names],
            "features": features,
            "level": level,
            "num_patients": len(np.unique(group)),
        },
    )
    for name in ("auroc", "auroc_lower", "auroc_upper", *rates):
        result[name].attrs["units"] = "1"
    return result


def _per_case(name: str, values: ArrayLike, masks: NDArray[Any]) -> NDArray[Any]:
    array = np.asarray(present(name, np.asarray(values)))
    if array.shape != masks.shape[:1]:
        raise ValueError(f"{name} has shape {array.shape}; give one for each of {len(masks)} masks")
    return array


def _in_cells(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of every cell that is foreground, (case, cell)."""
    sizes: Any = tuple(min(CELLS, size) for size in masks.shape[1:])
    pool: Any = (
        functional.adaptive_avg_pool2d if masks.ndim == 3 else functional.adaptive_avg_pool3d
    )
    cells: Tensor = pool(torch.from_numpy(masks.astype(np.float32))[:, None], sizes)
    return cells.flatten(1).double().numpy()


def _descriptors(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Log volume, middle, log sides and second moments, (case, descriptor), each of sd 1."""
    rows = []
    for one in masks:
        where = np.argwhere(one).astype(float)
        # 1/12 is a pixel's own variance, so that a plate of one pixel has a thickness.
        moments = np.cov(where.T, bias=True) + np.eye(one.ndim) / 12
        spread = np.sqrt(np.diag(moments))
        between = (moments / np.outer(spread, spread))[np.triu_indices(one.ndim, 1)]
        sides = np.log(np.ptp(where, axis=0) + 1)
        rows.append([np.log(len(where)), *where.mean(0), *sides, *np.log(spread), *between])
    values = np.array(rows)
    deviation = values.std(0)
    return values / np.where(deviation > 1e-9, deviation, 1.0)


def _out_of_fold(
    values: NDArray[np.float64],
    truth: NDArray[np.int64],
    group: NDArray[np.int64],
    folds: int,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Log-odds of every case by a model of the other folds, and its fold, both (case,)."""
    score, fold = np.zeros(len(values)), np.empty(len(values), np.int64)
    alone = len(np.unique(group)) == len(group)
    kind: Any = StratifiedKFold if alone else StratifiedGroupKFold  # by far the faster of the two
    parts = kind(folds, shuffle=True, random_state=seed)
    rows = parts.split(values, truth) if alone else parts.split(values, truth, group)
    for number, (train, test) in enumerate(rows):
        fold[test] = number
        loc, spread = values[train].mean(0), values[train].std(0)
        if spread.max() < 1e-9:  # all outlines are the same
            continue
        model = LogisticRegression(class_weight="balanced", max_iter=2000)
        scale = np.linalg.norm(spread) / REACH
        model.fit((values[train] - loc) / scale, truth[train])
        score[test] = model.decision_function((values[test] - loc) / scale)
    return score, fold


def _permuted(
    truth: NDArray[np.int64], group: NDArray[np.int64], random: np.random.Generator
) -> NDArray[np.int64]:
    """Labels drawn anew: among patients that have one, and among the scans of one that has both."""
    drawn = truth.copy()
    share = np.bincount(group, truth) / np.bincount(group)
    single = np.flatnonzero((share == 0) | (share == 1))
    share[single] = random.permutation(share[single])
    for patient, label in enumerate(share):
        own = group == patient
        drawn[own] = label if label in (0, 1) else random.permutation(truth[own])
    return drawn


def _auroc(score: NDArray[np.float64], truth: NDArray[np.int64]) -> float:
    return auroc(*rank(score, truth == 1, np.zeros(len(truth), np.int64)).counts())


def _score_interval(
    value: float, positives: int, negatives: int, level: float
) -> tuple[float, float]:
    """All AUROCs θ with |value - θ| ≤ z · sd(θ), where sd is that of Hanley and McNeil."""
    z = float(norm.ppf((1 + level) / 2))

    def variance(theta: float) -> float:
        above, below = theta / (2 - theta), 2 * theta**2 / (1 + theta)
        return (
            theta * (1 - theta)
            + (positives - 1) * (above - theta**2)
            + (negatives - 1) * (below - theta**2)
        ) / (positives * negatives)

    def excess(theta: float) -> float:
        return float((value - theta) ** 2 - z**2 * variance(theta))

    near = 1e-9  # at 0 and 1 the AUROC itself solves the equation too
    low = 0.0 if value <= near else float(brentq(excess, 0.0, value - near))
    high = 1.0 if value >= 1 - near else float(brentq(excess, value + near, 1.0))
    return low, high
