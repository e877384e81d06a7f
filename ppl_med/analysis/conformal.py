"""Prediction sets that hold the true class with a stated probability (split conformal, LAC).

With s_i = 1 - p_i(label_i) the scores of n calibration cases, p the mean over draws,

    k = ceil((n + 1) (1 - alpha)),   threshold = k-th smallest score   (infinite if k > n)
    set of a case = {class : 1 - p(class) <= threshold}

If calibration and test cases are exchangeable, a set covers with probability at least
1 - alpha, whatever the model. For scores without ties the number of covered cases among
n_test follows BetaBinomial(n_test, k, n + 1 - k) exactly, over the choice of both data sets;
ties raise it. The draws need not be good: a poor posterior gives valid, large sets.

Sources: Sadinle, Lei and Wasserman, JASA 114, 2019 (score); Vovk, ACML 2012, and Angelopoulos
and Bates, arXiv:2107.07511, section 3.2 (law of the coverage).
"""

import math
from fractions import Fraction

import numpy as np
import xarray as xr
from scipy.stats import betabinom

from ppl_med.analysis import monte_carlo
from ppl_med.analysis.posterior import Posterior, class_names, observed, probabilities

_BAND = 0.99


def calibrate(tree: xr.DataTree, alpha: float = 0.1) -> xr.Dataset:
    """Learn the threshold from labelled cases that the model was not trained on.

    Args:
        tree: The tree of `predict` on the calibration cases, one label per case.
        alpha: Allowed share of sets that miss the true class, in (0, 1).

    Returns:
        Dataset of scalars ``threshold`` (probability; infinite when n is too small for alpha,
        which gives full sets), ``alpha``, ``n``, ``k``, and ``score`` (case) with the ids of
        the calibration cases and the names ``class`` as coordinates. It saves, loads and
        applies to any other tree with `predict_sets`.

    Raises:
        TypeError, ValueError: ``alpha`` out of range; ``probs`` or labels malformed; one case
            id twice; labels per pixel (pixels of one case are not exchangeable).
    """
    if isinstance(alpha, bool) or not 0 < alpha < 1:
        raise ValueError(f"alpha must lie in (0, 1), not {alpha!r}.")
    probs = probabilities(tree)
    label = _labels(tree, probs)
    _require_unique(_ids(probs))
    scores = _nonconformity(probs)
    score = (scores * _indicator(label, probs)).sum("class")
    num_cases = score.sizes["case"]
    rank = coverage_rank(num_cases, alpha)
    ordered = np.sort(score.values)
    threshold = float(ordered[rank - 1]) if rank <= num_cases else math.inf
    result = xr.Dataset(
        {
            "threshold": threshold,
            "alpha": float(alpha),
            "n": num_cases,
            "k": rank,
            "score": score.drop_vars([name for name in score.coords if name != "case"]),
        },
        coords={"case": _ids(probs), "class": class_names(probs)},
        attrs={"method": "lac", "mixture": "mean of probs over chain and draw"},
    )
    result["threshold"].attrs["units"] = "probability"
    return result


def predict_sets(calibration: xr.Dataset, tree: Posterior) -> xr.Dataset:
    """Return the prediction set of every case and, with labels, how often it covers.

    Args:
        calibration: What `calibrate` returned.
        tree: The tree of `predict` on other cases, or its ``probs``.

    Returns:
        Dataset with ``prediction_set`` (case, class) bool and ``set_size`` (case). With
        observed labels also ``covered`` (case), ``coverage``, the share of covered cases;
        ``coverage_expected`` = k / (n + 1) and ``coverage_lower``, ``coverage_upper``, the
        99 % band of the Beta-binomial law: coverage outside says that calibration and test
        cases are not exchangeable (below) or that scores are tied (above).

    Raises:
        TypeError, ValueError: ``calibration`` is not from `calibrate`, the classes differ,
            calibration and test share cases, a case id appears twice, or ``probs`` malformed.
    """
    _check_calibration(calibration)
    probs = probabilities(tree)
    if probs.ndim > 4:
        raise ValueError(f"probs has further dimensions {probs.dims[4:]}; sets are per case.")
    _check_classes(calibration, probs)
    _check_disjoint(calibration, probs)
    member = _nonconformity(probs) <= float(calibration["threshold"])
    result = xr.Dataset({"prediction_set": member, "set_size": member.sum("class")})
    result["set_size"].attrs["units"] = "classes"
    alpha = float(calibration["alpha"])
    result.attrs.update(method="lac", alpha=alpha, threshold=float(calibration["threshold"]))
    if isinstance(tree, xr.DataTree) and "observed_data" in tree.children:
        result = result.merge(_coverage(calibration, member, _labels(tree, probs)))
    return result


