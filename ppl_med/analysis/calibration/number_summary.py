"""One row for a model of numbers: how calibrated, how sharp, and how good in all."""

import xarray as xr

from ppl_med.analysis.calibration.interval_coverage import coverage
from ppl_med.analysis.calibration.transforms import pit
from ppl_med.analysis.calibration.variance_bins import dispersion
from ppl_med.analysis.scoring.draw_scores import crps
from ppl_med.moved import renamed_argument


@renamed_argument("law", "distribution")
def number_errors(
    tree: xr.DataTree,
    site: str | None = None,
    *,
    distribution: str | None = None,
    bins: int = 10,
    replicates: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """Measure the calibration of predicted numbers, with what chance alone would give.

    Args:
        tree: The tree of `predict` on cases with observed numbers. The CRPS reads it as a whole.
        site: Name of the observed site; None takes the only one.
        distribution: As for `pit`.
        bins: As for `dispersion`.
        replicates: As for `dispersion`.
        seed: As for `pit` and `dispersion`.

    Returns:
        Dataset of scalars: ``crps`` of `ppl_med.analysis.scoring.crps` with ``crps_se``;
        ``interval_error`` and ``calibration_error`` of `coverage`; ``ks``, ``ks_pvalue`` of `pit`;
        ``ence``, ``uce``, ``sharpness``, ``rmse_total`` of `dispersion`; with the ``_null`` and
        ``_se`` that they have there.

    Raises:
        TypeError, ValueError: As for these.
    """
    parts = [
        coverage(tree, site, distribution=distribution, seed=seed),
        pit(tree, site, distribution=distribution, seed=seed),
        dispersion(tree, site, bins=bins, replicates=replicates, seed=seed),
    ]
    score = crps(tree, site)
    result = xr.Dataset({"crps": score["crps_mean"], "crps_se": score["crps_mean_se"]})
    for part in parts:
        for name, variable in part.data_vars.items():
            if not variable.dims:
                result[name] = variable
    result.attrs.update(parts[1].attrs)
    return result
