"""What the ranks of simulated truths say of a posterior: uniform or not, and how far off.

A truth's place among the draws is u = (rank + U) / (L + 1), U uniform. Over simulations of a right
posterior u is uniform. Beside that test stand two sizes, from z = (truth - mean) / sd of the draws:
the bias, mean z, and the width ratio 1 / sd(z), by which the draws' sd falls short of the error
that they make (1 is right, below 1 too narrow). For a right posterior E z = 0 and E z^2 = 1 given
any data, whatever its shape; sd and mean of L draws are noisy, which is corrected for normal draws.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ppl_med.analysis.statistics.uniform_bands import (
    ecdf,
    ecdf_points,
    uniform_band,
    uniformity_p_value,
)

SHAPES = {
    "none": "no fault seen",
    "narrow": "∪: draws too narrow",
    "wide": "∩: draws too wide",
    "low": "slope: draws too low",
    "high": "slope: draws too high",
    "other": "not uniform, neither shifted nor of another width",
}
FIGURES = ("truth", "rank", "pit", "residual", "mean", "sd")  # of a quantity in one simulation
SHOWN = 2.0  # standard errors of a moment of u from which it names the shape
LEAST_DRAWS = 4  # for the correction of the width


def verdicts(
    pit: np.ndarray, residual: np.ndarray, draws: int, names: Sequence[str], level: float
) -> xr.Dataset:
    """One row per quantity: test, sizes and shape.

    Args:
        pit: Places of the truths among the draws, in (0, 1), dims (simulation, quantity).
        residual: (truth - mean) / sd of the draws, same dims; infinite where the draws are one.
        draws: Draws of each simulation.
        names: Of the quantities.
        level: Probability that no quantity of a right posterior is called wrong.
    """
    num = len(pit)
    p_values = np.array([uniformity_p_value(column) for column in pit.T])
    adjusted = holm(p_values)
    band = uniform_band(num, 1 - (1 - level) / len(names))
    found = np.stack([ecdf(column) for column in pit.T])
    rows = {
        "p_value": p_values,
        "adjusted_p_value": adjusted,
        "passes": (adjusted >= 1 - level).astype(np.int64),
        "distance": np.abs(found - ecdf_points(num)).max(1),
        "outside_band": np.maximum(found - band.upper, band.lower - found).max(1).clip(0),
        **_sizes(residual, draws),
    }
    shapes = [_shape(u, bool(ok)) for u, ok in zip(pit.T, rows["passes"], strict=True)]
    data = {name: ("quantity", values, ATTRS[name]) for name, values in rows.items()}
    data["shape"] = ("quantity", np.array(shapes), ATTRS["shape"])
    return xr.Dataset(data, coords={"quantity": list(names)})


ATTRS: Mapping[str, Mapping[str, Any]] = {
    "p_value": {"long_name": "uniformity of one quantity, all points of its ECDF together"},
    "adjusted_p_value": {"long_name": "of all quantities together (Holm)"},
    "passes": {"long_name": "1 where the adjusted p-value is 1 - level or more"},
    "distance": {"long_name": "largest distance of the ECDF from uniform", "units": "probability"},
    "outside_band": {
        "long_name": "how far the ECDF leaves the simultaneous band (Bonferroni), 0 inside",
        "units": "probability",
    },
    "width_ratio": {"long_name": "sd of the draws over the sd of their error; 1 is right"},
    "width_ratio_error": {"long_name": "standard error over simulations"},
    "bias": {"long_name": "mean of (truth - mean of the draws) / sd of the draws; 0 is right"},
    "bias_error": {"long_name": "standard error over simulations"},
    "shape": {"long_name": "reading of the ranks where the quantity does not pass"},
}


def holm(p_values: np.ndarray) -> np.ndarray:
    """P-values that hold for all tests together: the step-down method of Holm (1979)."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.maximum.accumulate(p_values[order] * factors).clip(max=1.0)
    found = np.empty_like(adjusted)
    found[order] = adjusted
    return found


def _sizes(residual: np.ndarray, draws: int) -> dict[str, np.ndarray]:
    """Bias and width ratio of every quantity, each with its standard error.

    Of L normal draws of the right posterior, z is Student's t with L - 1 degrees of freedom times
    sqrt(1 + 1/L), so its variance is (1 + 1/L) (L - 1) / (L - 3): that is taken off.
    """
    num = len(residual)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        bias, variance = residual.mean(0), residual.var(0, ddof=1)
        fourth = ((residual - bias) ** 4).mean(0)
        expected = (1 + 1 / draws) * (draws - 1) / (draws - 3) if draws >= LEAST_DRAWS else np.nan
        ratio = np.sqrt(expected / variance)
        error = ratio * np.sqrt((fourth / variance**2 - 1).clip(0) / num) / 2
    alone = np.isinf(residual).any(0)  # draws that are one value, as of a point estimate
    return {
        "width_ratio": np.where(alone, 0.0, ratio),
        "width_ratio_error": np.where(alone, 0.0, error),
        "bias": np.where(alone, np.nan, bias),
        "bias_error": np.where(alone, np.nan, np.sqrt(variance / num)),
    }


def _shape(pit: np.ndarray, passes: bool) -> str:
    """The name of what ranks look like."""
    if passes:
        return SHAPES["none"]
    shift = (pit.mean() - 1 / 2) * np.sqrt(12 * len(pit))
    spread = (pit.var() - 1 / 12) * np.sqrt(180 * len(pit))
    if max(abs(shift), abs(spread)) < SHOWN:
        return SHAPES["other"]
    if abs(spread) >= abs(shift):
        return SHAPES["narrow" if spread > 0 else "wide"]
    return SHAPES["low" if shift > 0 else "high"]


def places(truth: np.ndarray, drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where truths stand among draws.

    Args:
        truth: Dims (quantity,).
        drawn: Dims (draw, quantity).
        rng: Breaks ties, and spreads a rank evenly over its step.

    Returns:
        ``FIGURES``, dims (figure, quantity): ranks from 0 to the number of draws, u in (0, 1), and
        z, which is 0 where draws and truth are one value.
    """
    below, tied = (drawn < truth).sum(0), (drawn == truth).sum(0)
    ranks = below + rng.integers(0, tied + 1)
    pit = (ranks + rng.uniform(size=ranks.shape)) / (len(drawn) + 1)
    mean, scale = drawn.mean(0), drawn.std(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = np.where(truth == mean, 0.0, (truth - mean) / scale)
    return np.stack([truth, ranks, pit, residual, mean, scale])
