"""Explanations: gradients through posterior function draws, and how well they localise."""

from ppl_med.explain.confidence_steps import choose_epsilon, odin
from ppl_med.explain.constraints import AttributionConstrained, NoPositiveAttribution, RightReasons
from ppl_med.explain.counterfactuals import (
    latent_counterfactual,
    minimal_perturbation,
    sparse_additive,
)

__all__ = [
    "AttributionConstrained",
    "NoPositiveAttribution",
    "RightReasons",
    "choose_epsilon",
    "latent_counterfactual",
    "minimal_perturbation",
    "odin",
    "sparse_additive",
]
