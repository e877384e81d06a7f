"""Explanations: gradients through posterior function draws, and how well they localise."""

from ppl_med.explain.confidence_steps import choose_epsilon, odin
from ppl_med.explain.constraints import AttributionConstrained, NoPositiveAttribution, RightReasons
from ppl_med.explain.counterfactuals import (
    diffusion_counterfactual,
    latent_counterfactual,
    minimal_perturbation,
    nearest_case,
    second_opinion,
    sparse_additive,
)
from ppl_med.explain.outside_detectors import score_with
from ppl_med.explain.refitted_codes import likelihood_regret

__all__ = [
    "AttributionConstrained",
    "NoPositiveAttribution",
    "RightReasons",
    "choose_epsilon",
    "diffusion_counterfactual",
    "latent_counterfactual",
    "likelihood_regret",
    "minimal_perturbation",
    "nearest_case",
    "odin",
    "score_with",
    "second_opinion",
    "sparse_additive",
]
