"""Intervals that hold a real outcome with a stated probability (split conformal).

A model proposes lower and upper ends a, b of every case and units s, t to widen them in; the score
of an outcome y is max((a - y) / s, (y - b) / t), and with the threshold q of the scores the
interval is [a - q s, b + q t]. The methods differ in what is proposed:

    absolute         a = b = mean of loc,  s = t = 1
    normalised       a = b = mean of loc,  s = t = sd of the outcome over draws, total
    epistemic        a = b = mean of loc,  s = t = sd of loc over draws
    cqr              predictive quantiles alpha/2 and 1 - alpha/2,  s = t = 1
    cqr_epistemic    the same quantiles,  s, t = their sd over draws (of loc, where the model does
                     not predict quantiles)

q may be negative: quantiles that are too far apart are drawn together.

Sources: Lei et al., JASA 113, 2018 (absolute, normalised); Romano, Patterson and Candes, NeurIPS
2019, arXiv:1905.03222 (cqr); Rossellini, Barber and Willett, AISTATS 2024, arXiv:2306.08693
(cqr_epistemic, there UACQR-S).
"""

from typing import NamedTuple

import numpy as np
import xarray as xr

from ppl_med.analysis.conformal import order_statistics, outcomes, shift, thresholds
from ppl_med.analysis.tree import Posterior, case_ids, check_disjoint, metadata_groups

METHODS = ("absolute", "normalised", "epistemic", "cqr", "cqr_epistemic")


class Proposal(NamedTuple):
    """What the model proposes for every case, each (case), in the unit of the outcome."""

    lower: xr.DataArray
    upper: xr.DataArray
    lower_unit: xr.DataArray
    upper_unit: xr.DataArray


def calibrate_intervals(
    tree: xr.DataTree,
    alpha: float = 0.1,
    *,
    method: str = "cqr",
    outcome: str | None = None,
    within: str | xr.DataArray | None = None,
    weights: xr.DataArray | None = None,
) -> xr.Dataset:
    """Learn how far to widen intervals from cases that the model was not trained on.

    Args:
        tree: The tree of `predict` on the calibration cases, with one observed number per case.
        alpha: Allowed share of intervals that miss, in (0, 1).
        method: As the module says.
        outcome: Name of the observed variable; needed where there are several.
        within: A threshold per group: a column of constant_data, or the groups (case).
        weights: Likelihood ratio test / calibration (case), for a covariate shift.

    Returns:
        As `conformal.calibrate`; ``threshold`` in the unit of the outcome for absolute and cqr,
        else without unit.

    Raises:
        TypeError, ValueError: Bad ``alpha`` or ``method``; what the method needs is missing from
            the tree; draws that all agree, where their sd is a unit; no or malformed outcomes.
    """
    order_statistics.check_alpha(alpha)
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, not {method!r}.")
    name = outcomes.outcome_name(tree, outcome)
    proposal = _propose(tree, name, method, alpha)
    case_ids(proposal.lower, "posterior")
    observed = outcomes.outcome_values(tree, name, proposal.lower)
    if observed is None:
        raise ValueError(f"tree has no observed_data/{name}; calibration needs outcomes.")
    groups = None
    if within is not None:
        groups = metadata_groups(tree, within, proposal.lower, "within")
    result = thresholds.learn(_score(proposal, observed), alpha, groups=groups, weights=weights)
    result["features"] = _features(proposal, method)
    kind = within if isinstance(within, str) else "" if within is None else "array"
    result.attrs = {"method": method, "outcome": name, "within": kind}
    return result


def predict_intervals(
    calibration: xr.Dataset,
    tree: xr.DataTree,
    *,
    within: xr.DataArray | None = None,
    weights: xr.DataArray | None = None,
    shift_alarm: float = shift.FALSE_ALARM,
) -> xr.Dataset:
    """Return the interval of every case and, with outcomes, how often it covers.

    Args:
        calibration: What `calibrate_intervals` returned.
        tree: The tree of `predict` on other cases.
        within: Groups (case), where the calibration was given an array of groups.
        weights: Likelihood ratios of these cases, where the calibration had some.
        shift_alarm: As for `conformal.predict_sets`.

    Returns:
        ``interval`` (case, bound) with bound "lower" and "upper", infinite where n is too small
        for alpha, and lower above upper where the interval is empty; ``width`` (case), not
        negative; and as `conformal.predict_sets`: ``n``, ``k``, ``threshold``, ``shift_pvalue``,
        ``covered``, ``coverage`` and its band.

    Raises:
        TypeError, ValueError: As `conformal.predict_sets`.

    Warns:
        RuntimeWarning: Calibration and test cases look different.
    """
    _check_calibration(calibration)
    shift.check_false_alarm(shift_alarm)
    attrs, alpha = calibration.attrs, float(calibration["alpha"])
    proposal = _propose(tree, attrs["outcome"], attrs["method"], alpha)
    check_disjoint(calibration["case"].values, case_ids(proposal.lower, "posterior"))
    groups = _test_groups(attrs["within"], tree, within, proposal.lower)
    limit = thresholds.per_case(calibration, proposal.lower, groups=groups, weights=weights)
    lower = proposal.lower - limit * proposal.lower_unit
    upper = proposal.upper + limit * proposal.upper_unit
    bound = xr.IndexVariable("bound", ["lower", "upper"])
    interval = xr.concat([lower, upper], bound).transpose("case", "bound")
    result = xr.Dataset({"interval": interval, "width": (upper - lower).clip(min=0)})
    result = result.merge(thresholds.carried(calibration))
    if groups is not None:
        result["case_group"] = ("case", groups.values)
    observed = outcomes.outcome_values(tree, attrs["outcome"], proposal.lower)
    reached = None
    if observed is not None:
        reached = _score(proposal, observed)
        covered = reached <= limit
        result = result.merge(thresholds.coverage_figures(covered, calibration, groups))
    result["shift_pvalue"] = thresholds.shift_check(
        calibration, _features(proposal, attrs["method"]), reached, groups, shift_alarm
    )
    result.attrs.update(attrs, alpha=alpha)
    return result


