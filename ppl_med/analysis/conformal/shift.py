"""Do calibration and test cases look exchangeable? Two-sample tests with a stated false alarm.

Two things are looked at, each with half of the false alarm.

Where labels are known, the coverage itself: whether so few test cases are covered by chance.

Every feature (the score of the true class where labels are known, the mixture probability of
every class, the mean of a number) is compared by a Kolmogorov-Smirnov test; the smallest p-value
times the number of tests (Bonferroni) is a valid p-value of all. Where thresholds hold within
groups, the groups are compared one by one: their shares may differ. Where cases have weights for a
covariate shift, the weighted calibration cases are compared, with Kish's effective number of them:
weights that do not undo the shift are seen too. That test is approximate.

A silent test does not prove that coverage holds: it sees only these features, and only as well as
the number of cases allows.
"""

import warnings

import numpy as np
import xarray as xr

from ppl_med.analysis.statistics.two_sample import kolmogorov_smirnov

FALSE_ALARM = 0.01


def compare(
    first: np.ndarray,
    second: np.ndarray,
    groups: tuple[np.ndarray, np.ndarray] | None,
    false_alarm: float,
    *,
    weights: np.ndarray | None = None,
    coverage_pvalue: float | None = None,
) -> xr.DataArray:
    """Test for shift, and warn where it is found.

    Args:
        first: Features of the calibration cases (case, feature).
        second: Features of the test cases (case, feature).
        groups: Group of every calibration and every test case; None for one group.
        false_alarm: Warn below this p-value; 0 never warns.
        weights: Of the calibration cases, for a covariate shift.
        coverage_pvalue: How likely it is that so few test cases are covered, where it is known.

    Returns:
        The p-value, with what was tested in its attributes.

    Warns:
        RuntimeWarning: The p-value is below ``false_alarm``.
    """
    if groups is None:
        pvalue = kolmogorov_smirnov(first, second, weights=weights).pvalue
    else:
        names = np.unique(groups[1])
        parts = [
            kolmogorov_smirnov(first[groups[0] == g], second[groups[1] == g]).pvalue for g in names
        ]
        pvalue = min(1.0, min(parts) * len(parts))
    sign = "look different"
    if coverage_pvalue is not None:
        if coverage_pvalue < pvalue:
            sign = "are not alike: fewer test cases are covered than chance allows"
        pvalue = min(1.0, 2 * min(pvalue, coverage_pvalue))
    if pvalue < false_alarm:
        fix = "Calibrate on cases like the test cases"
        fix += ", or pass weights for a known covariate shift." if weights is None else "."
        warnings.warn(
            f"Calibration and test cases {sign} (p = {pvalue:.2g}, alarm below {false_alarm:g})"
            f"{'' if weights is None else ', weighted as they are'}: the coverage may not hold. "
            f"{fix}",
            RuntimeWarning,
            stacklevel=4,
        )
    note = f"Kolmogorov-Smirnov, Bonferroni over {first.shape[1]} feature(s)"
    note += "" if groups is None else ", within groups"
    note += "" if weights is None else ", calibration cases weighted (approximate)"
    note += "" if coverage_pvalue is None else "; and the coverage, each with half the false alarm"
    return xr.DataArray(
        pvalue, attrs={"units": "probability", "test": note, "false_alarm": false_alarm}
    )
