"""Presence: is there anything to segment, as often as the draws say?

The predicted probability of presence is the share f of sampled masks of a case that are not empty,
or hold at least so many pixels.
It is compared with the true probability p (a generator that knows it), or with the share g of the
graders who drew something.

    slope      weighted least squares line. With p known, f on p, as p carries no noise. With
               graders, g on f: f from many samples carries less noise than g from four graders,
               and noise in the regressor would flatten the line.
    weights    1 / (v (1 - v)), the inverse binomial variance at the regressor v, kept 1 / (2 n)
               away from 0 and 1
    ece        sum over bins of f of count / N |mean truth - mean f|

A finite number of samples or graders gives even a perfect model an ECE above zero and, with
graders, a slope below one. ``ece_perfect`` and ``slope_perfect`` are what simulated perfect
models get on the same cases.
"""

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.segmentation.summary import describe
from ppl_med.analysis.statistics import binning
from ppl_med.analysis.tree import (
    UNANNOTATED,
    ClassList,
    Draws,
    Posterior,
    case_coords,
    check_cases,
    class_indices,
    class_labels,
    count_left_out,
    open_annotations,
    open_draws,
)

_FEWEST_CASES = 3


def presence_reliability(
    tree: Posterior,
    truth: xr.DataArray | None = None,
    annotations: xr.DataArray | None = None,
    *,
    bins: int = 10,
    samples: str = "mode",
    classes: ClassList = None,
    min_pixels: int = 1,
    simulations: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """Compare how often sampled masks are non-empty with how often they should be.

    Args:
        tree: The tree of `predict`; or ``probs``, or masks (chain, draw, case, row, col).
        truth: True probability of presence (case), NaN where not known; None compares with the
            graders.
        annotations: Graders' masks (case, grader, row, col); by default those of the tree. A
            grader who left a pixel unannotated is left out: an empty mask might not be empty.
        bins: Number of bins of equal width.
        samples: "mode" (argmax of every draw) or "draw" (posterior_predictive/mask).
        classes: Classes that count as present; by default all but class 0.
        min_pixels: Pixels or voxels that it takes to count as present, in samples and graders'
            masks alike: a network that is undecided leaves specks smaller than any lesion.
        simulations: Simulated perfect models for ``slope_perfect`` and ``ece_perfect``.
        seed: Seed of the simulations.

    Returns:
        Dataset with ``frequency`` (case), the share of non-empty samples (of those that share their
        weights, the first), and ``truth`` (case);
        scalars ``slope``, ``intercept`` with ``_se`` over cases (robust to unequal variances),
        ``ece``, ``slope_perfect``, ``ece_perfect``; over bin ``frequency_in_bin``,
        ``truth_in_bin``, ``count``. All but the line are probabilities.

    Raises:
        TypeError, ValueError: Samples, truth, annotations, classes or bins are malformed, fewer
            than three cases, or a regressor that is the same in all cases.
    """
    for name, value in (("bins", bins), ("simulations", simulations), ("min_pixels", min_pixels)):
        checks.whole(name, value)
    if truth is not None and annotations is not None:
        raise ValueError("Pass truth or annotations, not both: one of them is compared with.")
    draws = open_draws(tree, samples)
    numbers = class_indices(classes, draws)
    apart = draws.apart
    number = len(apart)
    masks_of = (masks[apart] for masks in draws.samples())
    given = np.array([_present(masks, numbers, min_pixels).mean() for masks in masks_of])
    if truth is not None:
        target, graders, graded = _check_truth(truth, draws), None, None
    else:
        graded = open_annotations(tree, annotations, draws)
        target, graders = _grader_frequency(graded, draws, numbers, min_pixels)
    known = ~np.isnan(target)
    left_out = count_left_out(xr.DataArray(known, dims="case") if graded is None else graded)
    if known.sum() < _FEWEST_CASES:
        raise ValueError(f"A line needs three cases with a truth; there are {known.sum()}.")
    result = _frequencies(given, target, draws)
    f, t = given[known], target[known]
    m = None if graders is None else graders[known]
    result = result.merge(_line(f, t, number, exact=m is None)).merge(_bins(f, t, bins))
    rng = np.random.default_rng(seed)
    perfect = [_perfect(f, t, m, number, bins, rng) for _ in range(simulations)]
    return describe(
        result.assign(_yardsticks(np.array(perfect))),
        **{**left_out, "num_cases": int(known.sum())},
        regression="frequency on truth" if m is None else "grader frequency on frequency",
        classes=class_labels(numbers, draws),
        samples=samples,
        min_pixels=min_pixels,
        num_samples=number,
    )


def _yardsticks(perfect: np.ndarray) -> dict[str, xr.DataArray]:
    found = {}
    for name, values in zip(("slope_perfect", "ece_perfect"), perfect.T, strict=True):
        unit = "1" if name.startswith("slope") else "probability"
        note = f"mean of {len(values)} simulated perfect models, sd {values.std():.3g}"
        found[name] = xr.DataArray(values.mean(), attrs={"units": unit, "note": note})
    return found


def _check_truth(truth: xr.DataArray, draws: Draws) -> np.ndarray:
    if not isinstance(truth, xr.DataArray) or truth.dims != ("case",):
        raise ValueError("truth must be a DataArray (case): one probability per case.")
    check_cases(truth, draws.array, "truth")
    values = truth.values.astype(np.float64)
    if not ((values >= 0) & (values <= 1) | np.isnan(values)).all():
        raise ValueError("truth must hold probabilities in [0, 1], or NaN where it is not known.")
    return values


def _present(masks: np.ndarray, numbers: np.ndarray, min_pixels: int) -> np.ndarray:
    """Whether enough pixels of each mask (mask, pixel) are of the classes."""
    enough: np.ndarray = np.isin(masks, numbers).sum(1) >= min_pixels
    return enough


def _grader_frequency(
    graded: xr.DataArray, draws: Draws, numbers: np.ndarray, min_pixels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Share of complete graders who drew something (NaN without any), and their number."""
    share = np.full(graded.sizes["case"], np.nan)
    count = np.zeros(graded.sizes["case"], np.int64)
    for case in range(graded.sizes["case"]):
        masks = graded.isel(case=case).values.reshape(graded.sizes["grader"], -1)
        masks = masks[:, draws.inside(slice(case, case + 1))[0]]
        masks = masks[(masks != UNANNOTATED).all(1)]
        count[case] = len(masks)
        if len(masks):
            share[case] = _present(masks, numbers, min_pixels).mean()
    return share, count


def _frequencies(given: np.ndarray, target: np.ndarray, draws: Draws) -> xr.Dataset:
    unit = {"units": "probability"}
    values = {"frequency": ("case", given, unit), "truth": ("case", target, unit)}
    return xr.Dataset(values, case_coords(draws.array))


def _line(f: np.ndarray, t: np.ndarray, number: int, *, exact: bool) -> xr.Dataset:
    regressor, response = (t, f) if exact else (f, t)
    if float(np.ptp(regressor)) == 0:
        raise ValueError(
            f"The {'truth' if exact else 'frequency'} is {regressor[0]:g} in all cases, so no line "
            "can be fitted; take cases in which presence varies."
        )
    beta, error = _least_squares(regressor, response, number)
    result = xr.Dataset()
    for index, name in enumerate(("intercept", "slope")):
        unit = "probability" if name == "intercept" else "1"
        result[name] = ((), beta[index], {"units": unit})
        note = {"units": unit, "note": "over cases, robust to unequal variances"}
        result[f"{name}_se"] = ((), error[index], note)
    return result


def _least_squares(
    regressor: np.ndarray, response: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted line (intercept, slope) and its sandwich (HC1) standard errors."""
    inner = regressor.clip(1 / (2 * number), 1 - 1 / (2 * number))
    weight = 1 / (inner * (1 - inner))
    design = np.stack([np.ones(len(regressor)), regressor], axis=1)
    bread = np.linalg.inv(design.T @ (weight[:, None] * design))
    beta = bread @ (design.T @ (weight * response))
    score = design * (weight * (response - design @ beta))[:, None]
    scale = len(regressor) / (len(regressor) - 2)
    return beta, np.sqrt(np.diagonal(scale * bread @ score.T @ score @ bread))


def _bins(f: np.ndarray, t: np.ndarray, bins: int) -> xr.Dataset:
    index = binning.equal_width(f, bins)
    count = np.bincount(index, minlength=bins)
    filled = np.where(count > 0, count, np.nan)
    unit = {"units": "probability"}
    return xr.Dataset(
        {
            "frequency_in_bin": ("bin", np.bincount(index, f, bins) / filled, unit),
            "truth_in_bin": ("bin", np.bincount(index, t, bins) / filled, unit),
            "count": ("bin", count, {"units": "cases"}),
            "ece": ((), _ece(f, t, bins), unit),
        },
        coords={"bin": np.arange(bins)},
    )


def _ece(f: np.ndarray, t: np.ndarray, bins: int) -> float:
    return float(np.abs(np.bincount(binning.equal_width(f, bins), t - f, bins)).sum() / len(f))


def _perfect(
    f: np.ndarray,
    t: np.ndarray,
    graders: np.ndarray | None,
    number: int,
    bins: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Slope and ECE had the samples (or, with graders, the graders) followed the other side."""
    if graders is None:
        f = rng.binomial(number, t) / number
        regressor, response = t, f
    else:
        t = rng.binomial(graders, f) / graders
        regressor, response = f, t
    return float(_least_squares(regressor, response, number)[0][1]), _ece(f, t, bins)
