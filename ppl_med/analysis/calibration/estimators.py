"""Calibration errors of one set of probabilities: plain arrays in, one number out.

All take the probability of an event and whether it happened, both (case,). Ties cannot change a
result: cases of equal probability always share a bin.

Sources: Naeini et al., AAAI 2015, and Guo et al., ICML 2017, arXiv:1706.04599 (ECE, MCE); Nixon et
al., arXiv:1904.01685 (equal mass, classwise); Kumar, Liang and Ma, NeurIPS 2019, arXiv:1909.10155
(debiased); Roelofs et al., AISTATS 2022, arXiv:2012.08668 (sweep); Gupta and Ramdas, ICLR 2022,
arXiv:2107.08353 (top label).
"""

import numpy as np

from ppl_med.analysis.statistics import binning


def binned_errors(probability: np.ndarray, outcome: np.ndarray, bins: int) -> dict[str, float]:
    """Return errors from bins of equal width; empty bins weigh nothing.

    Args:
        probability: Predicted probability (case,).
        outcome: 1 where it happened, else 0 (case,).
        bins: Number of bins.

    Returns:
        ``ece`` sum of count / N |gap|, ``ace`` mean of |gap| over filled bins, ``mce`` the largest
        |gap|, ``rmsce`` the root of the sum of count / N gap^2; gap = share - mean probability.
    """
    index = binning.equal_width(probability, bins)
    count = np.bincount(index, minlength=bins)
    sums = np.bincount(index, outcome - probability, bins)[count > 0]
    count = count[count > 0]
    gap = np.abs(sums) / count
    return {
        "ece": float(np.abs(sums).sum() / count.sum()),
        "ace": float(gap.mean()),
        "mce": float(gap.max()),
        "rmsce": float((count * gap**2).sum() / count.sum()) ** 0.5,
    }


def top_label_error(
    probability: np.ndarray, outcome: np.ndarray, predicted: np.ndarray, bins: int
) -> float:
    """Return the expected calibration error inside each predicted class.

    Args:
        probability: Probability of the predicted class (case,).
        outcome: 1 where it is right, else 0 (case,).
        predicted: Index of the predicted class (case,).
        bins: Number of bins of equal width, for each class.
    """
    index = binning.equal_width(probability, bins) + bins * predicted
    return float(np.abs(np.bincount(index, outcome - probability)).sum() / probability.size)


def equal_mass_errors(probability: np.ndarray, outcome: np.ndarray, bins: int) -> dict[str, float]:
    """Return errors from bins with equally many cases, up to ties.

    Args:
        probability: Predicted probability (case,).
        outcome: 1 where it happened, else 0 (case,).
        bins: Number of bins; never more than cases.

    Returns:
        ``ece_equal_mass``; ``ece_sweep``, with as many bins as keep the shares rising;
        ``squared_error``, the sum of count / N gap^2; ``squared_error_debiased``, the same from
        products of different cases of a bin: unbiased, so it can be negative; bins of one case
        are left out, and without others it is NaN.
    """
    order = np.argsort(probability)
    probability, outcome = probability[order], outcome[order]
    # A bin may end only where the probability changes.
    ends = np.searchsorted(probability, probability, side="right")
    gap = np.concatenate([[0.0], np.cumsum(outcome - probability)])
    square = np.concatenate([[0.0], np.cumsum((outcome - probability) ** 2)])
    edges = _edges(ends, bins)
    count, sums, squares = np.diff(edges), np.diff(gap[edges]), np.diff(square[edges])
    pairs = count > 1
    debiased = np.nan
    if pairs.any():
        terms = (sums**2 - squares)[pairs] / (count[pairs] - 1)
        debiased = float(terms.sum() / count[pairs].sum())
    swept = _edges(ends, _rising_bins(ends, outcome))
    return {
        "ece_equal_mass": float(np.abs(sums).sum() / probability.size),
        "ece_sweep": float(np.abs(np.diff(gap[swept])).sum() / probability.size),
        "squared_error": float((sums**2 / count).sum() / probability.size),
        "squared_error_debiased": debiased,
    }


def _edges(ends: np.ndarray, bins: int) -> np.ndarray:
    """Positions in the sorted cases where bins start and end."""
    size = len(ends)
    bins = min(bins, size)
    last = -(-size * np.arange(1, bins + 1) // bins) - 1
    return np.concatenate([[0], np.unique(ends[last])])


def _rising_bins(ends: np.ndarray, outcome: np.ndarray) -> int:
    """Largest number of bins up to which the share never falls from bin to bin."""
    total = np.concatenate([[0.0], np.cumsum(outcome)])
    finest = _edges(ends, len(ends))
    if (np.diff(np.diff(total[finest]) / np.diff(finest)) >= 0).all():
        return len(ends)  # what rises from case to case rises from bin to bin
    for bins in range(2, len(ends) + 1):
        edges = _edges(ends, bins)
        if (np.diff(np.diff(total[edges]) / np.diff(edges)) < 0).any():
            return bins - 1
    return len(ends)
