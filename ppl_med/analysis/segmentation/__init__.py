"""Ambiguous segmentation: sampled masks against the masks of several graders, and their maps.

Every analysis takes the tree of `predict` (or ``probs``, or masks over chain, draw, case, row, col;
also volumes) and returns a Dataset with a figure per case, its mean and standard error over cases.

energy           ged, diversity              distance of samples and graders in distribution
matching         hungarian                   one-to-one matched IoU or Dice
agreement        dice_max, d_max, oracle_iou, soft_dice
insight          collective_insight          both formulas, and their parts
correlation      ncc                         does uncertainty lie where graders disagree
mode_assignment  modes                       frequencies of known modes
switches         flips                       switched regions: how often, how coherently
pixel_maps       maps                        uncertainty per pixel
variance_parts   rater_and_weight_variance   masks of several samples of each draw of the weights
regions          region_uncertainty          along the border, inside, per connected part
measurement      sizes                       areas and volumes with credible intervals
reliability      pixel_reliability           calibration per pixel
presence         presence_reliability        calibration of whether there is anything

Conventions of published code (class list, empty masks, pairs counted) differ and change the
figures: `classes` and `empty` state them, and the attributes of every result repeat them. They also
count pixels and cases that were left out, because no grader annotated them (-1).
"""

from ppl_med.analysis.segmentation.agreement import d_max, dice_max, oracle_iou, soft_dice
from ppl_med.analysis.segmentation.correlation import ncc
from ppl_med.analysis.segmentation.energy import diversity, ged
from ppl_med.analysis.segmentation.insight import collective_insight
from ppl_med.analysis.segmentation.matching import hungarian
from ppl_med.analysis.segmentation.measurement import sizes
from ppl_med.analysis.segmentation.mode_assignment import modes
from ppl_med.analysis.segmentation.pixel_maps import maps
from ppl_med.analysis.segmentation.presence import presence_reliability
from ppl_med.analysis.segmentation.regions import region_uncertainty
from ppl_med.analysis.segmentation.reliability import pixel_reliability
from ppl_med.analysis.segmentation.switches import flips
from ppl_med.analysis.segmentation.variance_parts import rater_and_weight_variance

__all__ = [
    "collective_insight",
    "d_max",
    "dice_max",
    "diversity",
    "flips",
    "ged",
    "hungarian",
    "maps",
    "modes",
    "ncc",
    "oracle_iou",
    "pixel_reliability",
    "presence_reliability",
    "rater_and_weight_variance",
    "region_uncertainty",
    "sizes",
    "soft_dice",
]
