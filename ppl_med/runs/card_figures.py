"""The figures of a model card, each with an interval of 95 % over patients, else over cases."""

from collections.abc import Callable
from functools import partial

import numpy as np
import xarray as xr
from scipy.stats import t as student

from ppl_med.analysis import calibration, scoring, uncertainty
from ppl_med.analysis.statistics.case_means import ratio_error
from ppl_med.analysis.statistics.shares import share_interval
from ppl_med.analysis.tree import (
    Numbers,
    case_units,
    find_distribution,
    has_probs,
    open_classes,
    open_numbers,
)
from ppl_med.inference.guides.ensemble import members_of
from ppl_med.likelihoods.number_units import NumberLikelihood
from ppl_med.programs.parameters import parts_of
from ppl_med.runs.run_folder import Run

Figure = tuple[float, float, float]  # value, lower, upper
Figures = dict[str, Figure]
_LEVEL = 0.95
_NORMAL = 1.959964  # standard errors in half such an interval
_INTERVALS = (0.5, 0.9)  # of predicted numbers, whose coverage is measured


def performance(tree: xr.DataTree | None, run: Run | None = None) -> Figures:
    """Figures of merit by name; nothing without observations.

    Args:
        tree: The tree of ``predict``.
        run: Whose tree it is; of numbers it knows the mean of the training values, the trivial
            prediction beside which the error is stated.
    """
    if tree is None:
        return {}
    if has_probs(tree):
        return _of_classes(tree) if _is_scored(tree) else {}
    found: Figures = {}
    scores: xr.DataArray | None = None
    for suffix, numbers, chosen in _each_number(tree):
        if scores is None:
            few = numbers.num_draws < 2
            scores = scoring.crps(tree, estimator="empirical" if few else "fair")["crps"]
        units, unit = units_of(tree)[0], _unit(numbers)
        block, mean = numbers.read(), _training_mean(run, numbers)
        errors = {"RMSE of the mean prediction": block.mean}
        if mean is not None:
            errors["RMSE of the mean of the training values, which sees no image"] = mean
        for name, predicted in errors.items():
            squared = chosen((block.observed - predicted) ** 2)
            found[f"{name}{suffix}{unit}"] = _root(_mean_over_units(squared, units))
        found[f"CRPS{suffix}{unit}"] = _mean_over_units(chosen(scores), units)
    return found


def calibrated(tree: xr.DataTree | None) -> Figures:
    """Calibration errors, or coverage of intervals, by name; nothing without observations."""
    if tree is None:
        return {}
    if not has_probs(tree):
        found: Figures = {}
        for suffix, _, chosen in _each_number(tree):
            away = abs(2 * chosen(calibration.pit(tree)["pit"]) - 1)
            for level in _INTERVALS:
                held = (away <= level).where(away.notnull())
                name = f"coverage of the central {level:.0%} interval{suffix}"
                found[name] = _mean_over_units(held, units_of(tree)[0], is_share=True)
        return found
    if not _is_scored(tree):
        return {}
    if open_classes(tree).array.ndim > 4:
        score = scoring.score(tree)
        value, half = float(score["ece"]), _NORMAL * float(score["ece_se"])
        interval = max(value - half, 0.0), min(value + half, 1.0)
        return {"expected calibration error per pixel": (value, *interval)}
    errors = calibration.errors(tree)
    found = {
        "expected calibration error": _stated(errors, "ece"),
        "the same in bins of equal mass": _stated(errors, "ece_equal_mass"),
        "smooth calibration error": _stated(errors, "ece_smooth"),
    }
    return {name: (value, low, min(high, 1.0)) for name, (value, low, high) in found.items()}


def spread(tree: xr.DataTree | None) -> Figures:
    """Parts of the predictive uncertainty by name: of the image, and for want of training data."""
    if tree is None:
        return {}
    text = {"aleatoric": "of the image itself", "epistemic": "for want of training data"}
    found: Figures = {}
    if has_probs(tree):
        units, parts = units_of(tree)[0], uncertainty.variance(tree, mcse=False)
        for name, what in text.items():
            values = parts[name].mean("class")
            found[f"{name} variance of a class, {what}"] = _mean_over_units(values, units)
        return found
    group = find_distribution(tree)
    if group is None:
        return {}
    parts = uncertainty.variance(group, mcse=False)
    for suffix, numbers, chosen in _each_number(tree):
        for name, what in text.items():
            label = f"{name} standard deviation{suffix}, {what}{_unit(numbers)}"
            found[label] = _root(_mean_over_units(chosen(parts[name]), units_of(tree)[0]))
    return found


