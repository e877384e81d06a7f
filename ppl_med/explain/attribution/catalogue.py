"""The methods by name, and their options from keywords."""

from dataclasses import fields
from typing import Any

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
from ppl_med.explain.attribution.method import Method
from ppl_med.explain.attribution.occlusion import Occlusion
from ppl_med.explain.attribution.relevance import RelevancePropagation

_ALL: tuple[type[Method], ...] = (
    Saliency,
    InputXGradient,
    IntegratedGradients,
    SmoothGrad,
    VarGrad,
    Occlusion,
    Cam,
    GradCam,
    GradCamPlusPlus,
    ScoreCam,
    GuidedBackprop,
    GuidedGradCam,
    RelevancePropagation,
    DeepLift,
    FullGradient,
)
METHODS = {kind.name: kind for kind in _ALL}


def as_method(method: str | Method, options: dict[str, Any]) -> Method:
    """Return the method that a name and its options describe.

    Args:
        method: A name, or a method with its options set.
        options: Options by keyword, of a method given by name.
    """
    if isinstance(method, Method):
        if options:
            raise TypeError(
                f"method is a {type(method).__name__} already; give {sorted(options)} to it"
            )
        return method
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; use {' or '.join(map(repr, METHODS))}")
    known = [option.name for option in fields(METHODS[method])]  # type: ignore[arg-type]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"{method} has no option {unknown[0]!r}; it has {known or 'none'}")
    return METHODS[method](**options)
