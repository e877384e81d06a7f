"""Prediction sets, intervals and masks with a coverage guarantee, and their checks.

classification     calibrate, predict_sets              classes: LAC, APS, RAPS, SAPS, Mondrian
"""

from ppl_med.analysis.conformal.classification import calibrate, predict_sets
from ppl_med.analysis.conformal.nonconformity import Score
from ppl_med.analysis.conformal.order_statistics import coverage_band, coverage_rank

__all__ = [
    "Score",
    "calibrate",
    "coverage_band",
    "coverage_rank",
    "predict_sets",
]
