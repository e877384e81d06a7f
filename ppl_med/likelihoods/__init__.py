"""From a network's output to the observed site.

A likelihood owns three things together: the sample statement, the log-likelihood (in float64 at
prediction, because float32 log-probabilities tie and break PSIS), and what ``predict`` stores
(``stored_parameters``).
"""

from ppl_med.likelihoods.classes import Bernoulli, Categorical, PartialCategorical
from ppl_med.likelihoods.continuous import Gaussian, LaplaceNoise, Quantiles, StudentT
from ppl_med.likelihoods.logit_normal import LogitNormal
from ppl_med.likelihoods.records import (
    class_probs,
    in_double,
    log_prob_in_double,
    stored_parameters,
)

__all__ = [
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "LaplaceNoise",
    "LogitNormal",
    "PartialCategorical",
    "Quantiles",
    "StudentT",
    "class_probs",
    "in_double",
    "log_prob_in_double",
    "stored_parameters",
]
