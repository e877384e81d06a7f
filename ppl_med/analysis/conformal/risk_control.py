"""Masks that miss at most a stated share of the structure, on average over cases.

The mask of a case is every pixel whose mean foreground probability is at least a threshold t. Its
risk is the false-negative rate, the share of the true foreground left out, which grows with t.
With R(t) the mean risk of n calibration cases, t is the largest with

    n / (n + 1) R(t) + 1 / (n + 1) <= alpha        (no such t if n < 1 / alpha - 1: whole images)

If cases are exchangeable, the expected risk of a test case is at most alpha, whatever the model;
it is no promise for every single case. Nothing limits false positives: look at ``area``.

A case is one patient or image; its pixels need not be independent. A case whose truth is empty
cannot be missed and counts as risk 0.

Source: Angelopoulos et al., Conformal Risk Control, ICLR 2024, arXiv:2208.02814, equation 4.
"""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.conformal import exchangeability
from ppl_med.analysis.conformal.compared import Compared
from ppl_med.analysis.tree import (
    UNANNOTATED,
    ClassList,
    Draws,
    Posterior,
    case_coords,
    case_ids,
    check_disjoint,
    class_indices,
    class_labels,
    count_left_out,
    find_group,
    known,
    open_annotations,
    open_probabilities,
)

TRUTHS = ("mean", "union")


def calibrate_masks(
    tree: xr.DataTree,
    alpha: float = 0.1,
    *,
    truth: str = "mean",
    classes: ClassList = None,
) -> xr.Dataset:
    """Learn the threshold on the foreground probability that keeps the false-negative rate low.

    Args:
        tree: The tree of `predict` on annotated cases that the model was not trained on, with
            observed_data/mask (case, grader, ...) or (case, ...), -1 where not annotated; a case
            that nobody annotated is left out.
        alpha: Largest expected false-negative rate, in (0, 1).
        truth: "mean": each grader who annotated the case has a rate, and the risk of the case is
            their average. "union": the truth is whatever any grader marked.
        classes: Names or indices of the classes that are foreground; by default all but class 0.

    Returns:
        Dataset with ``threshold`` (probability; minus infinity when n is too small for alpha, which
        gives whole images), ``alpha``, ``n``, ``risk`` (case) at the threshold, ``risk_mean``,
        ``risk_bound`` = n/(n+1) R + 1/(n+1), ``num_empty``, the cases without any foreground, and
        ``foreground`` (case), the mean foreground probability of an image.

    Raises:
        TypeError, ValueError: Bad arguments, or no annotations.
    """
    checks.inside("alpha", alpha)
    checks.choice("truth", truth, TRUTHS)
    draws = open_probabilities(tree)
    ids = case_ids(draws.array)
    chosen = class_indices(classes, draws)
    graded = open_annotations(tree, None, draws)
    kept, left_out = _annotated(graded), count_left_out(graded)
    ids, num_cases = ids[kept], int(kept.sum())
    probs, shares, owners = [], [], []
    means: list[float] = []
    for index, foreground in enumerate(_foreground(draws, chosen)):
        if not kept[index]:
            continue
        share = _shares(graded.isel(case=index).values, chosen, truth)
        marked = share > 0
        probs.append(foreground[marked])
        shares.append(share[marked])
        owners.append(np.full(int(marked.sum()), len(means)))
        means.append(float(np.nanmean(foreground)))
    pooled = [np.concatenate(parts) for parts in (probs, shares, owners)]
    threshold = risk_threshold(pooled[0], pooled[1], num_cases, alpha)
    missed = pooled[0] < threshold
    risk = np.bincount(pooled[2][missed], pooled[1][missed], minlength=num_cases)
    result = xr.Dataset(
        {
            "threshold": threshold,
            "alpha": float(alpha),
            "n": num_cases,
            "risk": ("case", risk),
            "risk_mean": risk.mean(),
            "risk_bound": (num_cases * risk.mean() + 1) / (num_cases + 1),
            "num_empty": sum(not part.size for part in probs),
            "foreground": ("case", np.array(means)),
        },
        coords={name: ("case", v.values[kept]) for name, v in case_coords(draws.array).items()},
        attrs={"method": "risk_control", "risk": "false-negative rate", "truth": truth},
    )
    result.attrs["classes"] = class_labels(chosen, draws)
    return _with_units(result.assign_attrs(left_out))


