"""Uncertainty maps: predictive entropy, its data and model parts, and the variance, per pixel.

With p_s(x) the class probabilities of draw s at pixel x and p(x) their mean over draws,

    predictive_entropy   H(p)                      nats
    expected_entropy     mean_s H(p_s)             nats
    mutual_information   difference of the two     nats, >= 0
    variance             sum over classes of the variance of p_s, divisor n - 1, probability^2;
                         of draws that share their weights, that of two with different ones

A pixel's figure says nothing of its neighbours: draws that move a whole border and draws that
flicker pixel by pixel have the same maps. Coherence shows in the samples, e.g. in
`ppl_med.analysis.segmentation.sizes`.

Source: Gal, Uncertainty in Deep Learning, 2016, section 3.3; Kendall and Gal, NeurIPS 2017,
arXiv:1703.04977, for maps.
"""

import numpy as np
import xarray as xr
from scipy.special import xlogy

from ppl_med.analysis.segmentation.summary import describe, mean_and_error
from ppl_med.analysis.statistics.weight_draws import PairSums
from ppl_med.analysis.tree import Draws, Posterior, case_coords, open_probabilities

UNITS = {
    "predictive_entropy": "nats",
    "expected_entropy": "nats",
    "mutual_information": "nats",
    "variance": "probability^2",
}


def maps(tree: Posterior) -> xr.Dataset:
    """Map the uncertainty of every pixel.

    Args:
        tree: The tree of `predict`, or its ``probs`` (chain, draw, case, class, row, col).

    Returns:
        Dataset of float32 maps (case, row, col; also depth): ``predictive_entropy``,
        ``expected_entropy``, ``mutual_information`` in nats, ``variance`` in probability^2; and
        for each, computed in float64, ``<name>_per_case`` (case), the mean over pixels, with
        ``<name>_mean`` and ``<name>_se`` over cases. Behind the end of a case that is smaller than
        others maps are NaN, and count in no mean.

    Raises:
        TypeError, ValueError: ``probs`` is missing or malformed.
    """
    draws = open_probabilities(tree)
    shape = (draws.num_cases, draws.num_pixels)
    values = {name: np.empty(shape, np.float32) for name in UNITS}
    per_case = {name: np.empty(draws.num_cases) for name in UNITS}
    for block in draws.blocks():
        inside = draws.inside(block)
        for name, found in block_maps(draws, block).items():
            found = found if inside.all() else np.where(inside, found, np.nan)
            values[name][block] = found
            per_case[name][block] = found.mean(1) if inside.all() else np.nanmean(found, axis=1)
    result = xr.Dataset(coords=case_coords(draws.array, *draws.space))
    for name, unit in UNITS.items():
        whole = values[name].reshape(draws.num_cases, *draws.shape)
        result[name] = (("case", *draws.space), whole, {"units": unit})
        result[f"{name}_per_case"] = ("case", per_case[name], {"units": unit})
        mean, error = mean_and_error(result[f"{name}_per_case"])
        result[f"{name}_mean"] = mean.assign_attrs(units=unit)
        result[f"{name}_se"] = error.assign_attrs(units=unit, note="standard error over cases")
    note = None
    if draws.num_samples == 1:
        note = "one draw: mutual_information and variance are 0 by construction"
    return describe(result, num_samples=draws.num_samples, note=note)


def block_maps(draws: Draws, block: slice) -> dict[str, np.ndarray]:
    """Return the maps (case, pixel) of a run of cases, float64."""
    total, expected = np.zeros(1), np.zeros(1)
    first = None
    pairs = PairSums(draws.functions)
    for piece in draws.probabilities(block):
        values = piece.astype(np.float64)
        if first is None:
            first = values.copy()
        shifted = values - first  # equal draws must give a variance of exactly zero
        total = total + shifted
        pairs.add(shifted)
        expected = expected - xlogy(values, values).sum(1)
    assert first is not None
    number = draws.num_samples
    mean = first + total / number
    spread = pairs.variance().sum(1)
    predictive, expected = -xlogy(mean, mean).sum(1), expected / number
    return {
        "predictive_entropy": predictive,
        "expected_entropy": expected,
        "mutual_information": (predictive - expected).clip(min=0),
        "variance": spread,
    }
