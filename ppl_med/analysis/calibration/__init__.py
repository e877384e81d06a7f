"""Calibration of class probabilities: measured, drawn as curves, and mended on held-out cases.

errors          errors              ECE and its relatives, with what chance alone would give
groups          errors_by_group     the same within sites, scanners or other groups
curves          reliability_classwise, pava    binned and isotonic reliability curves
recalibration   fit, apply          temperature, vector, matrix, isotonic, beta, histogram

Calibration of predicted numbers, one a case or one a pixel:

pit             pit                 probability integral transforms and whether they are uniform
coverage        coverage            coverage of central intervals at every level
dispersion      dispersion          predicted variance against squared error: ENCE, UCE, sharpness
number_errors   number_errors       all of these and the CRPS in one row

Everything is of the mixture of the draws, and of every draw where a result says ``per_draw``.
For the confidence in bins see `ppl_med.analysis.scoring.reliability`; for the parts of the Brier
score `ppl_med.analysis.scoring.brier_decomposition`; for pixels of masks
`ppl_med.analysis.segmentation.pixel_reliability`.
"""

from ppl_med.analysis.calibration.coverage import coverage
from ppl_med.analysis.calibration.curves import pava, reliability_classwise
from ppl_med.analysis.calibration.dispersion import dispersion
from ppl_med.analysis.calibration.errors import errors
from ppl_med.analysis.calibration.groups import errors_by_group
from ppl_med.analysis.calibration.number_errors import number_errors
from ppl_med.analysis.calibration.pit import pit
from ppl_med.analysis.calibration.recalibration import apply, fit

__all__ = [
    "apply",
    "coverage",
    "dispersion",
    "errors",
    "errors_by_group",
    "fit",
    "number_errors",
    "pava",
    "pit",
    "reliability_classwise",
]
