"""Boxes: a posterior over sets of objects, and how good it is.

draws_to_objects      objects             the boxes of all draws as a tree of objects

Of that tree:

mean_precision        average_precision   COCO's average precision, by class and size
localisation_recall   lrp                 one error for missed, false and badly placed objects
free_response         froc                sensitivity at false objects an image; CPM
spatial_quality       pdq                 quality of boxes whose corners are uncertain
operating_thresholds  thresholds, apply_thresholds          which objects to keep
confidence_errors     calibration_errors  D-ECE, LaECE, LaACE of the confidence
confidence_maps       fit_confidence, apply_confidence      calibration after training
existence_curve       existence           is p(an object is there) what it says?
conformal_boxes       calibrate_boxes, predict_boxes        promises of recall and of edges
edge_intervals        edge_coverage       do true edges lie in their intervals?
image_bootstrap       bootstrap           intervals over images, differences of two detectors
reader_disagreement   reader_spread       how far readers' boxes lie apart, in pixels and mm

The confidence of an object is p_exists times the probability of its class. An image without true
boxes counts as one without objects. True boxes without area are left out and counted: attribute
``left_out``. Objects and true boxes are paired in one place, `box_matching`.
"""

from ppl_med.analysis.detection.confidence_errors import calibration_errors
from ppl_med.analysis.detection.confidence_maps import apply_confidence, fit_confidence
from ppl_med.analysis.detection.conformal_boxes import calibrate_boxes, predict_boxes
from ppl_med.analysis.detection.draws_to_objects import objects
from ppl_med.analysis.detection.edge_intervals import edge_coverage
from ppl_med.analysis.detection.existence_curve import existence
from ppl_med.analysis.detection.free_response import froc
from ppl_med.analysis.detection.image_bootstrap import bootstrap
from ppl_med.analysis.detection.localisation_recall import lrp
from ppl_med.analysis.detection.mean_precision import average_precision
from ppl_med.analysis.detection.operating_thresholds import apply_thresholds, thresholds
from ppl_med.analysis.detection.reader_disagreement import reader_spread
from ppl_med.analysis.detection.spatial_quality import pdq

__all__ = [
    "apply_confidence",
    "apply_thresholds",
    "average_precision",
    "bootstrap",
    "calibrate_boxes",
    "calibration_errors",
    "edge_coverage",
    "existence",
    "fit_confidence",
    "froc",
    "lrp",
    "objects",
    "pdq",
    "predict_boxes",
    "reader_spread",
    "thresholds",
]
