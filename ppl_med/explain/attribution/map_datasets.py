"""Datasets of attribution maps: moments over draws, figures of quality, completeness and units.

Mean and sum of squared deviations of every chain are updated one draw at a time without
cancellation, so memory is that of a few maps a chain, however many draws there are. Draws that are
copies of each other count once, and chains are random effects of the error of the mean: see
`ppl_med.analysis.statistics.monte_carlo`, which says the same of draws that are all in memory.

Reference: Welford, "Note on a method for calculating corrected sums of squares and products",
Technometrics 4 (1962).
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ppl_med.analysis.statistics.copies import num_copies
from ppl_med.axes import SAMPLES
from ppl_med.explain.attribution.method import Maps, Method

LONG_NAMES = {
    "mean": "mean attribution over draws",
    "sd": "standard deviation of the attribution over draws",
    "mcse": "Monte Carlo standard error of the mean",
    "attribution": "attribution",
    "noise_error": "root mean square standard error over noisy copies",
    "completeness_delta": "sum of attributions minus the total",
    "completeness_delta_relative": "completeness delta over the total",
    "bias_attribution": "part of the total that belongs to no pixel",
    "conservation": "sum of attributions over the explained number",
    "probability_positive": "share of draws with positive attribution",
    "probability_negative": "share of draws with negative attribution",
}


class DrawMoments:
    """Mean, standard deviation and sign probabilities of maps that arrive one draw at a time."""

    def __init__(
        self, shape: tuple[int, ...], index: xr.DataArray, keep_draws: bool = False
    ) -> None:
        """Start without a draw; ``index`` is the place of each among the updates (chain, draw)."""
        self.index = index.transpose(*SAMPLES)
        self.count, self.names = 0, np.empty(index.size, np.int64)
        self.chain = np.argsort(self.index.values.ravel()) // self.index.shape[1]
        self.means = np.zeros((self.index.shape[0], *shape))
        self.seen, self.within = np.zeros(len(self.means), int), np.zeros(shape)
        self.positive, self.negative = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        self.draws = np.empty((index.size, *shape), np.float32) if keep_draws else None

    def update(self, value: np.ndarray) -> None:
        """Fold in one draw's map."""
        if self.draws is not None:
            self.draws[self.count] = value
        chain = self.chain[self.count]
        self.names[self.count] = hash(value.tobytes())
        self.count += 1
        self.seen[chain] += 1
        difference = value - self.means[chain]
        self.means[chain] += difference / self.seen[chain]
        self.within += difference * (value - self.means[chain])
        self.positive += value > 0
        self.negative += value < 0

    @property
    def mean(self) -> np.ndarray:
        """Mean over the draws so far, of chains with equally many."""
        return np.asarray(self.means.mean(0))

    def dataset(self, dims: tuple[str, ...]) -> xr.Dataset:
        """The moments with the dims of a map, and kept draws (chain, draw, *dims).

        ``sd`` has n - 1 in the denominator, where n functions differ or stand in several chains;
        with a single one all but the mean are NaN.
        """
        index = self.index
        chains, draws = index.shape
        draws //= num_copies(self.names[index.values])
        number = chains * draws
        within = self.within * (draws / index.shape[1])
        between = draws * ((self.means - self.mean) ** 2).sum(0)
        square = within / max(chains * (draws - 1), 1)
        if chains > 1:
            square = np.maximum(square, between / (chains - 1))
        spread = {
            "sd": np.sqrt((within + between) / max(number - 1, 1)),
            "mcse": np.sqrt(square / number),
            "probability_positive": self.positive / self.count,
            "probability_negative": self.negative / self.count,
        }
        attrs: dict[str, Any] = {"probability_mcse_max": 0.5 / np.sqrt(number)}
        if number < 2:
            spread = {name: np.full_like(self.mean, np.nan) for name in spread}
            what = "sd, mcse and sign probabilities need two or more posterior draws"
            attrs = {"note": f"one function: {what}"}
        result = xr.Dataset({name: (dims, v) for name, v in {"mean": self.mean, **spread}.items()})
        if self.draws is not None:
            result["attribution"] = ((*SAMPLES, *dims), self.draws[index.values])
        result = result.assign_coords(chain=index["chain"], draw=index["draw"])
        return result.assign_attrs(num_draws=self.count, **attrs)


def figures_of(maps: Sequence[Maps]) -> dict[str, np.ndarray]:
    """Figures of quality of a group of draws, whose cases come in parts: (draw, case) by name."""
    found: dict[str, list[Tensor]] = {}
    for part in maps:
        figures = dict(part.checks)
        if part.bias_attribution is not None:
            figures["bias_attribution"] = part.bias_attribution
        if part.total is not None:
            figures["total"] = part.total.double()
            figures |= {"completeness_delta": part.delta(), "mass": part.mass()}
        for name, values in figures.items():
            found.setdefault(name, []).append(values.detach().double())
    return {name: torch.cat(values, 1).cpu().numpy() for name, values in found.items()}


def with_completeness(
    result: xr.Dataset, tolerance: float, method: Method, rounding: float = 0.0
) -> xr.Dataset:
    """Add the relative delta, count what exceeds the tolerance, and warn of it.

    A delta up to ``rounding``, in the output's unit, is none. ``total`` and ``mass`` are dropped.
    """
    delta, total = result["completeness_delta"], np.abs(result["total"])
    with np.errstate(divide="ignore", invalid="ignore"):
        result["completeness_delta_relative"] = xr.where(delta == 0, 0.0, delta / total)
    allowed = tolerance * np.maximum(total, result["mass"] / 10)
    is_beyond = np.abs(delta) > np.maximum(allowed, rounding)
    beyond = int(is_beyond.sum())
    if beyond:
        warnings.warn(
            f"{method.name.replace('_', ' ')}: Σ attribution misses more than {tolerance:g} of its "
            f"total in {beyond} of {delta.size} ({', '.join(map(str, delta.dims[-2:]))}) pairs, by "
            f"{float(abs(delta).where(is_beyond).max()):.3g} at most; {method.advice}",
            UserWarning,
            stacklevel=3,
        )
    result = result.drop_vars(["total", "mass"])
    return result.assign_attrs(
        completeness_tolerance=tolerance, completeness_beyond_tolerance=beyond
    )


def described(result: xr.Dataset, method: Method, unit: str, baseline: Tensor) -> xr.Dataset:
    """Write units and settings into the attributes; ``unit`` is that of the explained number."""
    of_map = method.unit.format(unit)
    units = dict.fromkeys(("mean", "sd", "mcse", "attribution", "noise_error"), of_map)
    units |= dict.fromkeys(("completeness_delta", "bias_attribution"), unit)
    units |= dict.fromkeys(("completeness_delta_relative", "conservation"), "1")
    units |= dict.fromkeys(("probability_positive", "probability_negative"), "probability")
    for name in set(units) & set(result.data_vars):
        result[name].attrs.update(units=units[name], long_name=LONG_NAMES[name])
    if method.uses_baseline:
        uniform = bool((baseline == baseline.flatten()[0]).all())
        result.attrs["baseline"] = float(baseline.flatten()[0]) if uniform else "tensor"
    return result.assign_attrs(method=method.name, **method.settings())
