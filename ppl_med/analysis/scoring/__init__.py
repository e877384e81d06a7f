"""Scores of predictions against observations; the prediction is the mixture of the draws.

class_scores       score                             accuracy, NLL, Brier score, ECE
brier_parts        brier_decomposition               what recalibration could remove, and the rest
ranking_scores     discrimination, roc,              AUROC and average precision, and their curves
                   precision_recall
operating_points   operating_point,                  sensitivity, specificity, predictive values
                   choose_threshold
overlaps           overlap                           Dice and IoU per class and case
entry_maps         entry_scores, confusion           per case or pixel; IoU from counts
confidence_bins    reliability                       confidence against accuracy, bin by bin
log_scores         elpd_heldout                      log density of held-out cases
density_bounds     evidence_bound                    lower bound of it, where it is not known
left_out_cases     elpd_loo                          of training cases, each left out in turn
draw_scores        crps, energy                      of predicted numbers
quantile_scores    quantile_score, interval_score    of predicted numbers

More measures of calibration stand in `ppl_med.analysis.calibration`.
"""

from ppl_med.analysis.scoring.brier_parts import brier_decomposition
from ppl_med.analysis.scoring.class_scores import score
from ppl_med.analysis.scoring.confidence_bins import reliability
from ppl_med.analysis.scoring.density_bounds import evidence_bound
from ppl_med.analysis.scoring.draw_scores import crps, energy
from ppl_med.analysis.scoring.entry_maps import confusion, entry_scores, mean_iou
from ppl_med.analysis.scoring.left_out_cases import elpd_loo
from ppl_med.analysis.scoring.log_scores import elpd_heldout
from ppl_med.analysis.scoring.operating_points import choose_threshold, operating_point
from ppl_med.analysis.scoring.overlaps import overlap
from ppl_med.analysis.scoring.quantile_scores import interval_score, quantile_score
from ppl_med.analysis.scoring.ranking_scores import discrimination, precision_recall, roc

__all__ = [
    "brier_decomposition",
    "choose_threshold",
    "confusion",
    "crps",
    "discrimination",
    "elpd_heldout",
    "elpd_loo",
    "energy",
    "entry_scores",
    "evidence_bound",
    "interval_score",
    "mean_iou",
    "operating_point",
    "overlap",
    "precision_recall",
    "quantile_score",
    "reliability",
    "roc",
    "score",
]
