"""How well a score ranks events above the rest: counts at every threshold, and what follows.

A threshold t takes an entry for an event where its score is at least t. Entries of equal score
pass together, so that every figure is exact with ties.

    auroc               probability that an event scores above a non-event, ties count half
    average_precision   sum over thresholds of (recall gained) x (precision): no interpolation

Sources: Hanley and McNeil, Radiology 143, 1982; Davis and Goadrich, ICML 2006 (why the curve of
precision is not interpolated).
"""

from dataclasses import dataclass

import numpy as np

_LEVELS = 1024


@dataclass(frozen=True)
class Ranking:
    """Events and other entries by falling score, and the group that they belong to.

    Args:
        size: Number of different scores.
        level: Rank of the score, 0 the highest (row,).
        group: Number of the group, such as the patient (row,).
        events: How many entries of that level and group are events (row,).
        others: How many are not (row,).
    """

    size: int
    level: np.ndarray
    group: np.ndarray
    events: np.ndarray
    others: np.ndarray

    def counts(self, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return events and others of every level (level,), groups with a weight (group,)."""
        each = np.ones(len(self.level)) if weight is None else weight[self.group]
        events = np.bincount(self.level, each * self.events, self.size)
        return events, np.bincount(self.level, each * self.others, self.size)


def rank(
    score: np.ndarray, event: np.ndarray, group: np.ndarray, *, coarse: bool = False
) -> Ranking:
    """Rank entries by their score.

    Args:
        score: Scores (entry,).
        event: Which entries are events (entry,), bool.
        group: Number of the group of every entry (entry,).
        coarse: Join scores to 1024 levels of about as many entries, for resampling many pixels.
    """
    level = np.unique(-score, return_inverse=True)[1]
    size = int(level.max()) + 1 if len(level) else 0
    if coarse and size > _LEVELS:
        below = np.bincount(level).cumsum()
        joined = ((below - 1) * _LEVELS) // below[-1]
        level = np.unique(joined, return_inverse=True)[1][level]
        size = int(level.max()) + 1
    keys, row = np.unique(group * size + level, return_inverse=True)
    events = np.bincount(row, event, len(keys))
    others = np.bincount(row, ~event, len(keys))
    return Ranking(size, keys % max(size, 1), keys // max(size, 1), events, others)


def auroc(events: np.ndarray, others: np.ndarray) -> float:
    """Area under the ROC curve from counts by falling score; NaN without events or others."""
    pairs = events.sum() * others.sum()
    if not pairs:
        return float("nan")
    beaten = others.sum() - others.cumsum() + 0.5 * others
    return float((events * beaten).sum() / pairs)


def average_precision(events: np.ndarray, others: np.ndarray) -> float:
    """Average precision from counts by falling score; NaN without events."""
    total = events.sum()
    if not total:
        return float("nan")
    hits, taken = events.cumsum(), (events + others).cumsum()
    precision = np.divide(hits, taken, out=np.zeros(len(hits)), where=taken > 0)
    return float((events * precision).sum() / total)


def roc(events: np.ndarray, others: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """True positive rate at false positive rates ``grid``; linear between thresholds, as AUROC."""
    if not (events.sum() and others.sum()):
        return np.full(len(grid), np.nan)
    hits = np.append(0, events.cumsum()) / events.sum()
    false = np.append(0, others.cumsum()) / others.sum()
    left = np.searchsorted(false, grid, "right") - 1  # the top, where the curve is vertical
    right = np.minimum(left + 1, len(false) - 1)
    width = false[right] - false[left]
    share = np.divide(grid - false[left], width, out=np.zeros(len(grid)), where=width > 0)
    return hits[left] + share * (hits[right] - hits[left])


def precision_at_recall(events: np.ndarray, others: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Precision at the highest threshold that reaches the recalls ``grid``; steps, as AP."""
    total = events.sum()
    if not total:
        return np.full(len(grid), np.nan)
    hits, taken = events.cumsum(), (events + others).cumsum()
    place = np.searchsorted(hits / total, grid - 1e-12).clip(max=len(hits) - 1)
    return hits[place] / np.maximum(taken[place], np.finfo(float).tiny)
