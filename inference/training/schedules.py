"""Schedules of the learning rate and of the KL weight: functions of the finished fraction."""

import math
from collections.abc import Callable

from ppl_med.checks import finite, inside, is_finite, reject
from ppl_med.inference.training.selection import Plateau

Schedule = Callable[[float], float]


SCHEDULES = ("constant", "cosine", "one-cycle", "plateau")


def rate_factor(schedule: str | Schedule | Plateau, done: float) -> float:
    """Factor on the learning rate at a finished fraction, a finite number from 0 on.

    1 for a constant, and for a plateau, whose factor hangs on scores and not on the fraction.
    """
    if schedule == "one-cycle":
        schedule = one_cycle()
    if not callable(schedule):
        return 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1.0
    return _at("schedule", schedule(done), done)


def rate_at(
    schedule: str | Schedule | Plateau, warm_up: float, step: int, total: int, plateau: float
) -> float:
    """Factor on the learning rate at a step.

    Args:
        schedule: As of ``fit``.
        warm_up: Part of all steps over which the factor rises linearly, besides, up to 1.
        step: Which, from 0.
        total: How many there are.
        plateau: What a plateau asks for at present.
    """
    rate = rate_factor(schedule, step / total) * plateau
    risen = max(round(warm_up * total), 1)
    return rate if step + 1 >= risen else rate * (step + 1) / risen


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


def one_cycle(fraction: float = 0.3, start: float = 0.04, end: float = 4e-6) -> Schedule:
    """A learning rate, for ``fit(schedule=...)``, that rises to its full value and falls to 0.

    Both ways along a cosine: ``learning_rate`` is the highest (Smith and Topin, "Super-convergence:
    very fast training of neural networks using large learning rates", 2019, as in torch's
    ``OneCycleLR``, whose defaults these are; the momentum stays as it is).

    Args:
        fraction: Part of the run over which it rises, in (0, 1).
        start: Factor at the start, from 0 on.
        end: Factor at the end, from 0 on.

    Raises:
        ValueError: If an argument is out of range.
    """
    inside("fraction", fraction)
    finite("start", start, least=0)
    finite("end", end, least=0)

    def factor(done: float) -> float:
        if done < fraction:
            return _cosine(start, 1.0, done / fraction)
        return _cosine(1.0, end, (done - fraction) / (1 - fraction))

    return factor


def _cosine(first: float, last: float, share: float) -> float:
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * share))


def _check_fraction(fraction: float) -> None:
    if not (is_finite(fraction) and 0 < fraction <= 1):
        reject("fraction", "in (0, 1]", fraction)
