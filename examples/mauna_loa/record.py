"""The record of Mauna Loa by month, its parts, and two forecasts that need no model."""

import numpy as np
import statsmodels.datasets.co2
import torch
import xarray as xr
from scipy import stats
from torch import Tensor

FIRST_HELD_OUT, FIRST_CHECKED, LAST = 1982, 1977, 2002
INPUTS = ("time", "season")


def monthly() -> xr.DataArray:
    """Mean of the weeks of every month in ppm, dims (month,), by decimal year of its middle."""
    weeks = statsmodels.datasets.co2.load_pandas().data["co2"]
    months = weeks.resample("MS").mean().dropna()
    year = months.index.year + (months.index.month - 0.5) / 12
    return xr.DataArray(
        months.to_numpy(np.float64),
        dims="month",
        coords={"month": np.asarray(year, np.float64)},
        attrs={"units": "ppm"},
    )


def between(record: xr.DataArray, start: float, stop: float) -> xr.DataArray:
    """Months of some years, the last one not included."""
    return record[(record["month"] >= start) & (record["month"] < stop)]


def inputs(months: np.ndarray, kind: str, reference: np.ndarray) -> Tensor:
    """What a net is given, dims (case, channel, row, col): standardised time, and the season.

    Args:
        months: Decimal years.
        kind: ``"time"``, or ``"season"``, which adds sine and cosine of the year.
        reference: Decimal years of the training part, which set loc and scale.
    """
    time = (months - reference.mean()) / reference.std()
    columns = [time]
    if kind == "season":
        columns += [np.sin(2 * np.pi * months), np.cos(2 * np.pi * months)]
    return torch.tensor(np.stack(columns, 1), dtype=torch.float32)[:, :, None, None]


def naive(training: xr.DataArray, months: np.ndarray, *, drift: bool) -> tuple[np.ndarray, ...]:
    """Same month of the last training year, with the mean growth of a year or without.

    Mean and standard deviation in ppm: a random walk of yearly steps, as large as those seen.
    """
    years = training["month"].values
    last = training.values[-12:]
    steps = np.array(
        [
            value - training.values[at[0]]
            for year, value in zip(years, training.values, strict=True)
            if len(at := np.flatnonzero(np.abs(years - (year - 1)) < 0.01))
        ]
    )
    growth = steps.mean() if drift else 0.0
    spread = steps.std() if drift else np.sqrt(np.mean(steps**2))
    ahead = np.ceil((months - years[-1] - 1e-6).clip(min=0.5))
    position = np.round((months - years[-1]) * 12).astype(int) - 1
    return last[position % 12] + growth * ahead, spread * np.sqrt(ahead)


def tree_of_normal(
    loc: np.ndarray, scale: np.ndarray, truth: xr.DataArray, draws: int, seed: int
) -> xr.DataTree:
    """A forecast of normals as the tree that ``predict`` gives, every draw the same function."""
    rng = np.random.default_rng(seed)
    shape = (1, draws, len(loc))
    dims, coords = ("chain", "draw", "case"), {"case": np.arange(len(loc))}
    value = rng.normal(loc, scale, shape)
    density = stats.norm.logpdf(truth.values, loc, scale)
    groups = {
        "posterior": {"loc": np.broadcast_to(loc, shape), "scale": np.broadcast_to(scale, shape)},
        "posterior_predictive": {"value": value},
        "log_likelihood": {"value": np.broadcast_to(density, shape)},
    }
    trees = {
        name: xr.Dataset({n: (dims, v) for n, v in group.items()}, coords)
        for name, group in groups.items()
    }
    trees["observed_data"] = xr.Dataset({"value": ("case", truth.values)}, coords)
    tree = xr.DataTree.from_dict(trees)
    tree.attrs["log_likelihood_of"] = "held-out"
    return tree