def units_of(tree: xr.DataTree) -> tuple[np.ndarray, str]:
    """The number of every case's patient, or case where none are named, and which it is.

    Raises:
        TypeError, ValueError: If the tree is neither of classes nor of one site of numbers.
    """
    array = open_classes(tree).array if has_probs(tree) else open_numbers(tree).observed
    return case_units(tree, None, array)


def _of_classes(tree: xr.DataTree) -> Figures:
    source = open_classes(tree)
    is_masks, (units, _) = source.array.ndim > 4, units_of(tree)
    per, entries, found = "pixel" if is_masks else "case", scoring.entry_scores(tree), {}
    for name, label in {
        "correct": f"share of {per}s called right",
        "nll": f"negative log-likelihood, nats per {per}",
        "brier": "Brier score, 0 to 2",
    }.items():
        found[label] = _mean_over_units(entries[name], units, is_share=name == "correct")
    calls = scoring.operating_point(tree)
    for kind in ("sensitivity", "specificity"):
        for name in source.names if len(source.names) > 2 else source.names[1:]:
            one = calls.sel({"class": name})
            if np.isfinite(one[kind]):
                found[f"{kind} for {name}, at probability 0.5"] = _stated(one, kind)
    if is_masks:
        shapes = scoring.overlap(tree)
        for kind, text in {"dice": "Dice", "iou": "IoU"}.items():
            for name in map(str, shapes["class"].values):
                one = shapes.sel({"class": name})
                found[f"{text} of {name}, mean over cases"] = _stated(one, f"{kind}_per_class")
        return found
    ranks = scoring.discrimination(tree)
    for name, text in {"auroc": "AUROC", "average_precision": "average precision"}.items():
        if np.isfinite(ranks[name]):
            found[text] = _stated(ranks, name)
    return found


Chosen = Callable[[xr.DataArray], xr.DataArray]


def _each_number(tree: xr.DataTree) -> list[tuple[str, Numbers, Chosen]]:
    """Every number of a case that was observed: how it is called, and how to take it of an array.

    None of a tree without observed numbers, or of several sites of them.
    """
    try:
        numbers = open_numbers(tree)
    except (TypeError, ValueError):
        return []
    observed = numbers.observations()
    if "finding" not in observed.dims:
        return [("", numbers, lambda array: array)] if bool(observed.notnull().any()) else []
    names = observed["finding"].values.tolist()
    return [
        (f" of {name}", numbers, partial(xr.DataArray.isel, finding=place, drop=True))
        for place, name in enumerate(names)
        if bool(observed.isel(finding=place).notnull().any())
    ]


def _training_mean(run: Run | None, numbers: Numbers) -> xr.DataArray | None:
    """Mean of the training values, where the likelihood has learnt it; (), or (finding)."""
    model = None if run is None else members_of(run.model, run.guide)[0][0]
    for part in parts_of(model) if model is not None else ():
        if isinstance(part, NumberLikelihood) and part.site == numbers.observed.name:
            if part.learnt is not None and bool(part.learnt) and not hasattr(part, "given_loc"):
                return xr.DataArray(part.loc.cpu().numpy(), dims=["finding"][: part.loc.ndim])
    return None


def _unit(numbers: Numbers) -> str:
    unit = numbers.observed.attrs.get("units", "")
    return f", {unit}" if unit else ""


def _root(figure: Figure) -> Figure:
    value, lower, upper = np.sqrt(figure).tolist()
    return value, lower, upper


def _mean_over_units(values: xr.DataArray, units: np.ndarray, *, is_share: bool = False) -> Figure:
    """Mean of entries, with an interval over cases, or over patients where the tree knows them."""
    inner = [dim for dim in values.dims if dim != "case"]
    sums, counts = (part.sum(inner).values for part in (values.fillna(0.0), values.notnull()))
    part, whole = (np.bincount(units, one.astype(np.float64)) for one in (sums, counts))
    if is_share:
        share, lower, upper = share_interval(part[:, None], whole[:, None], _LEVEL)
        return float(share[0]), float(lower[0]), float(upper[0])
    used = int((whole > 0).sum())
    value, error = float(part.sum() / whole.sum()), float(ratio_error(part, whole))
    half = float(student.ppf((1 + _LEVEL) / 2, used - 1)) * error if used > 1 else np.nan
    return value, max(value - half, 0.0), value + half


def _stated(data: xr.Dataset, name: str) -> Figure:
    return float(data[name]), float(data[f"{name}_lower"]), float(data[f"{name}_upper"])


def _is_scored(tree: xr.DataTree) -> bool:
    if not has_probs(tree) or "observed_data" not in tree.children:
        return False
    source = open_classes(tree)
    return source.observation() is not None and "grader" not in source.array.dims