def coverage_rank(num_cases: int, alpha: float) -> int:
    """Return k = ceil((n + 1)(1 - alpha)) with alpha read as the decimal that was typed.

    In floating point (n + 1)(1 - alpha) can land just above an integer and lose a rank.
    """
    exact = Fraction(repr(float(alpha)))
    return math.ceil((num_cases + 1) * (1 - exact))


def coverage_band(
    num_test: int, num_cases: int, rank: int, level: float = _BAND
) -> tuple[float, float]:
    """Return the equal-tailed band of the share of covered cases, exact for untied scores.

    Args:
        num_test: Number of test cases.
        num_cases: Number of calibration cases, n.
        rank: k of the calibration; above n every set is full and coverage is 1.
        level: Probability of the band, at least.

    Returns:
        Lower and upper share; a share on either bound is inside.
    """
    if rank > num_cases:
        return 1.0, 1.0
    counts = np.arange(num_test + 1)
    mass = betabinom.pmf(counts, num_test, rank, num_cases + 1 - rank)
    tail = (1 - level) / 2
    lower = int(np.searchsorted(np.cumsum(mass), tail, side="right"))
    upper = num_test - int(np.searchsorted(np.cumsum(mass[::-1]), tail, side="right"))
    return lower / num_test, upper / num_test


def _coverage(calibration: xr.Dataset, member: xr.DataArray, label: xr.DataArray) -> xr.Dataset:
    covered = (member & (_indicator(label, member) > 0)).any("class")
    num_cases, rank = int(calibration["n"]), int(calibration["k"])
    lower, upper = coverage_band(covered.sizes["case"], num_cases, rank)
    figures = {
        "coverage": float(covered.mean()),
        "coverage_expected": min(rank / (num_cases + 1), 1.0),
        "coverage_lower": lower,
        "coverage_upper": upper,
    }
    result = xr.Dataset({"covered": covered, **figures})
    for name in figures:
        result[name].attrs["units"] = "probability"
    result["coverage_lower"].attrs["note"] = "99 % band of the Beta-binomial law given n, k"
    result["coverage_upper"].attrs["note"] = "99 % band of the Beta-binomial law given n, k"
    return result


def _nonconformity(probs: xr.DataArray) -> xr.DataArray:
    return 1 - monte_carlo.mean(probs)


def _labels(tree: Posterior, probs: xr.DataArray) -> xr.DataArray:
    label = observed(tree, probs)
    if label.ndim > 1:
        raise ValueError(
            f"The observation has dimensions {label.dims}: pixels of one case are not "
            "exchangeable and no coverage would hold. Use one label per case."
        )
    return label


def _indicator(label: xr.DataArray, probs: xr.DataArray) -> xr.DataArray:
    columns = probs["class"].copy(data=np.arange(probs.sizes["class"]))
    return (label == columns.assign_coords(probs["class"].coords)).astype(np.float64)


def _ids(probs: xr.DataArray) -> np.ndarray:
    if "case" not in probs.coords:
        raise ValueError(
            "probs has no case ids, so calibration and test cases cannot be told apart; give "
            "the batches an 'id' per case, or assign_coords(case=...)."
        )
    return probs["case"].values


def _require_unique(ids: np.ndarray) -> None:
    names, counts = np.unique(ids.astype(str), return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"Case id {str(names[counts > 1][0])!r} appears {counts.max()} times; repeated "
            "cases are not exchangeable. Keep one of each."
        )


def _check_calibration(calibration: xr.Dataset) -> None:
    needed = {"threshold", "alpha", "n", "k", "score"}
    if not isinstance(calibration, xr.Dataset) or not needed <= set(calibration):
        raise TypeError("calibration must be the Dataset that conformal.calibrate returned.")
    if calibration.attrs.get("method") != "lac":
        raise ValueError(
            f"calibration has method {calibration.attrs.get('method')!r}; expected 'lac'."
        )


def _check_classes(calibration: xr.Dataset, probs: xr.DataArray) -> None:
    old, new = [str(name) for name in calibration["class"].values], class_names(probs)
    if old != new:
        raise ValueError(f"The calibration knows the classes {old}; the tree has {new}.")


def _check_disjoint(calibration: xr.Dataset, probs: xr.DataArray) -> None:
    ids = _ids(probs)
    _require_unique(ids)
    shared = np.intersect1d(ids.astype(str), calibration["case"].values.astype(str))
    if shared.size:
        raise ValueError(
            f"Calibration and test share {shared.size} case(s), e.g. {str(shared[0])!r}; coverage "
            "would not hold. Split the cases first, and give each its own id."
        )
