"""Leaving the uncertain to a physician: what is gained, and by which uncertainty.

risk_curves    risk_coverage      risk of what is kept; AURC, its excess over the oracle, AUGRC
               sparsification     error of what remains as the most uncertain is removed; AUSE
               precision_recall   precision of what is kept against the share of the correct kept
entries        scores, errors     what the curves are made of, by name, as arrays (case, ...)

Of classes, masks and numbers; for one score per case see `ppl_med.analysis.aggregation`.
"""

from ppl_med.analysis.selective.entries import errors, scores
from ppl_med.analysis.selective.risk_curves import precision_recall, risk_coverage, sparsification

__all__ = ["errors", "precision_recall", "risk_coverage", "scores", "sparsification"]
