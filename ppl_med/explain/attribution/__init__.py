"""Attribution of a Bayesian network: which pixels speak for an output, and how surely they do.

``attribute`` explains a class, a region of a segmentation or a number, one map per posterior draw;
``attribute_uncertainty`` explains the entropies and the mutual information of the draws' mixture.
A method is named by a string with its options as keywords, or given as one of the classes below.
"""

from ppl_med.explain.attribution.activation_maps import Cam, GradCam, GradCamPlusPlus, ScoreCam
from ppl_med.explain.attribution.deep_lift import DeepLift
from ppl_med.explain.attribution.full_gradient import FullGradient
from ppl_med.explain.attribution.gradients import (
    InputXGradient,
    IntegratedGradients,
    Saliency,
    SmoothGrad,
    VarGrad,
)
from ppl_med.explain.attribution.guided import GuidedBackprop, GuidedGradCam
from ppl_med.explain.attribution.instance_maps import Additive, Attention
from ppl_med.explain.attribution.method import Method
from ppl_med.explain.attribution.occlusion import Occlusion
from ppl_med.explain.attribution.posterior_maps import attribute
from ppl_med.explain.attribution.relevance import RelevancePropagation
from ppl_med.explain.attribution.score import Output
from ppl_med.explain.attribution.uncertainty_maps import attribute_uncertainty

__all__ = [
    "Additive",
    "Attention",
    "Cam",
    "DeepLift",
    "FullGradient",
    "GradCam",
    "GradCamPlusPlus",
    "GuidedBackprop",
    "GuidedGradCam",
    "InputXGradient",
    "IntegratedGradients",
    "Method",
    "Occlusion",
    "Output",
    "RelevancePropagation",
    "Saliency",
    "ScoreCam",
    "SmoothGrad",
    "VarGrad",
    "attribute",
    "attribute_uncertainty",
]
