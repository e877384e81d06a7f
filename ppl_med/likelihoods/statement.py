"""The sample statement that all likelihoods share."""

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_med.dims import dims


def precision(output: Tensor, *, training: bool) -> torch.dtype:
    """float32 in training, float64 at prediction, where float32 log-densities tie."""
    return torch.float32 if training and output.dtype != torch.float64 else torch.float64


def state(site: str, fn: Any, event: tuple[str, ...], value: Tensor | None) -> None:
    """State the observed site.

    Args:
        site: Its name.
        fn: Distribution of one entry, batch dims (..., case, *event).
        event: Names of the axes after the case.
        value: The observation, or None to draw it.
    """
    fn = fn.to_event(len(event)) if event else fn
    pyro.sample(site, fn, obs=value, infer=dims(*event) if event else None)


def check_class_names(classes: Sequence[str]) -> None:
    """Raise unless there are two or more different class names.

    Raises:
        ValueError: If there are fewer than two, two share a name, or they are one string.
    """
    if isinstance(classes, str) or len(classes) < 2 or len(set(classes)) < len(classes):
        raise ValueError(f"classes must be two or more different names, got {classes!r}")
