"""Does a network use a confounder, what does that do to its answers, and what removes it?

``exposure`` says which attribution methods show it, ``swap_test`` what it does to the probability,
``dependence`` whether a feature or a prediction depends on it. Of the shape of the foreground,
``outline_auroc`` says whether it alone tells the classes apart, ``swap_shape`` gives an image that
of another, and ``normalize_shape`` removes it from the images.
"""

from ppl_med.explain.confounding.dependence_measures import dependence
from ppl_med.explain.confounding.exposure_auroc import exposure
from ppl_med.explain.confounding.outline import outline_auroc
from ppl_med.explain.confounding.shape import common_shape, normalize_shape
from ppl_med.explain.confounding.shape_swap import swap_shape
from ppl_med.explain.confounding.swap import swap_effects, swap_frame, swap_test

__all__ = [
    "common_shape",
    "dependence",
    "exposure",
    "normalize_shape",
    "outline_auroc",
    "swap_effects",
    "swap_frame",
    "swap_shape",
    "swap_test",
]
