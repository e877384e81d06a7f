"""How far the functions of a guide are from those of NUTS."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ppl_med.analysis.statistics.two_sample import mmd

LEVEL = 0.9
MOST_DRAWS = 300  # of either side, in the discrepancy


def features(values: NDArray) -> NDArray:
    """Function values (draw, feature) of numbers (chain, draw, case) or probs (..., class).

    Of K classes the last K - 1, which tell the first.
    """
    flat = values.reshape(-1, *values.shape[2:]).astype(np.float64)
    return flat if flat.ndim == 2 else flat[..., 1:].reshape(len(flat), -1)


def compare(found: NDArray, reference: NDArray, truth: NDArray | None) -> xr.Dataset:
    """Scores of one guide.

    Args:
        found: Its functions, dims (draw, feature).
        reference: Those of NUTS.
        truth: The true function, dims (feature,); None where it is not known.

    Returns:
        Dataset of ``mean_error`` (root mean square over the features, in root mean square posterior
        standard deviations), ``sd_ratio`` (mean standard deviation over NUTS's), ``sd_error`` (root
        mean square difference, relative), ``mmd`` (squared, unbiased, of joint function values),
        ``coverage`` (of a function of NUTS by the guide's pointwise 90 % intervals; 0.9 is right)
        and ``truth_coverage``, shares.
    """
    own = found.std(0, ddof=1) if len(found) > 1 else np.zeros(found.shape[1])
    sd = reference.std(0, ddof=1)
    unit = np.sqrt(np.mean(sd**2))
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    scores = {
        "mean_error": np.sqrt(np.mean((found.mean(0) - reference.mean(0)) ** 2)) / unit,
        "sd_ratio": own.mean() / sd.mean(),
        "sd_error": np.sqrt(np.mean((own - sd) ** 2)) / unit,
        "mmd": _discrepancy(found, reference),
        "coverage": np.mean((low <= reference) & (reference <= high)),
        "truth_coverage": np.nan if truth is None else np.mean((low <= truth) & (truth <= high)),
    }
    return xr.Dataset({name: float(value) for name, value in scores.items()})


def _discrepancy(found: NDArray, reference: NDArray) -> float:
    parts = [_evenly(one, MOST_DRAWS) for one in (found, reference)]
    if len(parts[0]) < 2:
        return float("nan")
    return mmd(*parts, permutations=1).statistic


def _evenly(draws: NDArray, most: int) -> NDArray:
    if len(draws) <= most:
        return draws
    return draws[np.linspace(0, len(draws) - 1, most).round().astype(int)]
