"""Intervals that hold an observed number with a stated probability (split conformal).

A model proposes lower and upper ends a, b of every case and units s, t to widen them in; the
nonconformity score of an observation y is max((a - y) / s, (y - b) / t), and with the threshold q
of the scores the interval is [a - q s, b + q t]. The methods differ in what is proposed:

    absolute         a = b = mean of loc,  s = t = 1
    normalised       a = b = mean of loc,  s = t = sd of the number over draws, total
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

from ppl_med import checks
from ppl_med.analysis.conformal import compared, exchangeability, thresholds
from ppl_med.analysis.conformal.achieved import coverage_figures
from ppl_med.analysis.conformal.hits import where_known
from ppl_med.analysis.statistics.total_variance import variance_figures
from ppl_med.analysis.tree import (
    DRAWS,
    CaseNumbers,
    case_coords,
    case_ids,
    check_disjoint,
    known,
    metadata_groups,
    open_case_numbers,
)
from ppl_med.axes import SAMPLES
from ppl_med.moved import renamed_argument

METHODS = ("absolute", "normalised", "epistemic", "cqr", "cqr_epistemic")


class Proposal(NamedTuple):
    """What the model proposes for every case, each (case), in the unit of the observation."""

    lower: xr.DataArray
    upper: xr.DataArray
    lower_unit: xr.DataArray
    upper_unit: xr.DataArray


@renamed_argument("outcome", "site")
def calibrate_intervals(
    tree: xr.DataTree,
    alpha: float = 0.1,
    *,
    method: str = "cqr",
    site: str | None = None,
    within: str | xr.DataArray | None = None,
    weights: xr.DataArray | None = None,
    group: str | xr.DataArray | None = None,
) -> xr.Dataset:
    """Learn how far to widen intervals from cases that the model was not trained on.

    Args:
        tree: The tree of `predict` on the calibration cases, with one observed number per case;
            cases with NaN are left out.
        alpha: Allowed share of intervals that miss, in (0, 1).
        method: As the module says.
        site: Name of the observed numbers; needed where there are several.
        within: A threshold per group: a column of constant_data, or the groups (case).
        weights: Likelihood ratio test / calibration (case), for a covariate shift.
        group: Whose the cases are, such as "patient"; as for `conformal.calibrate`.

    Returns:
        As `conformal.calibrate`; ``threshold`` in the unit of the observation for absolute and cqr,
        else without unit.

    Raises:
        TypeError, ValueError: Bad ``alpha`` or ``method``; what the method needs is missing from
            the tree; draws that all agree, where their sd is a unit; no or malformed observations.
    """
    checks.inside("alpha", alpha)
    checks.choice("method", method, METHODS)
    numbers = open_case_numbers(tree, site)
    proposal = _propose(numbers, method, alpha)
    case_ids(proposal.lower, "posterior")
    score = _score(proposal, numbers.required())
    groups = None
    if within is not None:
        groups = metadata_groups(tree, within, proposal.lower, "within")
    outputs = _outputs(proposal, method)
    own = compared.read(tree, outputs, proposal.lower, group)
    result = thresholds.learn(score, alpha, compared=own, groups=groups, weights=weights)
    kind = thresholds.within_name(within)
    return result.assign_attrs(method=method, outcome=numbers.site, within=kind)


def predict_intervals(
    calibration: xr.Dataset,
    tree: xr.DataTree,
    *,
    within: xr.DataArray | None = None,
    weights: xr.DataArray | None = None,
    group: xr.DataArray | None = None,
    shift_alarm: float = exchangeability.FALSE_ALARM,
) -> xr.Dataset:
    """Return the interval of every case and, with observed numbers, how often it covers.

    Args:
        calibration: What `calibrate_intervals` returned.
        tree: The tree of `predict` on other cases.
        within: Groups (case), where the calibration was given an array of groups.
        weights: Likelihood ratios of these cases, where the calibration had some.
        group: Patients (case); as for `conformal.predict_sets`.
        shift_alarm: As for `conformal.predict_sets`.

    Returns:
        ``interval`` (case, bound) with bound "lower" and "upper", infinite where n is too small
        for alpha or weights cannot carry the level, and lower above upper where the interval is
        empty; ``width`` (case), not negative; and as `conformal.predict_sets`: ``n``, ``k``,
        ``threshold``, ``shift_pvalue``, ``covered``, ``coverage`` and its band.

    Raises:
        TypeError, ValueError: As `conformal.predict_sets`.

    Warns:
        RuntimeWarning: As `conformal.predict_sets`.
    """
    thresholds.check_calibration(calibration, "calibrate_intervals")
    checks.share("shift_alarm", shift_alarm, "0 never warns")
    attrs, alpha = calibration.attrs, float(calibration["alpha"])
    checks.choice("the method of the calibration", attrs.get("method"), METHODS)
    numbers = open_case_numbers(tree, attrs["outcome"])
    proposal = _propose(numbers, attrs["method"], alpha)
    check_disjoint(calibration["case"].values, case_ids(proposal.lower, "posterior"))
    groups = thresholds.test_groups(calibration, tree, within, proposal.lower)
    outputs = _outputs(proposal, attrs["method"])
    seen = compared.read_like(calibration, tree, outputs, proposal.lower, group)
    limit = thresholds.per_case(calibration, proposal.lower, groups=groups, weights=weights)
    lower = proposal.lower - limit * proposal.lower_unit
    upper = proposal.upper + limit * proposal.upper_unit
    bound = xr.IndexVariable("bound", ["lower", "upper"])
    interval = xr.concat([lower, upper], bound).transpose("case", "bound")
    result = xr.Dataset({"interval": interval, "width": (upper - lower).clip(min=0)})
    result = result.assign(thresholds.carried(calibration).data_vars).assign_attrs(limit.attrs)
    if groups is not None:
        result["case_group"] = ("case", groups.values)
    observed, reached = numbers.observed(), None
    if observed is not None:
        reached = _score(proposal, observed)
        hits = reached.copy(data=where_known((reached <= limit).values, known(observed).values))
        figures = coverage_figures(hits, calibration, groups, reached, seen.units)
        result = result.assign(figures.data_vars).assign_attrs(figures.attrs)
    result["shift_pvalue"] = thresholds.shift_check(
        calibration,
        seen,
        reached,
        groups,
        shift_alarm,
        result.get("coverage_pvalue"),
    )
    settings = {name: attrs[name] for name in ("method", "outcome", "within")}
    return result.assign_attrs(settings, alpha=alpha)


def _propose(numbers: CaseNumbers, method: str, alpha: float) -> Proposal:
    propose = _quantile_proposal if method.startswith("cqr") else _mean_proposal
    found = numbers.map(lambda part: xr.Dataset(propose(part, method, alpha)._asdict()))
    return Proposal(*(found[field] for field in Proposal._fields))


def _mean_proposal(numbers: CaseNumbers, method: str, alpha: float) -> Proposal:
    place = "mean" if "mean" in numbers.predicted and "loc" not in numbers.predicted else "loc"
    loc = numbers.read(place, f"method={method!r}")
    center = _bare(loc.mean(SAMPLES))
    if method == "absolute":
        unit = xr.ones_like(center)
    elif method == "epistemic":
        unit = _spread(loc)
    elif spreads := [name for name in ("variance", "scale") if name in numbers.predicted]:
        group = xr.Dataset({place: loc, spreads[0]: numbers.read(spreads[0])})
        total = variance_figures(group)[0]["total"][0]
        unit = _positive(_bare(total**0.5), spreads[0])
    elif DRAWS in numbers.predicted:
        unit = _spread(numbers.read(DRAWS))
    else:
        raise ValueError(
            "method='normalised' needs posterior/variance, posterior/scale or posterior_predictive/"
            f"{numbers.site}, and the tree has none."
        )
    return Proposal(center, center, unit, unit)


def _quantile_proposal(numbers: CaseNumbers, method: str, alpha: float) -> Proposal:
    found = numbers.quantiles(np.array([alpha / 2, 1 - alpha / 2]))
    own = "draw" in found.dims
    mean = found.mean(SAMPLES) if own else found
    lower, upper = (_bare(mean.isel(quantile=index)) for index in (0, 1))
    if method == "cqr":
        return Proposal(lower, upper, xr.ones_like(lower), xr.ones_like(upper))
    if own:
        units = [_spread(found.isel(quantile=index)) for index in (0, 1)]
    else:
        units = [_spread(numbers.read("loc", f"method={method!r}"))] * 2
    return Proposal(lower, upper, *units)


def _spread(draws: xr.DataArray) -> xr.DataArray:
    if draws.sizes["chain"] * draws.sizes["draw"] < 2:
        raise ValueError(
            "The sd over draws is the unit of this method and the tree holds one draw, or "
            "copies of one, whose spread is 0; predict with more, or use method='absolute' "
            "or 'cqr'."
        )
    shifted = draws - draws.isel(chain=0, draw=0)
    return _positive(_bare(shifted.std(SAMPLES, ddof=1)), str(draws.name))


def _positive(unit: xr.DataArray, name: str) -> xr.DataArray:
    count = int((~(unit > 0)).sum())
    if count:
        raise ValueError(
            f"The spread of {name} is 0 in {count} case(s), so nothing can be measured in it; "
            "use method='absolute' or 'cqr', which need none."
        )
    return unit


def _bare(array: xr.DataArray) -> xr.DataArray:
    return array.drop_vars(set(array.coords) - set(case_coords(array)))


def _score(proposal: Proposal, observed: xr.DataArray) -> xr.DataArray:
    return xr.ufuncs.maximum(
        (proposal.lower - observed) / proposal.lower_unit,
        (observed - proposal.upper) / proposal.upper_unit,
    )


def _outputs(proposal: Proposal, method: str) -> np.ndarray:
    """Return what the test of shift compares: where the interval lies, how wide, in what unit."""
    parts = [(proposal.lower + proposal.upper) / 2]
    parts += [proposal.upper - proposal.lower] if method.startswith("cqr") else []
    parts += [proposal.lower_unit] if method not in ("absolute", "cqr") else []
    return np.stack([part.values for part in parts], 1)
