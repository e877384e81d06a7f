"""Permutation of whole units, such as patients, between two samples.

A p-value is (1 + number of permutations at least as extreme) / (1 + number of permutations): at most
a with probability at most a where the units are exchangeable, however few they are and whatever the
statistic.

Source: Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 9, 2010.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np

from ppl_med import checks

_BLOCK = 256  # permutations at a time
_ROUNDING = 1e-9  # statistics closer than this share are ties

Units: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Whose the cases of the first and of the second sample are, (case,) each."""


class Comparison(NamedTuple):
    """Result of a test.

    Attributes:
        statistic: Larger is more unlike.
        pvalue: Probability, at most 1.
    """

    statistic: float
    pvalue: float


def check_units(first: np.ndarray, second: np.ndarray, units: Units | None) -> Units | None:
    """Return the names of units as text; None where every unit has a single case.

    Raises:
        ValueError: Units of other numbers of cases, or one that stands in both samples.
    """
    if units is None:
        return None
    sizes = [len(one) for one in units]
    if sizes != [len(first), len(second)]:
        checks.reject("units", f"of {len(first)} and {len(second)} cases", sizes)
    names = [np.asarray(one).astype(str) for one in units]
    shared = np.intersect1d(names[0], names[1])
    if shared.size:
        raise ValueError(
            f"units: {shared.size} stand in both samples, e.g. {str(shared[0])!r}; split by "
            "patient, so that each belongs to one sample."
        )
    if all(len(np.unique(one)) == len(one) for one in names):
        return None
    return names[0], names[1]


def permuted(
    statistic: Callable[[np.ndarray], np.ndarray], units: Units, permutations: int, seed: int
) -> Comparison:
    """Compare a statistic with that of permuted units.

    Args:
        statistic: From (permutation, case), true for cases of the second sample, which come after
            those of the first, to (permutation,).
        units: Whose the cases are.
        permutations: How many.
        seed: Of the permutations.
    """
    checks.whole("permutations", permutations)
    blocks = _memberships(units, permutations, checks.whole("seed", seed, least=0))
    values = np.concatenate([statistic(block) for block in blocks])
    close = _ROUNDING * max(np.abs(values).max(), 1e-300)
    extreme = int((values[1:] >= values[0] - close).sum())
    return Comparison(float(values[0]), (1 + extreme) / (1 + permutations))


def _memberships(units: Units, permutations: int, seed: int) -> Iterator[np.ndarray]:
    """Yield who is in the second sample (permutation, case), first as it was observed."""
    names, index = np.unique(np.concatenate(units), return_inverse=True)
    observed = np.zeros(len(names), bool)
    observed[index[len(units[0]) :]] = True
    yield observed[index][None]
    random = np.random.default_rng(seed)
    for at in range(0, permutations, _BLOCK):
        again = np.tile(observed, (min(_BLOCK, permutations - at), 1))
        yield random.permuted(again, axis=1)[:, index]
