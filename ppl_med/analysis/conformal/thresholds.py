"""Learning a threshold from calibration scores and applying it: groups, weights, coverage.

A calibration is a Dataset: ``threshold``, ``n``, ``k`` (scalars, or over ``group``), ``alpha``,
``score`` (case), ``features`` (case, feature) for the test of shift, and, where
asked for, ``case_group`` (case) and ``weight`` (case).

Scores of cases without an observation are NaN: such cases do not calibrate, and do not count in
the coverage. Their group by class is "".
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.conformal import order_statistics, shift
from ppl_med.analysis.tree import (
    Classes,
    Posterior,
    case_coords,
    case_weights,
    count_left_out,
    known,
    metadata_groups,
)

_CALIBRATION = {"alpha", "n", "score", "features"}


def learn(
    score: xr.DataArray,
    alpha: float,
    *,
    features: xr.DataArray | None = None,
    groups: xr.DataArray | None = None,
    names: list[str] | None = None,
    weights: xr.DataArray | None = None,
) -> xr.Dataset:
    """Return the thresholds of calibration scores.

    Args:
        score: Nonconformity scores of the observations (case), with ids; NaN where there is none.
        alpha: Miss rate, in (0, 1).
        features: What the test of shift compares (case, feature).
        groups: Group of every case (case); one threshold each.
        names: The groups there must be; by default those that occur.
        weights: Likelihood ratio test / calibration of every case (case).

    Returns:
        Dataset as the module describes it, of the cases with an observation; attributes count
        those left out.

    Raises:
        TypeError, ValueError: Scores or weights that are not finite, a group without cases, or
            groups and weights together.
    """
    if np.isinf(score.values).any():
        raise ValueError("Some calibration scores are infinite; drop those cases.")
    values = None if weights is None else case_weights(weights, score)
    seen = known(score)
    result = xr.Dataset(
        {"score": ("case", score.values), "alpha": float(alpha)},
        case_coords(score),
        count_left_out(seen),
    )
    if features is not None:
        result["features"] = features.variable
    if groups is not None:
        result["case_group"] = ("case", groups.values)
    if values is not None:
        result["weight"] = ("case", values)
    result = result if seen.all() else result.isel(case=np.flatnonzero(seen))
    if values is not None:
        if groups is not None:
            raise ValueError("Give within or weights, not both.")
        return _weighted(result)
    if groups is None:
        num_cases = result.sizes["case"]
        rank = order_statistics.coverage_rank(num_cases, alpha)
        threshold = float(order_statistics.kth_smallest(result["score"].values, rank))
        return result.assign({"threshold": threshold, "n": num_cases, "k": rank})
    return _grouped(result, names)


def _weighted(result: xr.Dataset) -> xr.Dataset:
    values = result["weight"].values
    size = values.sum() ** 2 / (values**2).sum()
    result = result.assign(n=len(values), effective_n=float(size))
    result["effective_n"].attrs["note"] = "Kish's effective size of the weighted calibration cases"
    return result


def _grouped(result: xr.Dataset, names: list[str] | None) -> xr.Dataset:
    groups = result["case_group"].values
    names = sorted(set(groups.tolist())) if names is None else names
    parts = [result["score"].values[groups == name] for name in names]
    empty = [name for name, part in zip(names, parts, strict=True) if not part.size]
    if empty:
        raise ValueError(
            f"No calibration case in the group(s) {empty}: there is no threshold for them. Add "
            "cases, merge groups, or calibrate without within."
        )
    alpha = float(result["alpha"])
    sizes = [part.size for part in parts]
    ranks = [order_statistics.coverage_rank(size, alpha) for size in sizes]
    found = [
        float(order_statistics.kth_smallest(part, rank))
        for part, rank in zip(parts, ranks, strict=True)
    ]
    return result.assign(
        threshold=("group", found), n=("group", sizes), k=("group", ranks)
    ).assign_coords(group=names)


def check_calibration(calibration: xr.Dataset, made_by: str) -> None:
    """Raise unless a calibration is a Dataset that ``made_by`` returned."""
    if not isinstance(calibration, xr.Dataset) or not set(calibration) >= _CALIBRATION:
        raise TypeError(f"calibration must be the Dataset that conformal.{made_by} returned.")


def class_groups(classes: Classes, label: xr.DataArray) -> xr.DataArray:
    """Return the name of the observed class of every case, "" where there is none."""
    return xr.DataArray(np.array([*classes.names, ""])[label.values], dims="case")


def within_name(within: str | xr.DataArray | None) -> str:
    """Return what a calibration remembers of its groups."""
    return within if isinstance(within, str) else "" if within is None else "array"


def test_groups(
    calibration: xr.Dataset,
    tree: Posterior,
    within: xr.DataArray | None,
    array: xr.DataArray,
    by_class: xr.DataArray | None = None,
) -> xr.DataArray | None:
    """Return the group of every test case (case); None where there are none or are not known.

    Args:
        calibration: From `learn`, with the attribute ``within``.
        tree: The tree of the test cases.
        within: Groups (case), where the calibration was given an array of groups.
        array: What the cases must agree with.
        by_class: Groups by the observed class, where it is known.

    Raises:
        TypeError, ValueError: Groups given to one side only, malformed, or without a threshold.
    """
    kind = calibration.attrs["within"]
    if (kind == "array") != (within is not None):
        raise ValueError(
            "within must be given here exactly where the calibration was given an array of groups; "
            f"it was given {kind or None!r}."
        )
    if kind in ("", "class"):
        return by_class if kind else None
    groups = metadata_groups(tree, kind if within is None else within, array, "within")
    check_groups(calibration, groups)
    return groups


def per_case(
    calibration: xr.Dataset,
    test: xr.DataArray,
    *,
    groups: xr.DataArray | None = None,
    weights: xr.DataArray | None = None,
) -> xr.DataArray:
    """Return the threshold of every test case (case), or a scalar where all share it.

    Args:
        calibration: From `learn`.
        test: Any array over the test cases.
        groups: Group of every test case, where the calibration has groups.
        weights: Likelihood ratios of the test cases, where the calibration has weights.

    Raises:
        TypeError, ValueError: Weights missing or malformed, or a group without a threshold.
    """
    if ("weight" in calibration) != (weights is not None):
        raise ValueError(
            "weights must be given to both the calibration and the prediction, or to neither."
        )
    if weights is not None:
        values = order_statistics.weighted_threshold(
            calibration["score"].values,
            calibration["weight"].values,
            case_weights(weights, test),
            float(calibration["alpha"]),
        )
        return xr.DataArray(values, dims="case")
    if groups is None:
        return calibration["threshold"].reset_coords(drop=True)
    check_groups(calibration, groups)
    return calibration["threshold"].sel(group=groups).drop_vars("group")


def check_groups(calibration: xr.Dataset, groups: xr.DataArray) -> None:
    """Raise where a test case is of a group without a threshold."""
    unknown = sorted(set(groups.values.tolist()) - set(calibration["group"].values.tolist()))
    if unknown:
        raise ValueError(
            f"The test cases have the group(s) {unknown}, the calibration only "
            f"{calibration['group'].values.tolist()}: no threshold holds for them. Calibrate "
            "with cases of every group."
        )


def coverage_figures(
    hits: xr.DataArray, calibration: xr.Dataset, groups: xr.DataArray | None
) -> xr.Dataset:
    """Return the share of covered cases with what it should be.

    Args:
        hits: Which cases are covered (case): bool, or 1, 0 and NaN for no observation.
        calibration: Anything with ``n`` and ``k``.
        groups: Group of every test case, where ``n`` and ``k`` have groups.

    Returns:
        ``covered``, ``coverage`` and, unless weights were used, ``coverage_expected``,
        ``coverage_lower`` and ``coverage_upper``; ``coverage_pvalue``, the probability that so few
        are covered, with weights by Kish's effective number of calibration cases (approximate);
        attributes count cases and those left out.
    """
    seen = hits.notnull()
    kept = hits.values[seen.values]
    figures = {"coverage": float(kept.mean()) if kept.size else np.nan}
    if "k" in calibration and kept.size:
        groups = None if groups is None else groups[seen.values]
        parts = group_counts(calibration, kept.size, groups)
        figures["coverage_expected"] = order_statistics.expected_coverage(parts)
        lower, upper = order_statistics.joint_band(parts)
        figures |= {"coverage_lower": lower, "coverage_upper": upper}
        figures["coverage_pvalue"] = order_statistics.coverage_pvalue(parts, int(kept.sum()))
    elif "effective_n" in calibration and kept.size:
        number = max(1, int(calibration["effective_n"]))
        rank = order_statistics.coverage_rank(number, float(calibration["alpha"]))
        parts = [(kept.size, number, rank)]
        figures["coverage_pvalue"] = order_statistics.coverage_pvalue(parts, int(kept.sum()))
    result = xr.Dataset({"covered": hits, **figures}, attrs=count_left_out(seen, empty=True))
    for name in figures:
        result[name].attrs["units"] = "probability"
    for name in {"coverage_lower", "coverage_upper"} & set(figures):
        result[name].attrs["note"] = "99 % band of the Beta-binomial distribution given n, k"
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


def carried(calibration: xr.Dataset) -> xr.Dataset:
    """Return what every result repeats of its calibration: n, k, thresholds, attributes."""
    names = [name for name in ("n", "k", "effective_n", "threshold") if name in calibration]
    kept = calibration[names]
    return kept.drop_vars([name for name in kept.coords if name != "group"])


def shift_check(
    calibration: xr.Dataset,
    feature: xr.DataArray,
    score: xr.DataArray | None,
    groups: xr.DataArray | None,
    false_alarm: float,
    coverage_pvalue: xr.DataArray | None = None,
) -> xr.DataArray:
    """Return the p-value of the tests of shift; NaN where the groups are not known.

    Args:
        calibration: With ``features`` and ``score``.
        feature: Features of the test cases (case, feature).
        score: Scores of the observations of the test cases (case), NaN where there is none.
        groups: Group of every test case, where the calibration has groups; "" if not known.
        false_alarm: Warn below this.
        coverage_pvalue: From `coverage_figures`, where there is one.
    """
    named = np.array([True]) if groups is None else groups.values != ""
    if ("case_group" in calibration and groups is None) or not named.any():
        note = "not tested: the groups of the test cases are unknown"
        return xr.DataArray(np.nan, attrs={"units": "probability", "test": note})
    first, second = calibration["features"].values, feature.values
    if score is not None:
        first = np.column_stack([first, calibration["score"].values])
        second = np.column_stack([second, score.values])
    pair = None
    if groups is not None:
        second, pair = second[named], (calibration["case_group"].values, groups.values[named])
    return shift.compare(
        first,
        second,
        pair,
        false_alarm,
        weights=calibration["weight"].values if "weight" in calibration else None,
        coverage_pvalue=None if coverage_pvalue is None else float(coverage_pvalue),
    )