def _propose(tree: Posterior, name: str, method: str, alpha: float) -> Proposal:
    def of_run(part: xr.DataTree) -> xr.Dataset:
        return xr.Dataset(_propose_run(part, name, method, alpha)._asdict())

    found = outcomes.runs(tree, name, of_run)
    return Proposal(*(found[field] for field in Proposal._fields))


def _propose_run(tree: Posterior, name: str, method: str, alpha: float) -> Proposal:
    if method.startswith("cqr"):
        return _propose_quantiles(tree, name, method, alpha)
    loc = outcomes.required(tree, "loc", f"method={method!r}")
    center = _bare(loc.mean(outcomes.SAMPLES))
    if method == "absolute":
        unit = xr.ones_like(center)
    elif method == "epistemic":
        unit = _spread(loc)
    else:
        scale = outcomes.variable(tree, "posterior", "scale")
        if scale is not None:
            square = (scale**2).mean(outcomes.SAMPLES) + loc.var(outcomes.SAMPLES)
            unit = _positive(_bare(square**0.5), "scale")
        else:
            draws = outcomes.variable(tree, "posterior_predictive", name)
            if draws is None:
                raise ValueError(
                    "method='normalised' needs posterior/scale or posterior_predictive/"
                    f"{name}, and the tree has neither."
                )
            unit = _spread(draws)
    return Proposal(center, center, unit, unit)


def _propose_quantiles(tree: Posterior, name: str, method: str, alpha: float) -> Proposal:
    levels = np.array([alpha / 2, 1 - alpha / 2])
    found = outcomes.predictive_quantiles(tree, name, levels)
    own = "draw" in found.dims
    mean = found.mean(outcomes.SAMPLES) if own else found
    lower, upper = (_bare(mean.isel(quantile=index)) for index in (0, 1))
    if method == "cqr":
        return Proposal(lower, upper, xr.ones_like(lower), xr.ones_like(upper))
    if own:
        units = [_spread(found.isel(quantile=index)) for index in (0, 1)]
    else:
        units = [_spread(outcomes.required(tree, "loc", f"method={method!r}"))] * 2
    return Proposal(lower, upper, *units)


def _spread(draws: xr.DataArray) -> xr.DataArray:
    if draws.sizes["chain"] * draws.sizes["draw"] < 2:
        raise ValueError(
            "The sd over draws is the unit of this method and the tree holds one draw; predict "
            "with more, or use method='absolute' or 'cqr'."
        )
    shifted = draws - draws.isel(chain=0, draw=0)
    return _positive(_bare(shifted.std(outcomes.SAMPLES, ddof=1)), str(draws.name))


def _positive(unit: xr.DataArray, name: str) -> xr.DataArray:
    count = int((~(unit > 0)).sum())
    if count:
        raise ValueError(
            f"The spread of {name} is 0 in {count} case(s), so nothing can be measured in it; "
            "use method='absolute' or 'cqr', which need none."
        )
    return unit


def _bare(array: xr.DataArray) -> xr.DataArray:
    return array.drop_vars([name for name in array.coords if name != "case"])


def _score(proposal: Proposal, observed: xr.DataArray) -> xr.DataArray:
    return xr.ufuncs.maximum(
        (proposal.lower - observed) / proposal.lower_unit,
        (observed - proposal.upper) / proposal.upper_unit,
    )


def _features(proposal: Proposal, method: str) -> xr.DataArray:
    """Return what the test of shift compares: where the interval lies, how wide, in what unit."""
    parts = [(proposal.lower + proposal.upper) / 2]
    parts += [proposal.upper - proposal.lower] if method.startswith("cqr") else []
    parts += [proposal.lower_unit] if method not in ("absolute", "cqr") else []
    return xr.DataArray(np.stack([part.values for part in parts], 1), dims=("case", "feature"))


def _test_groups(
    kind: str, tree: Posterior, within: xr.DataArray | None, array: xr.DataArray
) -> xr.DataArray | None:
    if (kind == "array") != (within is not None):
        raise ValueError(
            "within must be given here exactly where the calibration was given an array of groups; "
            f"it was given {kind or None!r}."
        )
    if not kind:
        return None
    return metadata_groups(tree, kind if within is None else within, array, "within")


def _check_calibration(calibration: xr.Dataset) -> None:
    needed = {"alpha", "n", "score", "features"}
    if not isinstance(calibration, xr.Dataset) or not needed <= set(calibration):
        raise TypeError("calibration must be the Dataset that calibrate_intervals returned.")
    if calibration.attrs.get("method") not in METHODS:
        raise ValueError(
            f"calibration has method {calibration.attrs.get('method')!r}; expected one of "
            f"{METHODS}, from calibrate_intervals."
        )
