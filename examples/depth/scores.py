"""Figures of a run on scenes whose noise is known."""

import numpy as np
import xarray as xr
from scipy import stats
from scipy.special import logsumexp

from ppl_med.analysis import calibration, scoring, selective, uncertainty

BINS = 10
# Title, digits and factor of every figure of the table.
COLUMNS = {
    "rmse": ("RMSE m", 3, 1.0),
    "nll": ("NLL nats", 3, 1.0),
    "crps": ("CRPS m", 4, 1.0),
    "aleatoric": ("aleatoric variance ×10⁻³ m²", 1, 1e3),
    "epistemic": ("epistemic variance ×10⁻³ m²", 2, 1e3),
    "true_variance": ("true noise variance ×10⁻³ m²", 1, 1e3),
    "correlation": ("noise sd, correlation with truth", 3, 1.0),
    "sd_error": ("noise sd, calibration error m", 4, 1.0),
    "interval_error": ("interval calibration error", 3, 1.0),
    "ause": ("AUSE m", 4, 1.0),
}


def score(tree: xr.DataTree, noise_sd: np.ndarray, law: str) -> xr.Dataset:
    """All figures on one set of scenes.

    Args:
        tree: Of ``predict`` on them.
        noise_sd: True standard deviation of the noise (case, row, col), metres.
        law: Distribution of the likelihood: "normal" or "laplace".
    """
    parts = uncertainty.variance(tree, mcse=False)
    mean = tree["posterior/loc"].mean(("chain", "draw"))
    error = tree["observed_data/depth"] - mean
    coverage = calibration.coverage(tree, distribution=law)
    curve = selective.sparsification(tree, "total", "absolute", replicates=0)
    recovery = noise_table(np.sqrt(parts["aleatoric"].values), noise_sd)
    return xr.Dataset(
        {
            "rmse": float((error**2).mean() ** 0.5),
            "nll": _nll(tree, law),
            "crps": float(scoring.crps(tree)["crps_mean"]),
            "aleatoric": float(parts["aleatoric"].mean()),
            "epistemic": float(parts["epistemic"].mean()),
            "true_variance": float(np.square(noise_sd, dtype=np.float64).mean()),
            "correlation": float(recovery["correlation"]),
            "sd_error": float(recovery["sd_error"]),
            "interval_error": float(coverage["interval_error"]),
            "ause": float(curve["ause"]),
        }
    )


def _nll(tree: xr.DataTree, law: str) -> float:
    """Negative logarithm of the mixture's density at every pixel, mean, nats."""
    group = tree["posterior"].to_dataset().astype(np.float64)
    depth = tree["observed_data/depth"].astype(np.float64)
    loc, scale, depth = xr.broadcast(group["loc"], group["scale"], depth)
    family = {"normal": stats.norm, "laplace": stats.laplace}[law]
    axes = tuple(loc.get_axis_num(("chain", "draw")))
    density = logsumexp(family.logpdf(depth.values, loc.values, scale.values), axes)
    return float(np.log(loc.sizes["chain"] * loc.sizes["draw"]) - density.mean())


def noise_table(learnt: np.ndarray, true: np.ndarray, bins: int = BINS) -> xr.Dataset:
    """Compare learnt with true standard deviations of the noise.

    Args:
        learnt: Of every pixel, metres.
        true: Likewise.
        bins: Of equal mass by the learnt one.

    Returns:
        ``learnt`` and ``true`` (bin), root of the mean variance, metres; ``sd_error``, the mean
        over bins of their distance, metres; ``correlation`` over pixels, NaN where the learnt one
        is the same everywhere.
    """
    learnt, true = np.asarray(learnt, np.float64).ravel(), np.asarray(true, np.float64).ravel()
    order = np.array_split(learnt.argsort(kind="stable"), bins)
    roots = [[np.sqrt(np.mean(np.square(sd[part]))) for part in order] for sd in (learnt, true)]
    flat = np.ptp(learnt) < 1e-6 * learnt.max()
    result = xr.Dataset({"learnt": ("bin", roots[0]), "true": ("bin", roots[1])})
    result["correlation"] = np.nan if flat else np.corrcoef(learnt, true)[0, 1]
    result["sd_error"] = abs(result["learnt"] - result["true"]).mean()
    return result
