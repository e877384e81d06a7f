"""Pixel calibration: where 30 % of the draws see foreground, do 30 % of the graders?

Every pixel has a predicted probability and a grader fraction. Pixels are put into bins of equal
width by the prediction, closed on the right, the first also on the left; in each bin the mean
prediction is compared with the mean fraction.

    ece   sum over bins of count / N |mean fraction - mean probability|

Pixels of one case move together, so standard errors count cases. The easy background fills the
first bin and pulls the ECE towards zero; ``ece_inside`` leaves out pixels that neither a draw nor
a grader ever calls foreground.

Source: Gao et al., MoSE, ICLR 2023, arXiv:2212.07328 (10 bins, all pixels).
"""

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.segmentation.comparison import (
    grader_fraction,
    mean_predictions,
    open_comparison,
)
from ppl_med.analysis.statistics import binning
from ppl_med.analysis.statistics.case_means import ratio_error
from ppl_med.analysis.tree import ClassList, Posterior, count_left_out

_NEVER = 1e-3  # probability below which no draw is said to see foreground


def pixel_reliability(
    tree: Posterior,
    annotations: xr.DataArray | None = None,
    *,
    bins: int = 10,
    samples: str = "probs",
    classes: ClassList = None,
) -> xr.Dataset:
    """Compare predicted foreground probabilities with the share of graders, bin by bin.

    Args:
        tree: The tree of `predict`; or ``probs``, or masks (chain, draw, case, row, col).
        annotations: Graders' masks (case, grader, row, col), -1 where not annotated: only pixels
            that every present grader annotated count.
        bins: Number of bins of equal width.
        samples: What is averaged over draws: "probs", or the masks "mode" or "draw".
        classes: Classes that form the foreground; by default all but class 0.

    Returns:
        Dataset over bin: mean ``probability``, mean grader ``fraction`` with ``fraction_se``,
        ``count`` of pixels, edges ``edge_lower`` (open), ``edge_upper`` (closed); empty bins NaN.
        Scalars ``ece`` and ``ece_inside`` (pixels whose prediction is above 0.001 or whose
        fraction is positive), with ``_se``. Errors are over cases.

    Raises:
        TypeError, ValueError: Samples, annotations, classes or bins are malformed.
    """
    checks.whole("bins", bins)
    pair = open_comparison(tree, annotations, samples, classes, averaged=True)
    left_out = count_left_out(pair.graded)
    # of all pixels, or of those inside: count, sum of probabilities, sum of fractions
    sums = np.zeros((2, pair.draws.num_cases, 3, bins))
    for block, means in mean_predictions(pair.draws, pair.classes, samples):
        masks = pair.graded.isel(case=block).values
        for offset, mean in enumerate(means):
            fraction, domain = grader_fraction(masks[offset], pair.classes)
            given = mean.sum(0)[domain].clip(0, 1)
            truth = fraction.sum(0)[domain].clip(0, 1)
            inside = (given > _NEVER) | (truth > 0)
            case = block.start + offset
            sums[0, case] = _bin_sums(given, truth, bins)
            sums[1, case] = _bin_sums(given[inside], truth[inside], bins)
    result = _table(sums[0], bins)
    for name, part in (("ece", sums[0]), ("ece_inside", sums[1])):
        value, error = _calibration_error(part)
        result[name] = ((), value, {"units": "probability"})
        note = {"units": "probability", "note": "standard error over cases"}
        result[f"{name}_se"] = ((), error, note)
    num_cases = int((sums[0, :, 0].sum(1) > 0).sum())
    return pair.describe(result, **{**left_out, "num_cases": num_cases})


def _bin_sums(given: np.ndarray, truth: np.ndarray, bins: int) -> np.ndarray:
    index = binning.equal_width(given, bins)
    return np.stack(
        [
            np.bincount(index, minlength=bins),
            np.bincount(index, given, bins),
            np.bincount(index, truth, bins),
        ]
    )


def _table(sums: np.ndarray, bins: int) -> xr.Dataset:
    count, given, truth = sums.sum(0)
    filled = np.where(count > 0, count, np.nan)
    edges = np.linspace(0, 1, bins + 1)
    unit = {"units": "probability"}
    note = {**unit, "note": "standard error over cases"}
    return xr.Dataset(
        {
            "probability": ("bin", given / filled, unit),
            "fraction": ("bin", truth / filled, unit),
            "fraction_se": ("bin", ratio_error(sums[:, 2], sums[:, 0]), note),
            "count": ("bin", count.astype(np.int64), {"units": "pixels"}),
            "edge_lower": ("bin", edges[:-1], unit),
            "edge_upper": ("bin", edges[1:], unit),
        },
        coords={"bin": np.arange(bins)},
    )


def _calibration_error(sums: np.ndarray) -> tuple[float, float]:
    """ECE and its error over cases."""
    gaps = sums[:, 2] - sums[:, 1]
    weight = sums[:, 0].sum(1)
    if not weight.sum() > 0:
        return np.nan, np.nan
    value = np.abs(gaps.sum(0)).sum() / weight.sum()
    return float(value), binning.calibration_error_se(gaps, weight)
