"""Entries of a tree as events: one class against the rest, each entry with its patient or case."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr

from ppl_med.analysis.statistics.group_resampling import group_weights
from ppl_med.analysis.statistics.ranking import Ranking, rank
from ppl_med.analysis.tree import (
    Classes,
    Posterior,
    case_units,
    count_left_out,
    known,
    open_classes,
)
from ppl_med.checks import is_whole, reject

Figure = Callable[[np.ndarray, np.ndarray], np.ndarray | float]

MANY = 20_000  # entries from which on resamples take joined levels


@dataclass(frozen=True)
class Entries:
    """Annotated entries, as many as were observed.

    Args:
        source: The tree's classes.
        seen: Which entries were annotated (case x ...,), bool.
        label: Their class index (entry,).
        group: The number of their patient or case (entry,).
        attrs: What `count_left_out` says, and of what the errors are.
    """

    source: Classes
    seen: np.ndarray
    label: np.ndarray
    group: np.ndarray
    attrs: dict[str, str | int]

    @property
    def num_groups(self) -> int:
        """Patients or cases with an annotated entry."""
        return int(self.group.max()) + 1

    def scores(self, table: xr.DataArray) -> np.ndarray:
        """Return the probabilities (class, entry) of a table (case, class, ...).

        They have 12 digits: the order in which draws are summed up must not break a tie.
        """
        columns = np.moveaxis(table.values, table.get_axis_num("class"), 0)
        mantissa, power = np.frexp(columns.reshape(len(columns), -1)[:, self.seen])
        return np.ldexp(np.round(mantissa * 2.0**40), power - 40)

    def rankings(self, table: xr.DataArray, *, coarse: bool = False) -> list[Ranking]:
        """Rank the entries by the probability of every class in turn."""
        return [
            rank(score, self.label == index, self.group, coarse=coarse)
            for index, score in enumerate(self.scores(table))
        ]

    def mixture(self, figure: Figure) -> np.ndarray:
        """Return a figure of every class (class, ...) of the mean over draws."""
        return np.array([figure(*one.counts()) for one in self.rankings(self.source.mixture())])

    def draws(self, figure: Figure) -> np.ndarray:
        """Return it for every draw (chain, draw, class, ...)."""
        rows = [
            [figure(*one.counts()) for one in self.rankings(table)] for table in self.source.draws()
        ]
        found = np.array(rows)
        return found.reshape(*self.source.num_samples, *found.shape[1:])

    def resampled(self, figure: Figure, resamples: int, seed: int) -> np.ndarray:
        """Return it for resamples of the groups (resample, class, ...); none of a few groups."""
        rankings = self.rankings(self.source.mixture(), coarse=len(self.label) > MANY)
        rows = [
            [figure(*one.counts(weight)) for one in rankings]
            for weight in group_weights(self.num_groups, resamples, seed)
        ]
        return np.array(rows) if rows else np.empty((0, *self.mixture(figure).shape))


def open_entries(tree: Posterior, group: str | xr.DataArray | None) -> Entries:
    """Open the annotated entries of a tree.

    Args:
        tree: The tree of `predict` on labelled cases.
        group: As for `ppl_med.analysis.tree.case_units`.

    Raises:
        TypeError, ValueError: ``probs``, the labels or the groups are missing or malformed.
    """
    source = open_classes(tree)
    label = source.labels()
    counts = count_left_out(label)
    unit, name = case_units(tree, group, source.array)
    seen = known(label).values
    per_entry = np.broadcast_to(unit.reshape(-1, *(1,) * (label.ndim - 1)), label.shape)[seen]
    number = np.unique(per_entry, return_inverse=True)[1]
    about: dict[str, str | int] = {**counts, "unit": name, "num_units": int(number.max()) + 1}
    return Entries(source, seen.ravel(), label.values[seen], number, about)


def positive_class(source: Classes, positive: str | int | None) -> int | None:
    """Return the index of the class that figures of one class are of; None for a mean over all.

    Args:
        source: The tree's classes.
        positive: Name or index; None for the last of two classes, and all of three or more.

    Raises:
        ValueError: There is no such class.
    """
    names = source.names
    if positive is None:
        return 1 if len(names) == 2 else None
    if isinstance(positive, str) and positive in names:
        return names.index(positive)
    if is_whole(positive) and 0 <= int(positive) < len(names):
        return int(positive)
    reject("positive", f"the name of a class, one of {names}, or its index", positive)
