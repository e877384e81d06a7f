"""How many test cases are covered, and how many should be: exact bands and p-values.

Cases that are exchangeable one by one: the Beta-binomial distribution given n and k, see
`order_statistics`. Cases of patients: whole patients are permuted between calibration and test, the
thresholds are learnt anew each time, and the coverages of these calibrations are the distribution.
It is exact given the scores of all cases where patients are exchangeable, and wider: two cases of
one patient are not two. Where thresholds hold within groups, patients change places with those who
have cases in the same groups.
"""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from ppl_med.analysis.conformal import order_statistics
from ppl_med.analysis.statistics.two_sample import PERMUTATIONS
from ppl_med.analysis.statistics.unit_permutations import check_units, memberships
from ppl_med.analysis.tree import count_left_out


def coverage_figures(
    hits: xr.DataArray,
    calibration: xr.Dataset,
    groups: xr.DataArray | None,
    score: xr.DataArray,
    units: np.ndarray | None = None,
) -> xr.Dataset:
    """Return the share of covered cases with what it should be.

    Args:
        hits: Which cases are covered (case): bool, or 1, 0 and NaN for no observation.
        calibration: From `thresholds.learn`.
        groups: Group of every test case, where ``n`` and ``k`` have groups.
        score: Scores of the observations of the test cases (case).
        units: Patients of the test cases (case,), where the calibration knows patients.

    Returns:
        ``covered``, ``coverage`` and, unless weights were used, ``coverage_expected``,
        ``coverage_lower`` and ``coverage_upper``; ``coverage_pvalue``, the probability that so few
        are covered, with weights by Kish's effective number of calibration cases or patients
        (approximate); attributes count cases and those left out.
    """
    seen = hits.notnull()
    kept = hits.values[seen.values]
    figures = {"coverage": float(kept.mean()) if kept.size else np.nan}
    note = "99 % band of the Beta-binomial distribution given n, k"
    own = None if units is None else units[seen.values]
    part = None if groups is None else groups[seen.values]
    if not kept.size:
        pass
    elif "k" not in calibration:
        figures |= _effective(kept, calibration, own)
    elif _several(calibration, own):
        figures |= _by_unit(figures["coverage"], score.values[seen.values], calibration, own, part)
        note = "99 % band of permuted patients"
    else:
        parts = group_counts(calibration, kept.size, part)
        figures["coverage_expected"] = order_statistics.expected_coverage(parts)
        lower, upper = order_statistics.joint_band(parts)
        figures |= {"coverage_lower": lower, "coverage_upper": upper}
        figures["coverage_pvalue"] = order_statistics.coverage_pvalue(parts, int(kept.sum()))
    result = xr.Dataset({"covered": hits, **figures}, attrs=count_left_out(seen, empty=True))
    for name in figures:
        result[name].attrs["units"] = "probability"
    for name in {"coverage_lower", "coverage_upper"} & set(figures):
        result[name].attrs["note"] = note
    return result


def group_counts(
    calibration: xr.Dataset, num_test: int, groups: xr.DataArray | None
) -> list[tuple[int, int, int]]:
    """Return test cases, n and k of every group that has test cases."""
    if "group" not in calibration["n"].dims:
        return [(num_test, int(calibration["n"]), int(calibration["k"]))]
    assert groups is not None
    names, counts = np.unique(groups.values, return_counts=True)
    chosen = calibration[["n", "k"]].sel(group=names)
    triples = zip(counts, chosen["n"].values, chosen["k"].values, strict=True)
    return [(int(m), int(n), int(k)) for m, n, k in triples]


def _several(calibration: xr.Dataset, units: np.ndarray | None) -> bool:
    """Whether some patient has several cases."""
    if "case_unit" not in calibration or units is None:
        return False
    own = calibration["case_unit"].values
    return check_units(own, units, (own, units)) is not None


def _by_unit(
    coverage: float,
    score: np.ndarray,
    calibration: xr.Dataset,
    units: np.ndarray | None,
    groups: xr.DataArray | None,
) -> dict[str, float]:
    """Expected coverage, band and p-value of permuted patients."""
    assert units is not None
    pair = (calibration["case_unit"].values.astype(str), units)
    strata = None
    if groups is not None:
        strata = (calibration["case_group"].values, groups.values)
    scores = np.concatenate([calibration["score"].values, score])
    blocks = list(_coverages(scores, pair, strata, float(calibration["alpha"])))
    found = np.sort(np.concatenate(blocks[1:]))
    tail = int((1 - order_statistics.LEVEL) / 2 * (1 + len(found))) - 2
    few = int(np.searchsorted(found, coverage + 1e-9, "right"))
    return {
        "coverage_expected": float(found.mean()),
        "coverage_lower": float(found[tail]),
        "coverage_upper": float(found[-1 - tail]),
        "coverage_pvalue": (1 + few) / (1 + len(found)),
    }


def _coverages(
    scores: np.ndarray,
    units: tuple[np.ndarray, np.ndarray],
    strata: tuple[np.ndarray, np.ndarray] | None,
    alpha: float,
) -> Iterator[np.ndarray]:
    """Yield coverages (permutation,), thresholds learnt anew; the observed one first."""
    names = np.zeros(len(scores), np.int64)
    if strata is not None:
        names = np.unique(np.concatenate(strata), return_inverse=True)[1]
    parts = []
    for one in range(names.max() + 1):
        rows = np.flatnonzero(names == one)
        rows = rows[np.argsort(scores[rows], kind="stable")]
        ends = np.searchsorted(scores[rows], scores[rows], "right") - 1  # the last of equal scores
        ranks = [order_statistics.coverage_rank(number, alpha) for number in range(len(rows) + 1)]
        parts.append((rows, ends, np.array(ranks)))
    for is_test in memberships(units, PERMUTATIONS, 0, strata=strata):
        covered = np.zeros(len(is_test))
        for rows, ends, rank_of in parts:
            below = (~is_test[:, rows]).cumsum(1)  # calibration cases up to here
            rank = rank_of[below[:, -1]]
            place = ends[(below >= rank[:, None]).argmax(1)]
            place = np.where(rank > below[:, -1], len(rows) - 1, place)
            covered += place + 1 - np.take_along_axis(below, place[:, None], 1)[:, 0]
        yield covered / is_test.sum(1)


def _effective(
    kept: np.ndarray, calibration: xr.Dataset, units: np.ndarray | None
) -> dict[str, float]:
    """P-value of the coverage by effective numbers of weighted cases, or of patients."""
    number, total = float(calibration["effective_n"]), float(kept.size)
    if units is not None and "case_unit" in calibration:
        number = _kish(calibration["weight"].values, calibration["case_unit"].values)
        total = _kish(np.ones(kept.size), units)
    size, num_test = max(1, int(number)), max(1, int(total))
    rank = order_statistics.coverage_rank(size, float(calibration["alpha"]))
    covered = int(np.ceil(kept.mean() * num_test - 1e-9))
    return {"coverage_pvalue": order_statistics.coverage_pvalue([(num_test, size, rank)], covered)}


def _kish(weights: np.ndarray, units: np.ndarray) -> float:
    """Effective number of units, all cases of which count as one."""
    total = np.bincount(np.unique(units, return_inverse=True)[1], weights)
    return float(total.sum() ** 2 / (total**2).sum())
