"""Entropies of the draws of class probabilities, in nats, and how far their votes differ."""

from typing import NamedTuple

import numpy as np
import xarray as xr

from ppl_med.analysis.statistics import compiled
from ppl_med.analysis.statistics.class_axis import leading, of_class


class Entropies(NamedTuple):
    """What every draw says (chain, draw, case, ...).

    Attributes:
        own: Its entropy, nats.
        cross: Its cross entropy with the mean over draws, nats.
        dissent: Share of its vote that is not for the most voted class; a tie splits the vote.
    """

    own: xr.DataArray
    cross: xr.DataArray
    dissent: xr.DataArray


def draw_entropies(probs: xr.DataArray, log_mean: np.ndarray) -> Entropies:
    """Return the entropies of draws.

    Args:
        probs: Probabilities (chain, draw, case, class, ...).
        log_mean: `logarithm` of their mean over draws (case, class, ...).
    """
    entry = probs.isel({"class": 0}, drop=True)
    own, cross = np.empty(entry.shape), np.empty(entry.shape)
    for place in np.ndindex(*entry.shape[:2]):  # draw by draw, which fits the cache
        draw = probs.values[place]
        terms = logarithm(draw)
        terms *= draw
        terms.sum(1, out=own[place])
        np.multiply(draw, log_mean, out=terms).sum(1, out=cross[place])
    return Entropies(entry.copy(data=-own), entry.copy(data=-cross), _dissent(probs))


def compiled_entropies(
    values: np.ndarray, log_mean: np.ndarray, entry: xr.DataArray
) -> tuple[Entropies, bool]:
    """As `draw_entropies`, by compiled loops; also whether all draws are equal.

    Args:
        values: Probabilities (chain x draw, case, class).
        log_mean: As for `draw_entropies`.
        entry: Any array (chain, draw, case) whose coordinates the result has.
    """
    found, equal = compiled.entropies(values, log_mean, logarithm)
    return Entropies(*(entry.copy(data=one.reshape(entry.shape)) for one in found)), equal


def logarithm(probs: np.ndarray) -> np.ndarray:
    """Logarithms, float64; finite where a probability is 0 and contributes nothing."""
    result = np.maximum(probs, np.float64(np.finfo(np.float64).tiny))
    return np.asarray(np.log(result, out=result))


def _dissent(probs: xr.DataArray) -> xr.DataArray:
    entry = probs.isel({"class": 0}, drop=True)
    votes, total = {}, np.zeros_like(probs.values[0, 0])
    for place in np.ndindex(*entry.shape[:2]):
        draw = probs.values[place]
        leads, tied = leading(draw, draw.max(1), 1)
        votes[place] = leads / leads.sum(1, keepdims=True) if tied else leads
        total += votes[place]
    mode = total.argmax(1)
    found = [1.0 - of_class(vote, mode, 1) for vote in votes.values()]
    return entry.copy(data=np.reshape(found, entry.shape))
