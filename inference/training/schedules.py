"""Schedules of the learning rate and of the KL weight: functions of the finished fraction."""

import math
from collections.abc import Callable

from ppl_med.checks import finite, is_finite, reject

Schedule = Callable[[float], float]


def rate_factor(schedule: str | Schedule, done: float) -> float:
    """Factor on the learning rate at a finished fraction, a finite number from 0 on."""
    if not callable(schedule):
        return 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1.0
    return _at("schedule", schedule(done), done)


def weight_at(kl_weight: float | Schedule, done: float) -> float:
    """The KL weight at a finished fraction of the run, a finite number from 0 on."""
    return _at("kl_weight", kl_weight(done) if callable(kl_weight) else kl_weight, done)


def _at(name: str, value: float, done: float) -> float:
    return finite(f"{name} at {done:.3g} of the run", value, least=0)


def warm_up(fraction: float = 0.5, weight: float = 1.0, start: float = 0.0) -> Schedule:
    """A KL weight, for ``fit``, that goes linearly from ``start`` to ``weight``, then stays.

    From 0 it keeps a code from collapsing before the decoder reads it (Bowman et al., "Generating
    sentences from a continuous space", CoNLL 2016). From above 1 it keeps out of a code what the
    mask does not need, where one is in no danger of collapse: with many pixels a mask, say.

    Args:
        fraction: Part of the run over which it changes, in (0, 1].
        weight: Where it stays.
        start: Where it begins.

    Raises:
        ValueError: If an argument is out of range.
    """
    _check_fraction(fraction)
    finite("weight", weight, least=0)
    finite("start", start, least=0)
    return lambda done: weight if done >= fraction else start + (weight - start) * done / fraction


def cooldown(fraction: float = 0.35) -> Schedule:
    """A learning rate, for ``fit(schedule=...)``, that stays, and falls linearly to 0 at the end.

    Where a model learns one thing after another, such as a latent code that takes up mode after
    mode, it gets further in the same number of steps than under a cosine (Hägele et al., "Scaling
    laws and compute-optimal training beyond fixed training durations", NeurIPS 2024).

    Args:
        fraction: Part of the run over which it falls, in (0, 1].
    """
    _check_fraction(fraction)
    return lambda done: min(1.0, (1 - done) / fraction)


def _check_fraction(fraction: float) -> None:
    if not (is_finite(fraction) and 0 < fraction <= 1):
        reject("fraction", "in (0, 1]", fraction)
