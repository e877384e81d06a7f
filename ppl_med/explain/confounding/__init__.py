"""Does a network use a confounder, what does that do to its answers, and what removes it?

``exposure`` says which attribution methods show it, ``swap_test`` what it does to the probability,
``dependence`` whether a feature or a prediction depends on it, and ``normalize_shape`` removes the
shape of the foreground from the images.
"""

from ppl_med.explain.confounding.dependence_measures import dependence
from ppl_med.explain.confounding.exposure_auroc import exposure
from ppl_med.explain.confounding.shape import common_shape, normalize_shape
from ppl_med.explain.confounding.swap import swap_effects, swap_frame, swap_test

__all__ = [
    "common_shape",
    "dependence",
    "exposure",
    "normalize_shape",
    "swap_effects",
    "swap_frame",
    "swap_test",
]
