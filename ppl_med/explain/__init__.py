"""Explanations: gradients through posterior function draws, and how well they localise."""

from ppl_med.explain.confidence_steps import choose_epsilon, odin
from ppl_med.explain.constraints import AttributionConstrained, NoPositiveAttribution, RightReasons
from ppl_med.explain.counterfactuals import (
    latent_counterfactual,
    minimal_perturbation,
    sparse_additive,
)
from ppl_med.explain.outside_detectors import score_with
from ppl_med.explain.refitted_codes import likelihood_regret

__all__ = [
    "AttributionConstrained",
    "NoPositiveAttribution",
    "RightReasons",
    "choose_epsilon",
    "latent_counterfactual",
    "likelihood_regret",
    "minimal_perturbation",
    "odin",
    "score_with",
    "sparse_additive",
]
