"""Split of the predictive variance of a number, by the law of total variance.

With m_s and v_s the mean and variance of the value under draw s:

    total  =  mean of v_s  +  variance of m_s over draws
              aleatoric       epistemic

The variance over n draws has the divisor n - 1, so that neither it nor the total grows with n.

Source: Kendall and Gal, "What uncertainties do we need in Bayesian deep learning for computer
vision?", NeurIPS 2017, eq. 9. With one noise scale for all inputs and dropout, the total is Gal's
inverse precision plus the sample variance of the passes (2016, eq. 3.16).
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from ppl_med.analysis.statistics import monte_carlo
from ppl_med.analysis.statistics.case_fill import finite_or_fill, first_entries
from ppl_med.axes import SAMPLES

Figures = dict[str, tuple[xr.DataArray, xr.DataArray, str]]


def moments(
    group: xr.Dataset, block: Mapping[str, slice] | None = None
) -> tuple[xr.DataArray, xr.DataArray]:
    """Mean and variance of the value under every draw.

    Args:
        group: The posterior group: ``loc`` with ``variance`` or ``scale``; or ``mean`` with
            ``variance``; dims (chain, draw, case, ...).
        block: Part to read; None for all.

    Returns:
        Mean and variance, float64, dims (chain, draw, case, ...).

    Raises:
        ValueError: If they are not finite.
    """
    location = next(name for name in ("loc", "mean") if name in group)
    spread = next(name for name in ("variance", "scale") if name in group)
    stored = group[location].transpose(*SAMPLES, "case", ...)
    mean = stored.isel(block or {}).astype(np.float64).load()
    variance = group[spread].transpose(*mean.dims).isel(block or {}).astype(np.float64).load()
    variance = variance**2 if spread == "scale" else variance
    for name, array in ((location, mean), (spread, variance)):
        if not finite_or_fill(array.values, first_entries(stored, block or {})):
            raise ValueError(f"{name} holds NaN or infinite values; find the draw that diverged.")
    return mean, variance


def variance_figures(
    group: xr.Dataset, block: Mapping[str, slice] | None = None
) -> tuple[Figures, xr.DataArray]:
    """Aleatoric, epistemic and total variance with their influences, and the means they are of.

    Arguments and errors as for `moments`.
    """
    mean, aleatoric = moments(group, block)
    epistemic = monte_carlo.variance_influence(mean)
    unit = "unit of the value, squared"
    figures = {
        name: (influence.mean(SAMPLES), influence, unit)
        for name, influence in (
            ("aleatoric", aleatoric),
            ("epistemic", epistemic),
            ("total", aleatoric + epistemic),
        )
    }
    return figures, mean
