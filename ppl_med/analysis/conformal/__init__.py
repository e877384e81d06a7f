"""Prediction sets, intervals and masks with a coverage guarantee, and their checks.

calibrate, predict_sets                       classes: LAC, APS, RAPS, SAPS; Mondrian; weighted
calibrate_intervals, predict_intervals        observed numbers: absolute, normalised, CQR; the same
calibrate_masks, predict_masks                segmentation: bounded false-negative rate
fill_empty_sets                               the most probable class in the place of no class
density_ratio                                 weights for a covariate shift, of features
leave_one_out_sets, leave_one_out_intervals   jackknife+ from training cases, by PSIS
bayes_sets, bayes_intervals                   conformal Bayes from training cases
coverage, set_sizes                           by group, with exact bands; how large sets are

Calibration cases must be cases the model was not trained on, and no test cases: shared ids raise.
Settings (the score, its penalty, the groups, alpha) are chosen before the calibration cases are
looked at. What is promised is an average over cases and calibration sets, no probability that a
single set is right.

Where the trees keep features (``predict(..., keep=("feature:<layer>",))``), a shift is looked for
in them too. Cases of one patient, by the column "patient" or ``group=``, count together in what
says whether calibration and test are alike; the level itself is over cases.

A case whose label is -1, or whose number is NaN, has no observation: it does not calibrate and does
not count in the coverage, and its ``covered`` is NaN. Attributes of every result count such cases.
"""

from ppl_med.analysis.conformal.classification import calibrate, predict_sets
from ppl_med.analysis.conformal.conformal_bayes import bayes_intervals, bayes_sets
from ppl_med.analysis.conformal.covariate_shift import density_ratio
from ppl_med.analysis.conformal.group_coverage import coverage, set_sizes
from ppl_med.analysis.conformal.leave_one_out import leave_one_out_intervals, leave_one_out_sets
from ppl_med.analysis.conformal.nonconformity import Score
from ppl_med.analysis.conformal.nonempty import fill_empty_sets
from ppl_med.analysis.conformal.order_statistics import coverage_band, coverage_rank
from ppl_med.analysis.conformal.regression import calibrate_intervals, predict_intervals
from ppl_med.analysis.conformal.risk_control import calibrate_masks, predict_masks

__all__ = [
    "Score",
    "bayes_intervals",
    "bayes_sets",
    "calibrate",
    "calibrate_intervals",
    "calibrate_masks",
    "coverage",
    "coverage_band",
    "coverage_rank",
    "density_ratio",
    "fill_empty_sets",
    "leave_one_out_intervals",
    "leave_one_out_sets",
    "predict_intervals",
    "predict_masks",
    "predict_sets",
    "set_sizes",
]
