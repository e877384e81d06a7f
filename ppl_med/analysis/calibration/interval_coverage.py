"""Coverage of predicted intervals of numbers at every level, and the calibration error from it.

The central interval of level p holds the observation where |2 u - 1| <= p, u its probability
integral transform; so no quantile of the mixture need be found. With c_p the share that it holds,
and q_p the share at or below the quantile of level p,

    interval_error       mean over levels of |c_p - p|                      probability
    calibration_error    mean over levels of (q_p - p)^2                    probability^2

Both are positive by chance too. For one number per case the value expected of calibrated
predictions stands beside them (``_null``): exact, by the binomial distribution of each share.

Sources: Kuleshov, Fenner and Ermon, ICML 2018, arXiv:1807.00263, eq. 9 with equal weights that sum
to one; Clopper and Pearson, Biometrika 26, 1934.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from scipy import stats

from ppl_med.analysis.calibration.transforms import pit
from ppl_med.analysis.statistics import binning
from ppl_med.analysis.statistics.case_means import ratio_error
from ppl_med.analysis.statistics.draw_ranks import check_levels
from ppl_med.checks import inside
from ppl_med.moved import renamed_argument

LEVELS = tuple(round(0.05 * step, 2) for step in range(1, 20))


@renamed_argument("law", "distribution")
def coverage(
    tree: xr.DataTree,
    site: str | None = None,
    *,
    levels: Sequence[float] = LEVELS,
    distribution: str | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Share of observed numbers inside the central interval of every level.

    Args:
        tree: The tree of `predict` on cases with observed numbers; lazy ones are read in parts.
        site: Name of the observed site; None takes the only one.
        levels: Probabilities of the intervals and of the quantiles, in (0, 1).
        distribution: As for `pit`.
        confidence: Probability of the intervals around ``coverage``.
        seed: As for `pit`.

    Returns:
        Dataset over level: ``coverage`` with ``lower``, ``upper`` and ``coverage_se``;
        ``below``, the share at or below the quantile of that level, with ``below_se``; scalars
        ``interval_error``, ``calibration_error``, and for one number per case their ``_null``.
        There the intervals are exact (Clopper-Pearson). Of maps all observed pixels count the
        same, the standard errors are over cases and the intervals Student's t, NaN for one case.

    Raises:
        TypeError, ValueError: As for `pit`; a level out of range.
    """
    inside("confidence", confidence)
    array = check_levels(levels)
    transformed = pit(tree, site, distribution=distribution, seed=seed)
    values = transformed["pit"].values.reshape(transformed.sizes["case"], -1)
    known = ~np.isnan(values)
    kept = np.where(known, values, 2.0)  # 2 lies in no interval
    central = np.abs(2 * kept - 1)
    held = np.stack([(central <= level).sum(1) for level in array], axis=1)
    below = np.stack([(kept <= level).sum(1) for level in array], axis=1)
    count = np.repeat(known.sum(1)[:, None], len(array), axis=1)
    result = xr.Dataset(coords={"level": ("level", array, {"units": "probability"})})
    for name, hits in (("coverage", held), ("below", below)):
        result[name] = ("level", hits.sum(0) / count.sum(0))
        result[f"{name}_se"] = ("level", ratio_error(hits.astype(float), count.astype(float)))
    single = transformed["pit"].ndim == 1
    number = int(known.sum())
    ends = (
        binning.clopper_pearson(held.sum(0), count.sum(0), confidence)
        if single
        else _student(result, int(known.any(1).sum()), confidence)
    )
    result["lower"], result["upper"] = (("level", end) for end in ends)
    result["interval_error"] = abs(result["coverage"] - result["level"]).mean()
    result["calibration_error"] = ((result["below"] - result["level"]) ** 2).mean()
    if single:
        result["interval_error_null"] = ((), _mean_deviation(number, array).mean())
        result["calibration_error_null"] = ((), (array * (1 - array)).mean() / number)
    for key, variable in result.data_vars.items():
        squared = str(key).startswith("calibration_error")
        variable.attrs["units"] = "probability^2" if squared else "probability"
    result.attrs.update(transformed.attrs, confidence=confidence)
    result.attrs["interval"] = "Clopper-Pearson" if single else "Student's t over cases"
    return result


def _student(
    result: xr.Dataset, num_cases: int, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    if num_cases < 2:
        empty = np.full(result.sizes["level"], np.nan)
        return empty, empty
    reach = stats.t.isf((1 - confidence) / 2, num_cases - 1) * result["coverage_se"].values
    centre = result["coverage"].values
    return (centre - reach).clip(0, 1), (centre + reach).clip(0, 1)


def _mean_deviation(number: int, level: np.ndarray) -> np.ndarray:
    """E|X / n - p| of a binomial X, by De Moivre's formula."""
    above = np.floor(number * level) + 1
    result: np.ndarray = 2 * above * (1 - level) * stats.binom.pmf(above, number, level) / number
    return result


def _check_levels(levels: Sequence[float]) -> np.ndarray:
    array = np.asarray(levels, np.float64)
    if array.ndim != 1 or not array.size or not ((array > 0) & (array < 1)).all():
        raise ValueError(f"levels must be a list of probabilities in (0, 1), not {levels!r}.")
    return array