def predict_masks(
    calibration: xr.Dataset, tree: Posterior, *, shift_alarm: float = exchangeability.FALSE_ALARM
) -> xr.Dataset:
    """Return the mask of every case and, with annotations, the share of the truth it misses.

    Args:
        calibration: What `calibrate_masks` returned.
        tree: The tree of `predict` on other cases, or its ``probs``.
        shift_alarm: Warn when the mean foreground probabilities of calibration and test images
            differ with a p-value below this; 0 never warns.

    Returns:
        Dataset with ``mask`` (case, ...) bool, ``area`` (case), the number of pixels in it, ``n``,
        ``threshold`` and ``shift_pvalue``; with annotations also ``risk`` (case), ``risk_mean`` and
        its standard error ``risk_se`` over the test cases. The risk has no exact distribution;
        alpha bounds its expectation over calibration and test cases both.

    Raises:
        TypeError, ValueError: As `calibrate_masks`; the classes differ; shared cases.

    Warns:
        RuntimeWarning: Calibration and test cases look different.
    """
    if not isinstance(calibration, xr.Dataset) or "risk_bound" not in calibration:
        raise TypeError("calibration must be the Dataset that calibrate_masks returned.")
    checks.share("shift_alarm", shift_alarm, "0 never warns")
    draws = open_probabilities(tree)
    ids = case_ids(draws.array)
    check_disjoint(calibration["case"].values, ids)
    chosen = class_indices(_known(calibration, draws), draws)
    threshold = float(calibration["threshold"])
    graded = None
    if find_group(tree, "observed_data"):
        graded = open_annotations(tree, None, draws)
    kept = np.zeros(len(ids), bool) if graded is None else _annotated(graded)
    masks, means, risk = [], [], np.full(len(ids), np.nan)
    for index, foreground in enumerate(_foreground(draws, chosen)):
        mask = foreground >= threshold
        masks.append(mask.reshape(draws.shape))
        means.append(float(np.nanmean(foreground)))
        if graded is not None and kept[index]:
            share = _shares(graded.isel(case=index).values, chosen, calibration.attrs["truth"])
            risk[index] = share[~mask].sum()
    result = xr.Dataset(
        {"mask": (("case", *draws.space), np.stack(masks))}, case_coords(draws.array)
    )
    result["area"] = result["mask"].sum(draws.space)
    result = result.assign(n=int(calibration["n"]), threshold=threshold)
    if graded is not None:
        count = int(kept.sum())
        mean = np.mean(risk[kept]) if count else np.nan
        error = np.std(risk[kept], ddof=1) / count**0.5 if count > 1 else np.nan
        result = result.assign(risk=("case", risk), risk_mean=mean, risk_se=error)
        result.attrs |= count_left_out(graded, empty=True)
    first, second = (
        Compared(values[:, None]) for values in (calibration["foreground"].values, np.array(means))
    )
    result["shift_pvalue"] = exchangeability.compare(first, second, shift_alarm)
    settings = {name: calibration.attrs[name] for name in ("method", "risk", "truth", "classes")}
    result.attrs.update(settings, alpha=float(calibration["alpha"]))
    return _with_units(result)


def risk_threshold(probs: np.ndarray, shares: np.ndarray, num_cases: int, alpha: float) -> float:
    """Return the largest threshold whose bound on the risk is at most alpha.

    Args:
        probs: Foreground probability of every pixel of the true foreground, of all cases.
        shares: What that pixel adds to the risk of its case if it is missed.
        num_cases: n, with the cases without foreground.
        alpha: Largest expected risk.

    Returns:
        Probability: one of ``probs``, 1 if all of them may be missed or there are none, or minus
        infinity if not even the whole image will do.
    """
    budget = alpha * (num_cases + 1) - 1  # of the sum of risks over cases
    if budget < -1e-12:
        return -np.inf
    if not probs.size:
        return 1.0
    order = np.argsort(probs, kind="stable")
    ordered = probs[order]
    below = np.concatenate([[0.0], np.cumsum(shares[order])])
    # R(t) at t = ordered[j] counts the pixels strictly below it, so ties start at the first.
    first = np.searchsorted(ordered, ordered, side="left")
    allowed = np.flatnonzero(below[first] <= budget + 1e-12)
    if below[-1] <= budget:
        return 1.0
    return float(ordered[allowed[-1]])


def _foreground(draws: Draws, classes: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the mean over draws of the foreground probability of every case (pixel,).

    It is NaN in what a smaller case is filled up with.
    """
    for block in draws.blocks():
        total = np.zeros((block.stop - block.start, draws.num_pixels))
        for piece in draws.probabilities(block):
            total += piece[:, classes].sum(1)
        yield from np.where(draws.inside(block), total / draws.num_samples, np.nan)


def _shares(graders: np.ndarray, classes: np.ndarray, truth: str) -> np.ndarray:
    """Return what every pixel adds to the risk of a case when it is missed (pixel,)."""
    flat = graders.reshape(len(graders), -1)
    marked = np.isin(flat, classes)[(flat != UNANNOTATED).any(1)]
    if truth == "union":
        marked = marked.any(0, keepdims=True)
    size = marked.sum(1, keepdims=True)
    return (marked / np.maximum(size, 1)).mean(0)


def _known(calibration: xr.Dataset, draws: Draws) -> list[int | str]:
    found = calibration.attrs["classes"]
    names = [found] if isinstance(found, str) else [str(name) for name in found]
    unknown = [name for name in names if name not in draws.names]
    if unknown:
        raise ValueError(
            f"The calibration has the foreground classes {names}; the tree has {list(draws.names)}."
        )
    return list(names)


def _annotated(graded: xr.DataArray) -> np.ndarray:
    """Which cases have an annotated pixel (case,)."""
    return known(graded).any([dim for dim in graded.dims if dim != "case"]).values


def _with_units(result: xr.Dataset) -> xr.Dataset:
    for name in {"threshold", "risk", "risk_mean", "risk_bound", "risk_se"} & set(result):
        result[name].attrs["units"] = "probability"
    if "area" in result:
        result["area"].attrs["units"] = "pixels"
    return result
