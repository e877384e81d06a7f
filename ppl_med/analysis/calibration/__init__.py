"""Calibration of class probabilities: measured, drawn as curves, and corrected on held-out cases.

class_errors       errors                 ECE and its relatives, with what chance alone would give
group_errors       errors_by_group        the same within sites, scanners or other groups
class_curves       reliability_classwise, pava    binned and isotonic reliability curves
recalibration      fit, apply             temperature, vector, matrix, isotonic, beta, histogram

Calibration of predicted numbers, one per case or one per pixel:

transforms         pit                    probability integral transforms; are they uniform?
interval_coverage  coverage               coverage of central intervals at every level
variance_bins      dispersion             predicted variance against squared error: ENCE, UCE
number_summary     number_errors          all of these and the CRPS in one row

Everything is of the mixture of the draws, and of every draw where a result says ``per_draw``.
For the confidence in bins see `ppl_med.analysis.scoring.reliability`; for the parts of the Brier
score `ppl_med.analysis.scoring.brier_decomposition`; for pixels of masks
`ppl_med.analysis.segmentation.pixel_reliability`.
"""

from ppl_med.analysis.calibration.class_curves import pava, reliability_classwise
from ppl_med.analysis.calibration.class_errors import errors
from ppl_med.analysis.calibration.group_errors import errors_by_group
from ppl_med.analysis.calibration.interval_coverage import coverage
from ppl_med.analysis.calibration.number_summary import number_errors
from ppl_med.analysis.calibration.recalibration import apply, fit
from ppl_med.analysis.calibration.transforms import pit
from ppl_med.analysis.calibration.variance_bins import dispersion

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
