"""Do two samples of features have the same means and lie as far from their centre? By permutation.

Features of a layer are many and correlated. They are reduced without regard to the sample a case is
of, by all cases together, which keeps a permutation test exact: standardised, then turned to their
principal directions. Compared are

    the mean in the 8 and in the 32 leading directions, each of variance 1 (Hotelling's T squared)
    the mean log distance from the centre within them (Mahalanobis) and outside them

and the largest of these, over all layers, counts; see `unit_permutations.permuted`. Means find
images made worse, distances what no case of the other sample resembles.

Sources: Hotelling, Annals of Mathematical Statistics 2, 1931; Rabanser, Guennemann and Lipton,
NeurIPS 2019, arXiv:1810.11953 (tests after a reduction of dimension).
"""

from collections.abc import Sequence

import numpy as np
from scipy.linalg import eigh

from ppl_med.analysis.statistics.two_sample import PERMUTATIONS
from ppl_med.analysis.statistics.unit_permutations import (
    Comparison,
    Units,
    check_units,
    permuted,
)

LEADING = (8, 32)
"""Numbers of leading directions."""
_CUT = 1e-9  # of the largest eigenvalue, and of the squared length of a case
_RESOLUTION = 1e-7  # of float32: a feature that varies less than this share of it is constant
_CASES_PER_DIRECTION = 4


def principal_coordinates(
    values: np.ndarray, most: int = LEADING[-1]
) -> tuple[np.ndarray, np.ndarray]:
    """Reduce features to their leading directions and to what lies outside.

    Args:
        values: (case, feature), finite. Features that do not vary count for nothing.
        most: Directions at most; one for four cases at most.

    Returns:
        Coordinates (case, direction) of mean 0 and variance 1, and the length (case,) outside the
        directions, in standard deviations of a feature.
    """
    centred = values - values.mean(0)
    scale = centred.std(0)
    varies = scale > _RESOLUTION * np.abs(values).max(0)
    centred = centred[:, varies] / scale[varies]
    cases, features = centred.shape
    if not features:
        return np.zeros((cases, 0)), np.zeros(cases)
    wide = features > cases
    square = centred @ centred.T if wide else centred.T @ centred
    number = min(most, max(1, cases // _CASES_PER_DIRECTION), len(square))
    eigenvalues, vectors = eigh(square, subset_by_index=(len(square) - number, len(square) - 1))
    number = int((eigenvalues > _CUT * eigenvalues[-1]).sum())
    kept, eigenvalues = vectors[:, : -number - 1 : -1], eigenvalues[: -number - 1 : -1]
    unit = kept if wide else centred @ kept / np.sqrt(eigenvalues)  # columns of length 1
    total = (centred**2).sum(1)
    rest = total - (unit**2 * eigenvalues).sum(1)
    return unit * np.sqrt(cases), np.sqrt(np.where(rest > _CUT * total, rest, 0.0))


def distances(coordinates: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Log lengths (case, 1 or 2) within the directions and, where there is any, outside."""
    columns = [np.sqrt((coordinates**2).sum(1)), rest]
    kept = [column for column in columns if column.std() > _RESOLUTION * column.max(initial=0.0)]
    logs = [np.log(np.maximum(column, _RESOLUTION * column.max())) for column in kept]
    return np.stack(logs, 1) if logs else np.zeros((len(rest), 0))


def principal_shift(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    *,
    units: Units | None = None,
    strata: Units | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Comparison:
    """Compare features of one layer or several.

    Args:
        first: Features of every layer, each (case, feature).
        second: The same of other cases.
        units: Patients of the cases of both samples; None for independent cases.
        strata: Groups within which the samples are compared; their shares may differ.
        permutations: Of the units.
        seed: Of the permutations.

    Returns:
        The largest of the statistics, in standard deviations over permutations, and the p-value;
        0 and 1 where a sample is empty.

    Raises:
        ValueError: A unit in both samples.
    """
    sizes = len(first[0]), len(second[0])
    if not min(sizes):
        return Comparison(0.0, 1.0)
    units = check_units(first[0], second[0], units)
    if units is None:
        units = np.arange(sizes[0]), sizes[0] + np.arange(sizes[1])
    names = np.zeros(sum(sizes), np.int64)
    if strata is not None:
        names = np.unique(np.concatenate(strata), return_inverse=True)[1]
    blocks = []
    for one, other in zip(first, second, strict=True):
        coordinates, rest = principal_coordinates(np.concatenate([one, other]).astype(np.float64))
        whitened = principal_coordinates(distances(coordinates, rest))[0]
        leading = [coordinates[:, :number] for number in LEADING if number < LEADING[-1]]
        blocks += [*leading, coordinates, whitened]
    parts = [
        (rows, block[rows] - block[rows].mean(0))
        for rows in (np.flatnonzero(names == one) for one in range(names.max() + 1))
        for block in blocks
    ]

    def lengths(is_second: np.ndarray) -> np.ndarray:
        """Squared distance of the means by that of their variance (permutation, part)."""
        found = []
        for rows, centred in parts:
            chosen = is_second[:, rows].astype(np.float64)
            number = chosen.sum(1)
            weight = number * (len(rows) - number) / len(rows)
            apart = ((chosen @ centred) ** 2).sum(1)
            found.append(apart / np.where(weight > 0, weight, np.inf))
        return np.stack(found, 1)

    return permuted(lengths, units, permutations, seed, strata=strata)
