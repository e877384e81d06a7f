"""Bootstrap over cases: levels of resampled data sets, gathered block by block.

Every case enters a replicate a Poisson(1) number of times, with all its pixels, so that cases need
not be in memory together, and their number need not be known. Scores are rounded first, coarser
than for the figures themselves; the standard error does not feel it.

Source: Chamandy et al., "Estimating uncertainty for massive data streams", Google, 2012 (Poisson
bootstrap); Davison and Hinkley, Bootstrap Methods, 1997, section 3.8 (resampling of clusters).
"""

import numpy as np
from scipy import sparse

from ppl_med.analysis.selective.entries import Entries
from ppl_med.analysis.selective.levels import Levels, Table, join, round_off

_BITS = 7
_BULK = (0.05, 0.95)


class Replicates:
    """Levels (replicate, level) of scores, and of errors, under resampled cases.

    Args:
        number: Number of replicates.
        seed: Seed of the resampling.
    """

    def __init__(self, number: int, seed: int) -> None:
        self.number = number
        self._tables: dict[str, Table] = {}
        self._rng = np.random.default_rng(seed)
        self._first, self._weights = -1, np.zeros((0, number))
        self._least: dict[str, float] = {}

    def add(self, block: Entries) -> None:
        """Weigh the entries of a block by their cases."""
        if block.first != self._first:  # parts of one case share its weights
            size = (block.num_cases, self.number)
            self._first, self._weights = block.first, self._rng.poisson(1.0, size).astype(float)
        if not block.score.size:
            return
        for name, order in (("score", block.score), ("error", block.error)):
            table = self._weigh(self._coarse(name, order), block)
            known = self._tables.get(name)
            self._tables[name] = table if known is None else join(known, table)

    def levels(self, name: str) -> Levels:
        """Return the levels in the order of "score" or "error" (replicate, level).

        Replicates that no case has entered, as happens with a handful of cases, are left out.
        """
        levels = self._tables[name].levels
        filled = levels.number.sum(1) > 0
        return Levels(levels.number[filled], levels.total[filled])

    def _coarse(self, name: str, values: np.ndarray) -> np.ndarray:
        """Round, finest about the least value of the first block that is no outlier.

        Floating numbers lie as densely as they are near 0, so that an offset would do harm, and so
        would an outlier far below that stood there.
        """
        if name not in self._least:
            low, high = np.quantile(values, _BULK)
            self._least[name] = float(max(values.min(), low - (high - low)))
        return round_off(values - self._least[name], _BITS)

    def _weigh(self, order: np.ndarray, block: Entries) -> Table:
        value, level = np.unique(order, return_inverse=True)
        shape = (value.size, block.num_cases)
        sums = [
            np.asarray(sparse.coo_array((data, (level, block.case)), shape).tocsr() @ self._weights)
            for data in (np.ones(len(level)), block.error)
        ]
        return Table(value, Levels(sums[0].T, sums[1].T))
