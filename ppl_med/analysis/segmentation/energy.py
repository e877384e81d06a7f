"""Generalised energy distance: are samples distributed as graders' masks?

With S, S' sampled masks, Y, Y' graders' masks and d = 1 - IoU,

    GED^2 = 2 E d(S, Y) - E d(S, S') - E d(Y, Y')

    biased    expectations over all pairs, a mask with itself included (V-statistic): what papers
              print. Never negative, and above zero even for a perfect model.
    unbiased  pairs of different masks only (U-statistic): mean 0 for a perfect model, and so
              negative for about half of the cases.
    floor     the mean of `biased` for a perfect model. With n samples, m graders and D the mean
              distance of two independent masks, E = D (1/m + 1/n); D is estimated from the
              pairs of different graders.

Weights make a side an exact distribution in the place of a finite sample of it (the 32 modes of a
label-switching generator with their probabilities): that side has no bias, its term drops out
of the floor (D / n with exact graders), and pairs of a mask with itself belong to it.

Sources: Székely and Rizzo, Journal of Statistical Planning and Inference 143, 2013; Kohl et al.,
NeurIPS 2018, arXiv:1806.05034 (GED with 1 - IoU).
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.segmentation import overlap
from ppl_med.analysis.segmentation.comparison import open_comparison
from ppl_med.analysis.segmentation.summary import case_dataset, describe
from ppl_med.analysis.tree import (
    Case,
    ClassList,
    Posterior,
    Weights,
    class_indices,
    class_labels,
    grader_distribution,
    open_draws,
    sample_distribution,
)

_FIGURES = (
    "biased", "unbiased", "floor", "sample_grader", "sample_sample", "grader_grader",
    "sample_sample_unbiased", "grader_grader_unbiased",
)  # fmt: skip
_DISTANCE = "1 - IoU, mean over classes"
_UNDEFINED = (
    "a case without comparable graders has no figure; a case with one grader has no pair of "
    "different graders, so neither an unbiased figure nor a floor (unless weights make the graders "
    "exact); one sample likewise has no unbiased figure; with empty=nan a pair of masks without "
    "any class has no distance, and its case no figure"
)


def ged(
    tree: Posterior,
    annotations: xr.DataArray | None = None,
    *,
    samples: str = "mode",
    classes: ClassList = None,
    empty: float = 1.0,
    grader_weights: Weights = None,
    sample_weights: Weights = None,
) -> xr.Dataset:
    """Measure the squared generalised energy distance between samples and graders.

    Args:
        tree: The tree of `predict`; or ``probs``, or masks (chain, draw, case, row, col).
        annotations: Graders' masks (case, grader, row, col), -1 where not annotated; by default
            observed_data/mask of the tree.
        samples: "mode" (argmax of every draw) or "draw" (posterior_predictive/mask).
        classes: Classes whose IoU is averaged, indices or names; by default all but class 0.
        empty: IoU of a class that both masks lack: 1, or nan to leave it out of the mean.
        grader_weights: Probabilities of the graders or modes, ([case,] grader): their exact
            distribution.
        sample_weights: Probabilities of the draws, (chain, draw[, case]): their exact distribution.

    Returns:
        Dataset over case, without unit: ``biased``, ``unbiased``, ``floor``; the expectations
        ``sample_grader``, ``sample_sample``, ``grader_grader`` (all pairs) and
        ``sample_sample_unbiased``, ``grader_grader_unbiased`` (different masks);
        ``num_graders``. For each but the last ``<name>_mean`` and ``<name>_se`` over cases. NaN
        where a case does not define a figure; attribute ``undefined`` says why.

    Raises:
        TypeError, ValueError: Samples, annotations, classes or weights are missing or malformed.
    """
    weighted = sample_weights is not None
    pair = open_comparison(tree, annotations, samples, classes, empty, copies=weighted)
    grader_p = grader_distribution(grader_weights, pair.graded)
    sample_p = sample_distribution(sample_weights, pair.draws)
    rows, num_graders, functions = [], [], pair.draws.functions
    for index, case in enumerate(pair.cases()):
        p = None if sample_p is None else sample_p[index]
        q = None if grader_p is None else grader_p[index][case.present]
        rows.append(_energy(case, pair.classes, empty, p, q, functions))
        num_graders.append(len(case.graders))
    figures = dict(zip(_FIGURES, np.array(rows).T, strict=True))
    result = pair.result(figures, distance=_DISTANCE, undefined=_UNDEFINED)
    result["num_graders"] = ("case", np.array(num_graders), {"units": "1"})
    return result


def diversity(
    tree: Posterior,
    *,
    samples: str = "mode",
    classes: ClassList = None,
    empty: float = 1.0,
    sample_weights: Weights = None,
) -> xr.Dataset:
    """Measure how much the sampled masks of a case differ: E d(S, S') with d = 1 - IoU.

    Args:
        tree: As for `ged`; no annotations are needed, and all pixels count.
        samples: "mode" or "draw".
        classes: Classes whose IoU is averaged; by default all but class 0.
        empty: IoU of a class that both masks lack: 1, or nan to leave it out.
        sample_weights: Probabilities of the draws, (chain, draw[, case]).

    Returns:
        Dataset over case, without unit: ``biased`` (all pairs, as published), ``unbiased``
        (different samples; NaN for a single one), each with ``_mean`` and ``_se`` over cases.

    Raises:
        TypeError, ValueError: Samples, classes or weights are missing or malformed.
    """
    overlap.check_empty(empty)
    draws = open_draws(tree, samples, copies=sample_weights is not None)
    numbers = class_indices(classes, draws)
    weights = sample_distribution(sample_weights, draws)
    rows = []
    for index, masks in enumerate(draws.samples()):
        distance = 1 - overlap.pairwise(masks, masks, numbers, empty)
        weight = None if weights is None else weights[index]
        rows.append(_within(distance, weight, draws.functions)[:2])
    figures = dict(zip(("biased", "unbiased"), np.array(rows).T, strict=True))
    return describe(
        case_dataset(draws.array, figures, "1"),
        distance=_DISTANCE,
        classes=class_labels(numbers, draws),
        empty=float(empty),
        samples=samples,
        num_samples=draws.num_samples,
    )


def _energy(
    case: Case,
    classes: np.ndarray,
    empty: float,
    p: np.ndarray | None,
    q: np.ndarray | None,
    functions: np.ndarray,
) -> tuple[float, ...]:
    if not case.comparable:
        return (np.nan,) * len(_FIGURES)
    num_samples = len(case.samples)
    masks = np.concatenate([case.samples, case.graders])
    distance = 1 - overlap.pairwise(masks, masks, classes, empty)
    between = distance[:num_samples, num_samples:]
    cross = _weighted(between, _uniform(p, num_samples), _uniform(q, len(case.graders)))
    own, own_u, _, own_share = _within(distance[:num_samples, :num_samples], p, functions)
    grader, grader_u, itself, grader_share = _within(distance[num_samples:, num_samples:], q)
    floor = (grader_u - itself) * (own_share + grader_share)
    biased, unbiased = 2 * cross - own - grader, 2 * cross - own_u - grader_u
    return biased, unbiased, floor, cross, own, grader, own_u, grader_u


def _within(
    distance: np.ndarray, weights: np.ndarray | None, functions: np.ndarray | None = None
) -> tuple[float, float, float, float]:
    """All pairs, different pairs, a mask with itself, and the share of the latter by chance.

    Different pairs are those that share no weights, where ``functions`` says so and they do not all
    share them.
    """
    number = len(distance)
    weight = _uniform(weights, number)
    itself = float(np.diagonal(distance)[weight > 0] @ weight[weight > 0])
    if weights is not None:
        exact = _weighted(distance, weights, weights)
        return exact, exact, itself, 0.0
    biased = float(distance.mean())
    different = np.nan
    if functions is not None and len(np.unique(functions)) not in (1, number):
        different = float(distance[functions[:, None] != functions].mean())
    elif number > 1:
        different = float((distance.sum() - np.trace(distance)) / (number * (number - 1)))
    return biased, different, itself, 1 / number


def _weighted(distance: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
    # A mask of weight 0 is not part of the distribution: its undefined distances must not count.
    return float(p[p > 0] @ distance[np.ix_(p > 0, q > 0)] @ q[q > 0])


def _uniform(weights: np.ndarray | None, number: int) -> np.ndarray:
    return np.full(number, 1 / number) if weights is None else weights
