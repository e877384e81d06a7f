"""Reliability of the confidence: how often the most probable class is right, bin by bin."""

import numpy as np
import xarray as xr

from ppl_med.analysis.scoring.class_scores import terms
from ppl_med.analysis.statistics import binning
from ppl_med.analysis.tree import Posterior, open_classes
from ppl_med.checks import whole


def reliability(tree: Posterior, bins: int = 15) -> xr.Dataset:
    """Compare confidence with accuracy, bin by bin, for the mixture of the draws.

    Args:
        tree: The tree of `predict` on labelled cases; one label per case, -1 left out.
        bins: Number of bins of equal width.

    Returns:
        Dataset over bin: mean ``confidence``, ``accuracy`` with its exact (Clopper-Pearson)
        95 % interval ``lower``, ``upper``, ``count``, and the edges ``edge_lower`` (open),
        ``edge_upper`` (closed). Empty bins are NaN with count 0. Scalar ``ece``.

    Raises:
        TypeError, ValueError: As for `score`, or labels per pixel: pixels of one case are not
            independent, so no binomial interval holds.
    """
    whole("bins", bins)
    source = open_classes(tree)
    label, rows, counts = source.labelled_cases()
    found = terms(source.mixture().isel(case=rows), xr.DataArray(label, dims="case"))
    index = binning.equal_width(found.confidence.values, bins)
    count, hits, summed = (
        np.bincount(index, weights, minlength=bins)
        for weights in (None, found.correct.values, found.confidence.values)
    )
    filled = np.where(count > 0, count, np.nan)
    lower, upper = binning.clopper_pearson(hits, count)
    edges = np.linspace(0, 1, bins + 1)
    return xr.Dataset(
        {
            "confidence": ("bin", summed / filled),
            "accuracy": ("bin", hits / filled),
            "lower": ("bin", lower),
            "upper": ("bin", upper),
            "count": ("bin", count),
            "edge_lower": ("bin", edges[:-1]),
            "edge_upper": ("bin", edges[1:]),
            "ece": np.abs(hits - summed).sum() / count.sum(),
        },
        coords={"bin": np.arange(bins)},
        attrs={"interval": "Clopper-Pearson 95 %", **counts},
    )
