"""Shares of the classes among unlabelled cases, where nothing else has shifted.

Both methods take for granted that p(image | class) is what it was. `shares_by_confusion` needs a
classifier that tells the classes apart, however badly calibrated; `shares_by_em` needs calibrated
probabilities, and uses them better.

Sources: Lipton, Wang and Smola, ICML 2018, arXiv:1802.03916 (black-box shift estimation); Saerens,
Latinne and Decaestecker, Neural Computation 14, 2002 (EM); Alexandari, Kundaje and Shrikumar, ICML
2020, arXiv:1901.06852 (why to calibrate before EM).
"""

from collections.abc import Callable
from itertools import chain

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.statistics.group_resampling import group_weights, named_errors
from ppl_med.analysis.tree import case_units, check_disjoint, open_classes

_STEPS = 2000
_CLOSE = 1e-9  # change of every share at which EM stops
_WHY = "the shares of the reference would count among the new cases"


def shares_by_confusion(
    tree: xr.DataTree,
    reference: xr.DataTree,
    *,
    group: str | xr.DataArray | None = None,
    group_reference: str | xr.DataArray | None = None,
    resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Estimate shares from how often each class is called: black-box shift estimation.

    With C the shares of (called i, class j) among reference cases and m_i those of the calls among
    the new ones, w = C^-1 m is the ratio of new to old shares; negative ones become 0.

    Args:
        tree: The tree of `predict` on new cases; labels are not read.
        reference: The same on labelled cases that the network has not seen.
        group: Units of the errors among new cases: a column such as "patient", or the groups
            (case); None for "patient" where there is such a column, else cases.
        group_reference: Likewise of the reference.
        resamples: How often units of both are drawn for the errors.
        level: Probability of the intervals.
        seed: Seed of the resamples.

    Returns:
        Dataset over class: ``share`` of the new cases, probability, with ``_se``, ``_lower`` and
        ``_upper`` (bootstrap over units of both; NaN for fewer than 5 units), ``reference_share``
        and ``weight``, new over old.

    Raises:
        TypeError, ValueError: Malformed trees, other classes, shared cases; a class without
            reference cases; a confusion matrix that is not told from a singular one.
    """
    return _shares(
        tree, reference, confusion_shares, (group, group_reference), resamples, level, seed
    )


def shares_by_em(
    tree: xr.DataTree,
    reference: xr.DataTree,
    *,
    group: str | xr.DataArray | None = None,
    group_reference: str | xr.DataArray | None = None,
    resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Estimate shares by maximum likelihood, by expectation-maximization.

    The probabilities of a new case are those of the mixture over draws times new over old share.
    They are taken as calibrated under the shares of the reference: calibrate them first
    (`ppl_med.analysis.calibration`).

    Args:
        tree: As for `shares_by_confusion`.
        reference: Likewise.
        group: Likewise.
        group_reference: Likewise.
        resamples: Likewise.
        level: Likewise.
        seed: Likewise.

    Returns:
        As for `shares_by_confusion`.

    Raises:
        TypeError, ValueError: Malformed trees, other classes, shared cases; a class without
            reference cases.
    """
    return _shares(tree, reference, em_shares, (group, group_reference), resamples, level, seed)


def confusion_shares(
    probs: np.ndarray,
    weight: np.ndarray,
    known: np.ndarray,
    label: np.ndarray,
    known_weight: np.ndarray,
) -> np.ndarray:
    """Shares (class,) from calls.

    Args:
        probs: Probabilities of the new cases (case, class).
        weight: How often each counts (case,).
        known: Probabilities of labelled cases (case, class).
        label: Their classes (case,).
        known_weight: How often each counts (case,).

    Returns:
        Shares, NaN where `separation` is not above one standard error of a share.
    """
    joint = _joint(known, label, known_weight)
    if separation(joint) <= known_weight.sum() ** -0.5:
        return np.full(probs.shape[1], np.nan)
    called = np.bincount(probs.argmax(1), weight, probs.shape[1]) / weight.sum()
    share = np.maximum(np.linalg.solve(joint, called), 0) * joint.sum(0)
    return share / share.sum()


def separation(joint: np.ndarray) -> float:
    """Smallest singular value of P(called | class), 0 where a class does not occur."""
    sums = joint.sum(0)
    if (sums == 0).any():
        return 0.0
    return float(np.linalg.svd(joint / sums, compute_uv=False)[-1])


def em_shares(
    probs: np.ndarray,
    weight: np.ndarray,
    known: np.ndarray,
    label: np.ndarray,
    known_weight: np.ndarray,
) -> np.ndarray:
    """Shares (class,) of greatest likelihood; arguments as for `confusion_shares`."""
    prior = np.bincount(label, known_weight, probs.shape[1]) / known_weight.sum()
    if (prior == 0).any():
        return np.full(probs.shape[1], np.nan)
    ratio, share, weight = probs / prior, prior, weight / weight.sum()
    for _ in range(_STEPS):
        chance = ratio * share
        following = weight @ (chance / chance.sum(1, keepdims=True))
        close = np.abs(following - share).max() < _CLOSE
        share = following
        if close:
            break
    return share


def _joint(probs: np.ndarray, label: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Shares of (called, class)."""
    result = np.zeros((probs.shape[1],) * 2)
    np.add.at(result, (probs.argmax(1), label), weight)
    return result / weight.sum()


def _shares(
    tree: xr.DataTree,
    reference: xr.DataTree,
    estimate: Callable[..., np.ndarray],
    groups: tuple[str | xr.DataArray | None, str | xr.DataArray | None],
    resamples: int,
    level: float,
    seed: int,
) -> xr.Dataset:
    checks.whole("resamples", resamples, least=0)
    checks.inside("level", level)
    new, old = open_classes(tree), open_classes(reference)
    for name, one in (("tree", new), ("reference", old)):
        if one.array.ndim != 4:
            checks.reject(name, "of one class per case", one.array.dims)
    if new.names != old.names:
        raise ValueError(f"tree has the classes {new.names}, reference {old.names}.")
    if "case" in new.array.coords and "case" in old.array.coords:
        ids = old.array["case"].values, new.array["case"].values
        check_disjoint(*ids, "reference and tree", _WHY)
    label, rows, counts = old.labelled_cases()
    prior = np.bincount(label, minlength=len(new.names)) / len(label)
    if (prior == 0).any():
        raise ValueError(
            f"reference has no case of class {new.names[int(prior.argmin())]!r}, so that its share "
            "cannot be told; add some, or select the other classes."
        )
    probs, known = new.mixture().values, old.mixture().values[rows]
    units = [
        case_units(tree, groups[0], new.array)[0],
        np.unique(case_units(reference, groups[1], old.array)[0][rows], return_inverse=True)[1],
    ]
    whole = [np.ones(len(one)) for one in units]
    share = estimate(probs, whole[0], known, label, whole[1])
    if np.isnan(share).any():
        raise ValueError(
            "The confusion matrix of the reference is singular, or cannot be told from a singular "
            f"one: the smallest singular value of P(called | class) is "
            f"{separation(_joint(known, label, whole[1])):.3g}, one standard error of a share "
            f"{len(label) ** -0.5:.3g}. The calls do not tell the classes apart; use shares_by_em, "
            "join classes, or give more labelled cases."
        )
    sizes = [int(one.max()) + 1 for one in units]
    pairs = zip(
        group_weights(sizes[0], resamples, seed),
        group_weights(sizes[1], resamples, seed + 1),
        strict=False,
    )
    drawn = [estimate(probs, a[units[0]], known, label, b[units[1]]) for a, b in pairs]
    table = np.array(drawn).reshape(-1, len(share))
    result = xr.Dataset({"share": ("class", share)}, {"class": new.names})
    errors = named_errors("share", table, level)
    result = result.assign({name: ("class", values) for name, values in errors.items()})
    result["reference_share"], result["weight"] = ("class", prior), ("class", share / prior)
    for name in chain(errors, ("share", "reference_share")):
        result[name].attrs["units"] = "probability"
    result.attrs = {"level": level, "new_cases": len(probs)} | counts
    return result
