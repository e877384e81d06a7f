"""Are two samples drawn alike? Tests whose p-values hold at any size of sample.

    kolmogorov_smirnov   the distribution of every feature, Bonferroni over them
    mmd                  the joint distribution, by a Gaussian kernel and permutations
    classifier_test      whether a classifier tells held-out cases of the two apart

Cases of one patient are alike, so that they are no independent evidence: where ``units`` say whose
the cases are, whole units are permuted between the samples, never single cases.

Sources: Gretton et al., JMLR 13, 2012 (MMD); Lopez-Paz and Oquab, ICLR 2017, arXiv:1610.06545
(classifier test).
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist, squareform
from scipy.stats import hypergeom, ks_2samp, kstwo, kstwobign
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ppl_med import checks
from ppl_med.analysis.statistics.unit_permutations import (
    Comparison,
    Units,
    check_units,
    permuted,
)

PERMUTATIONS = 1999
_EXACT = 500**2  # pairs of a case of each sample, beyond which the asymptotic distribution is used


def kolmogorov_smirnov(
    first: np.ndarray,
    second: np.ndarray,
    *,
    units: Units | None = None,
    weights: np.ndarray | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Comparison:
    """Compare the distribution of every feature.

    The p-value is the smallest one times the number of features (Bonferroni). Where a unit has
    several cases, the largest distance is compared with those of permuted units instead.

    Args:
        first: (case, feature).
        second: (case, feature), other cases; NaN where a feature is not known.
        units: Patients of the cases, which no patient of the other sample is among; None for
            independent cases.
        weights: Likelihood ratio second / first (case), by which the first sample is weighted. The
            test is then asymptotic, with Kish's effective number, in which a patient counts once.
        permutations: Of the units.
        seed: Of the permutations.

    Returns:
        The largest distance of two distribution functions, and the p-value; 0 and 1 where a sample
        is empty.

    Raises:
        ValueError: Other numbers of features or units, a unit in both samples; NaN in the first.
    """
    first, second = _samples(first, second)
    if np.isnan(first).any():
        raise ValueError("first holds NaN; leave those cases out, or pass them as second.")
    names = check_units(first, second, units)
    if not len(first) or not len(second):
        return Comparison(0.0, 1.0)
    if weights is not None:
        return _weighted(first, second, weights / weights.sum(), names)
    if names is None:
        return _by_case(first, second)
    values = np.concatenate([first, second])
    patterns, which = np.unique(~np.isnan(values), axis=1, return_inverse=True)
    found = []
    for number, known in enumerate(patterns.T):
        own, inside = values[known][:, which == number], known[len(first) :]
        if not inside.any():
            found.append(Comparison(0.0, 1.0))
            continue
        distances = _distances(own)
        parts = names[0][known[: len(first)]], names[1][inside]
        found.append(permuted(distances, parts, permutations, seed))
    smallest = min(one.pvalue for one in found)
    return Comparison(max(one.statistic for one in found), min(1.0, smallest * len(found)))


def mmd(
    first: np.ndarray,
    second: np.ndarray,
    *,
    units: Units | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Comparison:
    """Compare the joint distribution of the features: squared maximum mean discrepancy, unbiased.

    The kernel is exp(-d^2 / (2 m^2)), m the median distance of all pairs of cases. Distances count
    features as they are: scale them before.

    Args:
        first: (case, feature).
        second: (case, feature), other cases.
        units: Patients of the cases; pairs of cases of one patient are left out. None for
            independent cases.
        permutations: Of the units, 500 or more for a p-value of use.
        seed: Of the permutations.

    Returns:
        The squared discrepancy, which may be negative, and its p-value by permutation.

    Raises:
        ValueError: Malformed samples or units; fewer than two units in either.

    Note:
        Memory grows with the square of the number of cases.
    """
    first, second = _samples(first, second, finite=True)
    names = check_units(first, second, units)
    if names is None:
        names = np.arange(len(first)), len(first) + np.arange(len(second))
    for name, own in zip(("first", "second"), names, strict=True):
        if len(np.unique(own)) < 2:
            checks.reject(name, "of two units or more", len(np.unique(own)))
    return permuted(
        _discrepancies(np.concatenate([first, second]), np.concatenate(names)),
        names,
        permutations,
        seed,
    )


def classifier_test(
    first: np.ndarray,
    second: np.ndarray,
    *,
    units: Units | None = None,
    classifier: Any = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Comparison:
    """Learn to tell the samples apart on one half of the units, and try it on the other half.

    Args:
        first: (case, feature).
        second: (case, feature), other cases.
        units: Patients of the cases, which stay in one half; None for independent cases.
        classifier: With ``fit`` and ``predict``, of scikit-learn; None for logistic regression of
            standardised features with equal weights of the samples.
        permutations: Of the units, where a unit has several cases.
        seed: Of the halves and permutations.

    Returns:
        Accuracy on the held-out half, mean of the two samples (0.5: not told apart), and its
        p-value: of Fisher's exact test, or by permutation where units have several cases.

    Raises:
        ValueError: Malformed samples or units; fewer than four units in either.
    """
    first, second = _samples(first, second, finite=True)
    names = check_units(first, second, units)
    parts = (np.arange(len(first)), np.arange(len(second))) if names is None else names
    random = np.random.default_rng(checks.whole("seed", seed, least=0))
    held = []
    for name, own in zip(("first", "second"), parts, strict=True):
        members = random.permutation(np.unique(own))
        if len(members) < 4:
            checks.reject(name, "of four units or more", len(members))
        held.append(np.isin(own, members[: len(members) // 2]))
    if classifier is None:
        classifier = make_pipeline(
            StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)
        )
    counts = int((~held[0]).sum()), int((~held[1]).sum())
    classifier.fit(np.concatenate([first[~held[0]], second[~held[1]]]), np.repeat([0, 1], counts))
    called = np.concatenate(
        [classifier.predict(first[held[0]]), classifier.predict(second[held[1]])]
    )
    called = called == 1
    sizes = int(held[0].sum()), int(held[1].sum())

    def accuracy(is_second: np.ndarray) -> np.ndarray:
        number = is_second.sum(1)
        hits = (is_second & called).sum(1) / number
        return 0.5 * (hits + (~is_second & ~called).sum(1) / (len(called) - number))

    if names is not None:
        tried = names[0][held[0]], names[1][held[1]]
        return permuted(accuracy, tried, permutations, seed + 1)
    hits = int(called[sizes[0] :].sum())
    pvalue = hypergeom.sf(hits - 1, len(called), int(called.sum()), sizes[1])
    observed = np.repeat([[False, True]], sizes, axis=1)
    return Comparison(float(accuracy(observed)[0]), min(1.0, float(pvalue)))


def _samples(
    first: np.ndarray, second: np.ndarray, *, finite: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for name, values in (("first", first), ("second", second)):
        array = np.asarray(values, np.float64)
        if array.ndim != 2 or not array.shape[1]:
            checks.reject(name, "of shape (case, feature)", array.shape)
        if finite and not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinite values; leave those cases out.")
        arrays.append(array)
    if arrays[0].shape[1] != arrays[1].shape[1]:
        checks.reject("second", f"of {arrays[0].shape[1]} features as first", arrays[1].shape)
    return arrays[0], arrays[1]


def _by_case(first: np.ndarray, second: np.ndarray) -> Comparison:
    distances, found = [0.0], []
    for one, other in zip(first.T, second.T, strict=True):
        other = other[~np.isnan(other)]
        test = _by_distance(one, other) if other.size else Comparison(0.0, 1.0)
        distances.append(test.statistic)
        found.append(test.pvalue)
    return Comparison(max(distances), min(1.0, min(found) * len(found)))


def _by_distance(first: np.ndarray, second: np.ndarray) -> Comparison:
    """Of single cases: exact for few, else of the distribution that ``ks_2samp`` takes for many.

    That one gives 0 to a single case that is beyond all others, however few these are.
    """
    sizes = first.size, second.size
    if sizes[0] * sizes[1] <= _EXACT:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "ks_2samp: Exact calculation unsuccessful")
            test = ks_2samp(first, second, method="exact")
        return Comparison(float(test.statistic), float(test.pvalue))
    distance = _distance(first, second)
    return Comparison(distance, float(kstwo.sf(distance, round(sizes[0] * sizes[1] / sum(sizes)))))


def _distance(first: np.ndarray, second: np.ndarray, share: np.ndarray | None = None) -> float:
    """Largest distance of the distribution functions of two samples (case,).

    ``share`` are weights of the first, which sum to 1; None for equal ones.
    """
    order = None if share is None else np.argsort(first, kind="stable")
    values = np.concatenate([np.sort(first) if order is None else first[order], np.sort(second)])
    merged = np.argsort(values, kind="stable")  # takes two sorted parts as they are
    ordered = values[merged]
    ends = np.flatnonzero(np.append(ordered[1:] > ordered[:-1], True))
    inside = (merged < first.size).cumsum()[ends]
    if share is None:
        below = inside / first.size
    else:
        below = np.concatenate([[0.0], share[order].cumsum()])[inside]
    return float(np.abs(below - (ends + 1 - inside) / second.size).max())


def _weighted(
    first: np.ndarray, second: np.ndarray, share: np.ndarray, units: Units | None
) -> Comparison:
    """Of a Kolmogorov-Smirnov test, asymptotic; ``share`` sums to 1 over the first sample."""
    distances, found = [0.0], []
    for one, other in zip(first.T, second.T, strict=True):
        known = ~np.isnan(other)
        if not known.any():
            found.append(1.0)
            continue
        largest = _distance(one, other[known], share)
        equal = np.full(known.sum(), 1 / known.sum())
        numbers = [
            _effective(share, None if units is None else units[0]),
            _effective(equal, None if units is None else units[1][known]),
        ]
        size = numbers[0] * numbers[1] / sum(numbers)
        distances.append(largest)
        found.append(float(kstwobign.sf(size**0.5 * largest)))
    return Comparison(max(distances), min(1.0, min(found) * len(found)))


def _effective(share: np.ndarray, units: np.ndarray | None) -> float:
    """Kish's effective number; all cases of a unit count as one, the most they can be alike."""
    if units is not None:
        share = np.bincount(np.unique(units, return_inverse=True)[1], share)
    return float(1 / (share**2).sum())


