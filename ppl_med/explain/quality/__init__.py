"""How good an attribution is: does the net follow it, does it find the evidence, is it stable.

perturbation_curve        replace the pixels the map ranks highest, and read the output again
pointing_game             does the highest pixel lie inside the mask of the evidence, and how
much of the mask do the highest pixels fill
mass_inside               share of the positive attribution inside the mask
evidence_inside           both under the posterior: mean, sd and interval over draws
max_sensitivity           largest relative change of the map under small noise on the image
parameter_randomisation   similarity of the maps of the trained and of a re-initialised net
map_similarity            rank correlation of two sets of maps
"""

from ppl_med.explain.quality.localization import evidence_inside, mass_inside, pointing_game
from ppl_med.explain.quality.perturbation import linear_imputation, perturbation_curve
from ppl_med.explain.quality.stability import (
    map_similarity,
    max_sensitivity,
    parameter_randomisation,
)
from ppl_med.moved import renamed

__all__ = [
    "evidence_inside",
    "linear_imputation",
    "map_similarity",
    "mass_inside",
    "max_sensitivity",
    "parameter_randomisation",
    "perturbation_curve",
    "pointing_game",
]

__getattr__ = renamed(__name__, {"likeness": "map_similarity"})
