"""The sample statement that all likelihoods share."""

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_med.axes import dims


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

    Raises:
        ValueError: If the observation has another shape than the distribution: broadcast, every
            case would be scored against every other.
    """
    fn = fn.to_event(len(event)) if event else fn
    if value is not None:
        _check_shape(site, tuple(value.shape), fn)
    pyro.sample(site, fn, obs=value, infer=dims(*event) if event else None)


def _check_shape(site: str, shape: tuple[int, ...], fn: Any) -> None:
    inner = tuple(fn.event_shape)
    outer = len(shape) - len(inner)
    expected = tuple(fn.batch_shape)[-outer:] + inner if outer > 0 else tuple(fn.shape())
    if shape != expected:
        extra = len(shape) > len(expected) and shape[1] == 1
        raise ValueError(
            f"{site} has shape {shape}, but {expected} is needed, one entry for every one the "
            f"network predicts" + (f": use {site}[:, 0]" if extra else "")
        )


def check_class_names(classes: Sequence[str]) -> None:
    """Raise unless there are two or more different class names.

    Raises:
        ValueError: If there are fewer than two, two share a name, or they are one string.
    """
    if isinstance(classes, str) or len(classes) < 2 or len(set(classes)) < len(classes):
        raise ValueError(f"classes must be two or more different names, got {classes!r}")