def _distances(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Largest distance over the features of ``values`` (case, feature)."""
    order = np.argsort(values, axis=0, kind="stable")
    ordered = np.take_along_axis(values, order, 0)
    last = np.concatenate([ordered[1:] > ordered[:-1], np.ones((1, values.shape[1]), bool)])

    def largest(is_second: np.ndarray) -> np.ndarray:
        number = is_second.sum(1, keepdims=True)
        found = np.zeros(len(is_second))
        for feature in range(values.shape[1]):
            ends = np.flatnonzero(last[:, feature])
            inside = is_second[:, order[:, feature]].cumsum(1)[:, ends]
            apart = inside / number - (ends + 1 - inside) / (len(values) - number)
            found = np.maximum(found, np.abs(apart).max(1))
        return found

    return largest


def _discrepancies(values: np.ndarray, units: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Squared discrepancy of ``values`` (case, feature), without pairs of one unit."""
    square = pdist(values, "sqeuclidean")
    middle = float(np.median(square))
    middle = middle if middle > 0 else float(square.mean())  # more than half of the pairs are equal
    kernel = squareform(np.exp(-square / (2 * middle)) if middle > 0 else np.ones_like(square))
    index = np.unique(units, return_inverse=True)[1]
    kernel[index[:, None] == index] = 0.0
    total, rows = kernel.sum(), kernel.sum(1)
    of_unit = np.bincount(index)[index].astype(np.float64)  # summed over cases: squared sizes

    def squared(is_second: np.ndarray) -> np.ndarray:
        chosen = is_second.astype(np.float64)
        number = chosen.sum(1)
        inside = ((chosen @ kernel) * chosen).sum(1)
        across = chosen @ rows - inside
        outside = total - 2 * across - inside
        others = len(values) - number
        pairs = number**2 - chosen @ of_unit
        other_pairs = others**2 - (1 - chosen) @ of_unit
        return outside / other_pairs + inside / pairs - 2 * across / (number * others)

    return squared
