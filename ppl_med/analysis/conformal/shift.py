"""Do calibration and test cases look exchangeable? Two-sample tests with a stated false alarm.

Every feature (the score of the true class where labels are known, the mixture probability of
every class, the mean of a number) is compared by a Kolmogorov-Smirnov test; the smallest p-value
times the number of tests (Bonferroni) is a valid p-value of all. Where thresholds hold within
groups, the groups are compared one by one: their shares may differ.

A silent test does not prove that coverage holds: it sees only these features, and only as well as
the number of cases allows.
"""

import warnings

import numpy as np
import xarray as xr
from scipy.stats import ks_2samp

FALSE_ALARM = 1e-3
_EXACT = 500  # cases in either sample, beyond which the asymptotic distribution is used


def two_sample_pvalue(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Bonferroni p-value over the features.

    Args:
        first: (case, feature).
        second: (case, feature), other cases; NaN where a feature is not known.

    Returns:
        Probability, at most 1; 1 where a sample is empty.
    """
    if not len(first) or not len(second):
        return 1.0
    method = "exact" if max(len(first), len(second)) <= _EXACT else "asymp"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ks_2samp: Exact calculation unsuccessful")
        found = []
        for one, other in zip(first.T, second.T, strict=True):
            other = other[~np.isnan(other)]
            found.append(float(ks_2samp(one, other, method=method).pvalue) if other.size else 1.0)
    return min(1.0, min(found) * len(found))


def compare(
    first: np.ndarray,
    second: np.ndarray,
    groups: tuple[np.ndarray, np.ndarray] | None,
    false_alarm: float,
) -> xr.DataArray:
    """Test for shift, and warn where it is found.

    Args:
        first: Features of the calibration cases (case, feature).
        second: Features of the test cases (case, feature).
        groups: Group of every calibration and every test case; None for one group.
        false_alarm: Warn below this p-value; 0 never warns.

    Returns:
        The p-value, with what was tested in its attributes.

    Warns:
        RuntimeWarning: The p-value is below ``false_alarm``.
    """
    if groups is None:
        pvalue = two_sample_pvalue(first, second)
    else:
        names = np.unique(groups[1])
        parts = [two_sample_pvalue(first[groups[0] == g], second[groups[1] == g]) for g in names]
        pvalue = min(1.0, min(parts) * len(parts))
    if pvalue < false_alarm:
        warnings.warn(
            f"Calibration and test cases look different (p = {pvalue:.2g}, alarm below "
            f"{false_alarm:g}): the coverage may not hold. Calibrate on cases like the test "
            "cases, or pass weights for a known covariate shift.",
            RuntimeWarning,
            stacklevel=4,
        )
    note = f"Kolmogorov-Smirnov, Bonferroni over {first.shape[1]} feature(s)"
    note += "" if groups is None else ", within groups"
    return xr.DataArray(
        pvalue, attrs={"units": "probability", "test": note, "false_alarm": false_alarm}
    )
