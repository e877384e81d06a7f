"""What an uncertainty is good for: the error of what is kept, as the most uncertain is left out.

    risk          mean error of the share (coverage) with the lowest uncertainty
    aurc          mean of the risk over the coverages 1/N, 2/N, .. 1                Geifman
    excess_aurc   aurc less that of the oracle, which orders by the error itself    Geifman
    augrc         area under risk times coverage: the error of all that is kept,
                  per case asked; by the trapezoid rule                             Traub
    ause          area between the sparsification curve, the mean error of what
                  remains once a share is removed, and the oracle's                 Ilg

The sparsification curve is the risk read from the other end, so for a mean error ``ause`` is
``excess_aurc``; ``ause_relative`` divides by the error of all, so that the curve starts at 1.
For an error of 0 or 1, augrc = (1 - a) a (1 - AUROC) + (1 - a)^2 / 2 with accuracy a.

Ties: entries of equal uncertainty come in random order, and the figures are expectations over it.
So an uncertainty that is the same everywhere has the risk of all at every coverage.

Pixels of all cases are one population; the standard errors resample cases (see `.replicates`).

Sources: Geifman and El-Yaniv, NeurIPS 2017, arXiv:1705.08500; Geifman, Uziel and El-Yaniv, ICLR
2019, arXiv:1805.08206 (excess); Traub et al., NeurIPS 2024, arXiv:2407.01032 (AUGRC); Ilg et al.,
ECCV 2018, arXiv:1802.07095 (sparsification); Poggi et al., CVPR 2020, arXiv:2005.06209 (random
gain); Kendall and Gal, NeurIPS 2017, arXiv:1703.04977, figure 2 (precision and recall).
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.selective.entries import Chosen, open_source
from ppl_med.analysis.selective.gathering import Figures, Grid, Orders, dataset, gather, shares
from ppl_med.analysis.selective.levels import (
    average_precision,
    kept_at_recall,
    kept_error,
    mean_generalised_risk,
    mean_risk,
    size,
)
from ppl_med.analysis.tree import Posterior

GRID = tuple(np.arange(1, 101) / 100)
REMOVED = tuple(np.arange(100) / 100)


def risk_coverage(
    tree: Posterior | None,
    score: Chosen,
    error: Chosen | None = None,
    *,
    coverage: Grid = GRID,
    site: str | None = None,
    ignore: int | None = None,
    mantissa_bits: int | None = None,
    replicates: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """Risk of the cases, or pixels, that are kept, against their share.

    Args:
        tree: The tree of `predict` on cases with observations; lazy ones are read in parts. None
            where score and error are arrays.
        score: Uncertainty: a name of `ppl_med.analysis.selective.entries`, or an array (case, ...).
        error: Name, or array (case, ...) with NaN for what to leave out; by default zero_one for
            classes, absolute for numbers.
        coverage: Shares kept at which the curve is given, in (0, 1].
        site: Name of the observed numbers, where the tree holds several.
        ignore: Observed value, beside -1, that says that an entry has no class.
        mantissa_bits: Round scores, and errors for the oracle, to so many bits (11 is a relative
            error of 2^-12), for which memory does not grow with the number of pixels. None is
            exact.
        replicates: Number of bootstrap data sets; 0 leaves standard errors out.
        seed: Seed of the resampling.

    Returns:
        Dataset over coverage: ``risk``, ``generalised_risk`` (risk times coverage) and
        ``risk_oracle``; scalars ``aurc``, ``aurc_oracle``, ``excess_aurc``, ``augrc``,
        ``augrc_oracle``, ``error_mean`` of all; each with ``_se`` over cases (NaN for one case);
        in the unit of the error. ``largest_tie`` is the share of entries in the largest group of
        equal scores: near 1, the order is mostly chance. Attributes count entries and cases, and
        what was left out.

    Raises:
        TypeError, ValueError: A name is unknown, arrays are not of the same entries, values are
            malformed or not finite, nothing is left, or more than 2^26 entries without
            ``mantissa_bits``.
    """
    grid = shares("coverage", coverage)
    source = open_source(tree, score, error, site, ignore)
    gathered = gather(source, mantissa_bits, replicates, seed)

    def figures(orders: Orders) -> Figures:
        kept = kept_error(orders.score, grid)
        risk, best = mean_risk(orders.score), mean_risk(orders.error)
        return {
            "risk": kept / grid,
            "generalised_risk": kept,
            "risk_oracle": kept_error(orders.error, grid) / grid,
            "aurc": risk,
            "aurc_oracle": best,
            "excess_aurc": risk - best,
            "augrc": mean_generalised_risk(orders.score),
            "augrc_oracle": mean_generalised_risk(orders.error),
            "error_mean": orders.score.total.sum(-1) / size(orders.score),
        }

    return dataset(figures, gathered, "coverage", grid, source.unit)


def sparsification(
    tree: Posterior | None,
    score: Chosen,
    error: Chosen | None = None,
    *,
    removed: Grid = REMOVED,
    site: str | None = None,
    ignore: int | None = None,
    mantissa_bits: int | None = None,
    replicates: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """Error of what remains as the most uncertain is removed, against the oracle's.

    Args:
        tree: As for `risk_coverage`.
        score: As for `risk_coverage`.
        error: As for `risk_coverage`.
        removed: Shares removed at which the curve is given, in [0, 1).
        site: As for `risk_coverage`.
        ignore: As for `risk_coverage`.
        mantissa_bits: As for `risk_coverage`.
        replicates: As for `risk_coverage`.
        seed: As for `risk_coverage`.

    Returns:
        Dataset over removed: mean error of what remains, ``sparsification``, by ``oracle`` and by
        ``random`` order; scalars ``ause``, ``random_gain`` (area between random and
        sparsification; an uncertainty of use has more than 0) in the unit of the error, and
        ``ause_relative``, ``random_gain_relative``, over the mean error of all; each with ``_se``.

    Raises:
        TypeError, ValueError: As for `risk_coverage`.
    """
    grid = shares("removed", removed, from_zero=True)
    source = open_source(tree, score, error, site, ignore)
    gathered = gather(source, mantissa_bits, replicates, seed)

    def figures(orders: Orders) -> Figures:
        whole = orders.score.total.sum(-1) / size(orders.score)
        risk, best = mean_risk(orders.score), mean_risk(orders.error)
        with np.errstate(invalid="ignore"):  # nothing is wrong, so nothing is to be gained
            relative = np.stack([risk - best, whole - risk]) / whole
        return {
            "sparsification": kept_error(orders.score, 1 - grid) / (1 - grid),
            "oracle": kept_error(orders.error, 1 - grid) / (1 - grid),
            "random": np.multiply.outer(whole, np.ones_like(grid)),
            "ause": risk - best,
            "ause_relative": relative[0],
            "random_gain": whole - risk,
            "random_gain_relative": relative[1],
        }

    return dataset(figures, gathered, "removed", grid, source.unit)


def precision_recall(
    tree: Posterior | None,
    score: Chosen,
    error: Chosen | None = None,
    *,
    recall: Grid = GRID,
    site: str | None = None,
    ignore: int | None = None,
    mantissa_bits: int | None = None,
    replicates: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """Precision of what is kept, against the share of all correct entries that is kept.

    Entries are taken from the most certain on: at recall r a share r of all that is right has been
    kept, and precision is the share that is right of what has been kept. Where figures are drawn
    over the share of all pixels instead, their precision is 1 - risk of `risk_coverage`; the
    variable ``coverage`` joins the two.

    Args:
        tree: As for `risk_coverage`.
        score: As for `risk_coverage`.
        error: 0 where right, 1 where wrong; as for `risk_coverage`. For numbers an array, such as
            ``(selective.errors(tree, "absolute") > 0.5).astype(float)``.
        recall: Shares at which the curve is given, in (0, 1].
        site: As for `risk_coverage`.
        ignore: As for `risk_coverage`.
        mantissa_bits: As for `risk_coverage`.
        replicates: As for `risk_coverage`.
        seed: As for `risk_coverage`.

    Returns:
        Dataset over recall: ``precision``, ``coverage``; scalars ``average_precision``, the mean
        of the precision over the ranks of what is right, and ``accuracy`` of all; each with
        ``_se`` over cases; all probabilities. NaN where nothing is right.

    Raises:
        TypeError, ValueError: As for `risk_coverage`; errors other than 0 and 1.
    """
    grid = shares("recall", recall)
    source = open_source(tree, score, error, site, ignore)
    gathered = gather(source, mantissa_bits, replicates, seed, binary=True)

    def figures(orders: Orders) -> Figures:
        precision, coverage = kept_at_recall(orders.score, grid)
        with np.errstate(invalid="ignore"):
            area = average_precision(orders.score)
        return {
            "precision": precision,
            "coverage": coverage,
            "average_precision": area,
            "accuracy": 1 - orders.score.total.sum(-1) / size(orders.score),
        }

    return dataset(figures, gathered, "recall", grid, "probability")
