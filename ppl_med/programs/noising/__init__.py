"""Noising processes: what turns a mask or an image into noise, step by step; nothing is learnt.

A model of the diffusion family undoes one, and the guide ``Noising`` proposes its states.
"""

from ppl_med.programs.noising.categorical_noise import CategoricalNoise
from ppl_med.programs.noising.chain import (
    Chain,
    Form,
    StepsOfBatch,
    Transition,
    counted,
    in_classes,
    over_space,
)
from ppl_med.programs.noising.gaussian_noise import (
    GaussianNoise,
    NormalNoise,
    clean_in,
    composed,
    noise_in,
    signed,
)
from ppl_med.programs.noising.places import PlacesOfBatch
from ppl_med.programs.noising.schedules import Schedule, signal_kept

__all__ = [
    "CategoricalNoise",
    "Chain",
    "Form",
    "GaussianNoise",
    "NormalNoise",
    "PlacesOfBatch",
    "Schedule",
    "StepsOfBatch",
    "Transition",
    "clean_in",
    "composed",
    "counted",
    "in_classes",
    "noise_in",
    "over_space",
    "signal_kept",
    "signed",
]
