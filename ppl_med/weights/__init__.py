"""Random weights for any network: priors, one flat site with named views, training estimators."""

from torch.distributions import kl_divergence

from ppl_med.weights.distributions import (
    FlatDistribution,
    FlatLaplace,
    FlatNormal,
    FlatNormalByGroup,
    FlatPoint,
    FlatScaleMixture,
)
from ppl_med.weights.layout import Entry, Layout, Where
from ppl_med.weights.pretrained import Fitted, load_pretrained
from ppl_med.weights.priors import (
    FanInNormal,
    Laplace,
    LearntNormal,
    Normal,
    NormalByName,
    Prior,
    ScaleMixture,
)
from ppl_med.weights.random_weights import RandomWeights, find_random_weights

__all__ = [
    "Entry",
    "FanInNormal",
    "Fitted",
    "FlatDistribution",
    "FlatLaplace",
    "FlatNormal",
    "FlatNormalByGroup",
    "FlatPoint",
    "FlatScaleMixture",
    "Laplace",
    "Layout",
    "LearntNormal",
    "Normal",
    "NormalByName",
    "Prior",
    "RandomWeights",
    "ScaleMixture",
    "Where",
    "find_random_weights",
    "kl_divergence",
    "load_pretrained",
]
