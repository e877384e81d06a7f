"""Learning a threshold from calibration scores and applying it: groups, weights, coverage.

A calibration is a Dataset: ``threshold``, ``n``, ``k`` (scalars, or over ``group``), ``alpha``,
``score`` (case), what the test of shift compares (see `compared`) and, where asked for,
``case_group`` (case) and ``weight`` (case).

Scores of cases without an observation are NaN: such cases do not calibrate, and do not count in
the coverage. Their group by class is "".
"""

import warnings
from dataclasses import replace

import numpy as np
import xarray as xr

from ppl_med.analysis.conformal import exchangeability, order_statistics
from ppl_med.analysis.conformal.compared import Compared, of_calibration
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
    compared: Compared | None = None,
    groups: xr.DataArray | None = None,
    names: list[str] | None = None,
    weights: xr.DataArray | None = None,
) -> xr.Dataset:
    """Return the thresholds of calibration scores.

    Args:
        score: Nonconformity scores of the observations (case), with ids; NaN where there is none.
        alpha: Miss rate, in (0, 1).
        compared: What the test of shift compares.
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
    if compared is not None:
        kept = compared.stored()
        result = result.assign(kept.variables).assign_attrs(kept.attrs)
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

    Returns:
        With weights the attribute ``unbounded`` counts the thresholds that are infinite: those of
        test cases that weigh more than the calibration cases can answer for, or all of them, where
        the effective number of calibration cases is below (1 - alpha) / alpha, the least for which
        n cases give a threshold at all.

    Raises:
        TypeError, ValueError: Weights missing or malformed, or a group without a threshold.

    Warns:
        RuntimeWarning: Some are infinite.
    """
    if ("weight" in calibration) != (weights is not None):
        raise ValueError(
            "weights must be given to both the calibration and the prediction, or to neither."
        )
    if weights is not None:
        values = _weighted_thresholds(calibration, case_weights(weights, test))
        return xr.DataArray(values, dims="case", attrs={"unbounded": int(np.isinf(values).sum())})
    if groups is None:
        return calibration["threshold"].reset_coords(drop=True)
    check_groups(calibration, groups)
    return calibration["threshold"].sel(group=groups).drop_vars("group")


def _weighted_thresholds(calibration: xr.Dataset, weights: np.ndarray) -> np.ndarray:
    alpha, size = float(calibration["alpha"]), float(calibration["effective_n"])
    values = order_statistics.weighted_threshold(
        calibration["score"].values, calibration["weight"].values, weights, alpha
    )
    least = (1 - alpha) / alpha
    if size < least * (1 - 1e-9):
        values = np.full_like(values, np.inf)
    unbounded = int(np.isinf(values).sum())
    if unbounded:
        warnings.warn(
            f"{unbounded} of {len(values)} test cases get the set of everything: the weights leave "
            f"an effective number of {size:.1f} calibration cases, where a level of {1 - alpha:g} "
            f"needs {least:.3g}, and no test case may weigh more than its share of them. Calibrate "
            "on cases like the test cases.",
            RuntimeWarning,
            stacklevel=4,
        )
    return values


def check_groups(calibration: xr.Dataset, groups: xr.DataArray) -> None:
    """Raise where a test case is of a group without a threshold."""
    unknown = sorted(set(groups.values.tolist()) - set(calibration["group"].values.tolist()))
    if unknown:
        raise ValueError(
            f"The test cases have the group(s) {unknown}, the calibration only "
            f"{calibration['group'].values.tolist()}: no threshold holds for them. Calibrate "
            "with cases of every group."
        )


def carried(calibration: xr.Dataset) -> xr.Dataset:
    """Return what every result repeats of its calibration: n, k, thresholds, attributes."""
    names = [name for name in ("n", "k", "effective_n", "threshold") if name in calibration]
    kept = calibration[names]
    return kept.drop_vars([name for name in kept.coords if name != "group"])


def shift_check(
    calibration: xr.Dataset,
    compared: Compared,
    score: xr.DataArray | None,
    groups: xr.DataArray | None,
    false_alarm: float,
    coverage_pvalue: xr.DataArray | None = None,
) -> xr.DataArray:
    """Return the p-value of the tests of shift; NaN where the groups are not known.

    Args:
        calibration: With what `compared` describes, and ``score``.
        compared: The same of the test cases.
        score: Scores of the observations of the test cases (case), NaN where there is none.
        groups: Group of every test case, where the calibration has groups; "" if not known.
        false_alarm: Warn below this.
        coverage_pvalue: From `coverage_figures`, where there is one.
    """
    named = np.ones(len(compared.outputs), bool) if groups is None else groups.values != ""
    if ("case_group" in calibration and groups is None) or not named.any():
        note = "not tested: the groups of the test cases are unknown"
        return xr.DataArray(np.nan, attrs={"units": "probability", "test": note})
    first, second = of_calibration(calibration), compared
    if score is not None:
        first = first.with_output(calibration["score"].values)
        second = second.with_output(score.values)
    if groups is not None:
        second = replace(second, groups=groups.values).isel(named)
    return exchangeability.compare(
        first,
        second,
        false_alarm,
        weights=calibration["weight"].values if "weight" in calibration else None,
        coverage_pvalue=None if coverage_pvalue is None else float(coverage_pvalue),
    )
