"""Permutation of whole units, such as patients, between two samples.

Within strata, units change places only with units that have cases in the same strata: what is then
tested is whether the samples are alike apart from the shares of the strata.

A p-value is (1 + number of permutations at least as extreme) / (1 + number of permutations): at
most a with probability at most a where the units are exchangeable, however few they are and
whatever the statistic.

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
    statistic: Callable[[np.ndarray], np.ndarray],
    units: Units,
    permutations: int,
    seed: int,
    *,
    strata: Units | None = None,
) -> Comparison:
    """Compare a statistic, or the most extreme of several, with that of permuted units.

    Several statistics are put on one scale by their means and standard deviations over all
    permutations, the observed one among them, and the largest counts. So the p-value is one of all.

    Args:
        statistic: From (permutation, case), true for cases of the second sample, which come after
            those of the first, to (permutation,) or (permutation, statistic).
        units: Whose the cases are.
        permutations: How many.
        seed: Of the permutations.
        strata: Names of the strata of the cases of both samples.
    """
    blocks = memberships(units, permutations, seed, strata=strata)
    values = np.concatenate([statistic(block) for block in blocks])
    if values.ndim == 2:
        spread = values.std(0)
        values = ((values - values.mean(0)) / np.where(spread > 0, spread, np.inf)).max(1)
    close = _ROUNDING * max(np.abs(values).max(), 1e-300)
    extreme = int((values[1:] >= values[0] - close).sum())
    return Comparison(float(values[0]), (1 + extreme) / (1 + permutations))


def memberships(
    units: Units, permutations: int, seed: int, *, strata: Units | None = None
) -> Iterator[np.ndarray]:
    """Yield who is in the second sample (permutation, case), first as it was observed.

    Args:
        units: Whose the cases are.
        permutations: How many, besides the observed one.
        seed: Of the permutations.
        strata: Names of the strata of the cases of both samples.
    """
    checks.whole("permutations", permutations)
    random = np.random.default_rng(checks.whole("seed", seed, least=0))
    names, index = np.unique(np.concatenate(units), return_inverse=True)
    observed = np.zeros(len(names), bool)
    observed[index[len(units[0]) :]] = True
    parts = [np.arange(len(names))]
    if strata is not None:
        which = np.unique(np.concatenate(strata), return_inverse=True)[1]
        table = np.zeros((len(names), which.max(initial=0) + 1), bool)
        table[index, which] = True
        kind = np.unique(table, axis=0, return_inverse=True)[1].reshape(-1)
        parts = [np.flatnonzero(kind == one) for one in range(kind.max(initial=0) + 1)]
    yield observed[index][None]
    for at in range(0, permutations, _BLOCK):
        again = np.tile(observed, (min(_BLOCK, permutations - at), 1))
        for part in parts:
            again[:, part] = random.permuted(again[:, part], axis=1)
        yield again[:, index]
