"""Maps of the probability of each class against the rest, put together by normalising.

With p the probability of a class, its calibrated one is first

    isotonic    the non-decreasing function of least squared error, linear between its pieces
    beta        sigmoid(a log p - b log(1 - p) + c) with a, b at least 0
    histogram   share of the class in a bin of p; bins hold equally many cases, up to ties

and then divided by the sum over classes. Where isotonic regression or histogram give 0 to every
class of a case, the case gets equal probabilities, and `apply` counts such cases.

Sources: Zadrozny and Elkan, ICML 2001 (histogram) and KDD 2002 (isotonic, one against the rest);
Kull, Silva Filho and Flach, AISTATS 2017 (beta).
"""

import numpy as np
from scipy.special import expit, logit

from ppl_med.analysis.calibration import newton
from ppl_med.analysis.calibration.logit_maps import Parameters
from ppl_med.analysis.statistics import isotonic


def learn_isotonic(log_probs: np.ndarray, label: np.ndarray) -> Parameters:
    """Return the ends of the flat pieces, ``knot`` and ``value`` (class, knot), NaN where none."""
    found = [
        isotonic.knots(column, (label == index).astype(np.float64))
        for index, column in enumerate(np.exp(log_probs).T)
    ]
    longest = max(len(knot) for knot, _ in found)
    table = np.full((2, len(found), longest), np.nan)
    for index, pair in enumerate(found):
        table[:, index, : len(pair[0])] = pair
    return {"knot": table[0], "value": table[1]}


def apply_isotonic(parameters: Parameters, log_probs: np.ndarray) -> np.ndarray:
    """Return calibrated log-probabilities (case, class)."""
    columns = []
    rows = zip(np.exp(log_probs).T, parameters["knot"], parameters["value"], strict=True)
    for column, knot, value in rows:
        kept = np.isfinite(knot)
        columns.append(np.interp(column, knot[kept], value[kept]))
    return normalise(np.stack(columns, 1))


def learn_beta(log_probs: np.ndarray, label: np.ndarray) -> Parameters:
    """Return ``a``, ``b`` and ``c`` (class) of least NLL of each class against the rest.

    Raises:
        ValueError: A probability is 0 or 1, or no finite parameters are best.
    """
    inputs = _both_logs(log_probs)
    found = [
        _learn_one_beta(inputs[:, index], (label == index).astype(np.int64))
        for index in range(log_probs.shape[1])
    ]
    a, b, c = np.array(found).T
    return {"a": a, "b": b, "c": c}


def apply_beta(parameters: Parameters, log_probs: np.ndarray) -> np.ndarray:
    """Return calibrated log-probabilities (case, class)."""
    inputs = _both_logs(log_probs)
    slope = np.stack([parameters["a"], parameters["b"]], -1)
    return normalise(expit((inputs * slope).sum(-1) + parameters["c"]))


def learn_histogram(log_probs: np.ndarray, label: np.ndarray, bins: int = 10) -> Parameters:
    """Return inner ``edge`` (class, edge), closed on the right, and ``value`` (class, bin).

    Bins without a case (of ties) have the value of the next one below, which no case uses.
    """
    probs = np.exp(log_probs)
    levels = np.arange(1, bins) / bins
    edge = np.quantile(probs, levels, axis=0, method="inverted_cdf").T
    value = np.empty((probs.shape[1], bins))
    for index, column in enumerate(probs.T):
        place = np.searchsorted(edge[index], column, side="left")
        count = np.bincount(place, minlength=bins)
        hits = np.bincount(place, label == index, bins)
        filled = np.maximum.accumulate(np.where(count > 0, np.arange(bins), 0))
        value[index] = (hits / np.maximum(count, 1))[filled]
    return {"edge": edge, "bin_value": value}


def apply_histogram(parameters: Parameters, log_probs: np.ndarray) -> np.ndarray:
    """Return calibrated log-probabilities (case, class)."""
    columns = [
        value[np.searchsorted(edge, column, side="left")]
        for column, edge, value in zip(
            np.exp(log_probs).T, parameters["edge"], parameters["bin_value"], strict=True
        )
    ]
    return normalise(np.stack(columns, 1))


def normalise(shares: np.ndarray) -> np.ndarray:
    """Return logarithms of shares (case, class) divided by their sum; equal where all are 0."""
    total = shares.sum(1, keepdims=True)
    even = np.full_like(shares, 1 / shares.shape[1])
    with np.errstate(divide="ignore"):
        return np.log(np.divide(shares, total, out=even, where=total > 0))


def _both_logs(log_probs: np.ndarray) -> np.ndarray:
    """Logarithm of p and minus that of 1 - p (case, class, 2).

    1 - p is the sum of the other classes, which are known well where p was rounded to 1.
    """
    least = np.full_like(log_probs[:, :1], -np.inf)
    below = np.logaddexp.accumulate(log_probs[:, :-1], axis=1)
    above = np.logaddexp.accumulate(log_probs[:, :0:-1], axis=1)[:, ::-1]
    others = np.logaddexp(np.hstack([least, below]), np.hstack([above, least]))
    if np.isneginf(log_probs).any() or np.isneginf(others).any():
        count = int((np.isneginf(log_probs) | np.isneginf(others)).any(1).sum())
        raise ValueError(
            f"{count} case(s) have a class of probability exactly 0, where the beta map has no "
            "value; predict in float64, or use method='temperature' or 'histogram'."
        )
    return np.stack([log_probs, -others], -1)


def _learn_one_beta(inputs: np.ndarray, happened: np.ndarray) -> tuple[float, float, float]:
    """Slopes a, b and intercept c; a slope that would be negative is 0 instead."""
    share = happened.mean()
    if share in (0, 1):
        raise ValueError("A class never, or always, occurs among the calibration cases.")
    constant = np.array([0.0, 0.0, logit(share)])
    both = _fit_slopes(inputs, happened, [0, 1])
    if (both[:2] >= 0).all():
        return float(both[0]), float(both[1]), float(both[2])
    # The NLL is convex: where its minimum is not allowed, the least allowed one is on the border.
    border = [constant, *(_fit_slopes(inputs, happened, [kept]) for kept in (0, 1))]
    allowed = [point for point in border if (point[:2] >= 0).all()]
    a, b, c = min(allowed, key=lambda point: _mean_nll(inputs, happened, point))
    return float(a), float(b), float(c)


def _fit_slopes(inputs: np.ndarray, happened: np.ndarray, kept: list[int]) -> np.ndarray:
    """Both slopes and the intercept of least NLL where only some slopes are not 0."""
    found = newton.minimise(_two_sided, inputs[:, kept], happened, np.zeros(len(kept) + 1))
    point = np.zeros(3)
    point[[*kept, 2]] = found
    return point


def _mean_nll(inputs: np.ndarray, happened: np.ndarray, point: np.ndarray) -> float:
    logits = inputs @ point[:2] + point[2]
    return float(np.logaddexp(0, logits).mean() - (happened * logits).mean())


def _two_sided(inputs: np.ndarray) -> np.ndarray:
    """Logits 0 and inputs @ slopes + intercept, as a design (case, 2, parameter)."""
    rows = np.concatenate([inputs, np.ones((len(inputs), 1))], 1)
    return np.stack([np.zeros_like(rows), rows], 1)
