"""Hungarian-matched overlap: how well can samples and graders be paired off one to one?

Both sets are repeated up to the least common multiple of their sizes, matched so that the mean
overlap is largest, and that mean is reported. This is the value of the optimal transport between
the two uniform distributions with cost 1 - overlap, so weighted sets have one too: there the
transport problem is solved exactly. A rectangular matching, which scores only the best m of n
samples and is also found under this name, grows with n to values far above; it is not offered.

Sources: Kuhn, Naval Research Logistics 2, 1955; Kohl et al., arXiv:1905.13077 (the metric).
"""

import math

import numpy as np
import xarray as xr
from scipy import sparse
from scipy.optimize import linear_sum_assignment, linprog

from ppl_med import checks
from ppl_med.analysis.segmentation import overlap as overlaps
from ppl_med.analysis.segmentation.comparison import open_comparison
from ppl_med.analysis.tree import (
    ClassList,
    Posterior,
    Weights,
    grader_distribution,
    sample_distribution,
)

_LARGEST_SQUARE = 2000  # copies per side; beyond it the transport problem is the smaller one


def hungarian(
    tree: Posterior,
    annotations: xr.DataArray | None = None,
    *,
    samples: str = "mode",
    classes: ClassList = None,
    empty: float = 1.0,
    overlap: str = "iou",
    grader_weights: Weights = None,
    sample_weights: Weights = None,
) -> xr.Dataset:
    """Match samples with graders and average the overlap of the pairs.

    Args:
        tree: The tree of `predict`; or ``probs``, or masks (chain, draw, case, row, col).
        annotations: Graders' masks (case, grader, row, col), -1 where not annotated.
        samples: "mode" (argmax of every draw) or "draw" (posterior_predictive/mask).
        classes: Classes whose overlap is averaged; by default all but class 0.
        empty: Overlap of a class that both masks lack: 1, or nan to leave it out of the mean.
        overlap: "iou" or "dice".
        grader_weights: Probabilities of the graders or modes, ([case,] grader).
        sample_weights: Probabilities of the draws, (chain, draw[, case]).

    Returns:
        Dataset with ``iou`` or ``dice`` (case), 0..1, its ``_mean`` and ``_se`` over cases. NaN
        without comparable graders, or where a pair has no overlap (``empty=nan``).

    Raises:
        TypeError, ValueError: Samples, annotations, classes or weights are missing or malformed.
    """
    checks.choice("overlap", overlap, overlaps.PER_CLASS)
    weighted = sample_weights is not None
    pair = open_comparison(tree, annotations, samples, classes, empty, copies=weighted)
    grader_p = grader_distribution(grader_weights, pair.graded)
    sample_p = sample_distribution(sample_weights, pair.draws)
    values = np.full(pair.draws.num_cases, np.nan)
    for index, case in enumerate(pair.cases()):
        if not case.comparable:
            continue
        pairs = overlaps.pairwise(case.samples, case.graders, pair.classes, empty, overlap)
        p = None if sample_p is None else sample_p[index]
        q = None if grader_p is None else grader_p[index][case.present]
        values[index] = matched_mean(pairs, p, q)
    matching = "both sets repeated to the least common multiple of their sizes"
    return pair.result({overlap: values}, matching=matching)


def matched_mean(
    pairs: np.ndarray, p: np.ndarray | None = None, q: np.ndarray | None = None
) -> float:
    """Return the largest mean overlap that a matching of two sets reaches.

    Args:
        pairs: Overlap of every pair (sample, grader).
        p: Weights of the samples; None for equal ones.
        q: Weights of the graders; None for equal ones.

    Returns:
        Mean overlap of the optimal matching (of the optimal transport with weights); NaN if a
        pair of positive weight has none.
    """
    if p is not None or q is not None:
        p = np.full(pairs.shape[0], 1 / pairs.shape[0]) if p is None else p
        q = np.full(pairs.shape[1], 1 / pairs.shape[1]) if q is None else q
        pairs, p, q = pairs[np.ix_(p > 0, q > 0)], p[p > 0], q[q > 0]
        return _transport(pairs, p / p.sum(), q / q.sum())
    if np.isnan(pairs).any():
        return np.nan
    copies = math.lcm(*pairs.shape)
    if copies > _LARGEST_SQUARE:
        rows, columns = pairs.shape
        return _transport(pairs, np.full(rows, 1 / rows), np.full(columns, 1 / columns))
    square = pairs.repeat(copies // pairs.shape[0], 0).repeat(copies // pairs.shape[1], 1)
    return float(square[linear_sum_assignment(square, maximize=True)].mean())


def _transport(pairs: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
    if np.isnan(pairs).any():
        return np.nan
    rows, columns = pairs.shape
    # Variables are the masses of the pairs, row by row; the last marginal follows from the rest.
    leaving = sparse.kron(sparse.eye(rows), np.ones((1, columns)))
    arriving = sparse.kron(np.ones((1, rows)), sparse.eye(columns))
    marginals = sparse.vstack([leaving, arriving]).tocsr()[:-1]
    masses = np.concatenate([p, q])[:-1]
    found = linprog(-pairs.ravel(), A_eq=marginals, b_eq=masses, bounds=(0, None), method="highs")
    if not found.success:
        raise RuntimeError(f"The optimal transport was not found: {found.message}")
    return float(-found.fun)
