"""Shares of entries that belong to cases or patients, with intervals near exact.

Entries of one unit are alike, so that they count as fewer: n / D of them, D the ratio of the
variance over units to that of as many independent entries. The exact binomial interval of that
number is taken, which stays sensible where the share is 0 or 1 (there every unit counts once).

Source: Korn and Graubard, Survey Methodology 24, 1998.
"""

import numpy as np
from scipy.stats import t as student

from ppl_med.analysis.statistics.binning import clopper_pearson
from ppl_med.analysis.statistics.case_means import ratio_error


def share_interval(
    part: np.ndarray, whole: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a share over all units and the ends of its interval.

    Args:
        part: Entries of every unit that count (unit, ...).
        whole: All its entries (unit, ...).
        level: Probability of the interval.

    Returns:
        Three arrays (...), NaN where there are no entries. Of units with one entry each the
        interval is the exact one of Clopper and Pearson.
    """
    number = whole.sum(0).astype(np.float64)
    units = (whole > 0).sum(0)
    share = np.divide(part.sum(0), number, out=np.full(number.shape, np.nan), where=number > 0)
    effective = number.copy()
    clustered = whole.max(0) > 1
    if clustered.any():
        with np.errstate(divide="ignore", invalid="ignore"):
            counted = share * (1 - share) / ratio_error(part, whole) ** 2
            tail = (1 + level) / 2
            counted *= (student.ppf(tail, number - 1) / student.ppf(tail, units - 1)) ** 2
        usable = np.isfinite(counted) & (counted > 0)
        counted = np.where(usable, np.minimum(counted, number), units)
        effective = np.where(clustered, counted, number)
    lower, upper = clopper_pearson(np.nan_to_num(share) * effective, effective, level)
    return share, lower, upper
