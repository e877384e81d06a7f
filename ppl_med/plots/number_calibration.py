"""Calibration of predicted numbers: transforms, coverage of intervals, predicted spread."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from ppl_med.checks import inside, whole
from ppl_med.plots import theme
from ppl_med.plots.inputs import one_of, require_dims, require_named, require_variables

_SOURCE = "ppl_med.analysis.calibration"


def pit(dataset: xr.Dataset, *, bins: int = 20, level: float = 0.95) -> Figure:
    """Draw the histogram of probability integral transforms, flat if calibrated.

    A hump means that predictions are too wide, a bowl that they are too narrow, a slope that they
    are biased. For one number per case, a bar outside the grey band differs by more than chance
    explains: the band holds each bar of calibrated predictions with the given probability, by the
    binomial distribution. Pixels of a case depend on each other, so maps have no band.

    Args:
        dataset: As ``ppl_med.analysis.calibration.pit`` returns it.
        bins: Number of bars.
        level: Probability of the band.

    Returns:
        One panel; the title gives the Kolmogorov-Smirnov check.

    Raises:
        TypeError, ValueError: No Dataset, a variable is missing, or bins or level out of range.
    """
    require_variables(dataset, "dataset", ("pit", "ks", "ks_pvalue"), f"{_SOURCE}.pit")
    whole("bins", bins, 2)
    inside("level", level)
    values = dataset["pit"].to_numpy()
    known = values[~np.isnan(values)]
    figure, ax = theme.new_panel(6.4, 4.2)
    count, edges = np.histogram(known, np.linspace(0, 1, bins + 1))
    scale = bins / known.size
    ax.bar(edges[:-1], count * scale, 1 / bins, align="edge", color=theme.SERIES[5], alpha=0.75,
           edgecolor="white", linewidth=0.8, zorder=2)  # fmt: skip
    note = ""
    if values.ndim == 1:
        low, high = stats.binom.interval(level, known.size, 1 / bins)
        ax.axhspan(low * scale, high * scale, color=theme.BAND, alpha=0.7, linewidth=0, zorder=1)
        note = f" · grey: {100 * level:g} % of bars if calibrated"
    ax.axhline(1, color=theme.MUTED, linewidth=1, linestyle=theme.DASHED, zorder=3)
    ax.set(xlim=(0, 1), xlabel="Predicted distribution function at the observation [probability]")
    ax.set_ylabel("Density [1 if calibrated]")
    tested = dataset.attrs.get("num_tested", known.size)
    summary = f"KS {float(dataset['ks']):.3f}, p = {float(dataset['ks_pvalue']):.2g}"
    number = f"n = {tested}" if values.ndim == 1 else f"one pixel of each of {tested} cases"
    theme.subtitle(ax, f"{summary}, {number}{note}")
    theme.heading(figure, "Probability integral transform")
    return figure


def coverage(datasets: xr.Dataset | Mapping[str, xr.Dataset]) -> Figure:
    """Draw the share of numbers inside central intervals against their nominal level.

    Below the diagonal, intervals are too narrow. Bars are the intervals of the Dataset: exact
    binomial ones for one number per case, over cases for maps.

    Args:
        datasets: As ``ppl_med.analysis.calibration.coverage`` returns it; a mapping from name to
            Dataset overlays several.

    Returns:
        One square panel; the legend gives the mean distance to the diagonal.

    Raises:
        TypeError, ValueError: No Dataset, or a variable or dimension is missing.
    """
    needed = ("coverage", "lower", "upper", "interval_error")
    named = require_named(datasets, "datasets", needed, f"{_SOURCE}.coverage")
    for name, dataset in named.items():
        require_dims(dataset["coverage"], f"{one_of('datasets', name)}['coverage']", ("level",))
    figure, ax = theme.new_panel(5.4, 5.9 + 0.2 * len(named), grid="both")
    theme.diagonal(ax)
    for index, (name, dataset) in enumerate(named.items()):
        _with_bars(ax, dataset, name, index)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    ax.set_xlabel("Nominal level of the central interval [probability]")
    ax.set_ylabel("Coverage [proportion]")
    theme.legend(figure)
    first = next(iter(named.values()))
    kind = first.attrs.get("interval", "")
    number = f"{100 * first.attrs['confidence']:g} %, " if "confidence" in first.attrs else ""
    theme.subtitle(ax, f"bars: {number}{kind}" if kind else "")
    theme.heading(figure, "Coverage of predicted intervals")
    return figure


def dispersion(dataset: xr.Dataset) -> Figure:
    """Draw the observed error against the predicted one, bin by bin.

    Above the diagonal, errors are larger than predicted.

    Args:
        dataset: As ``ppl_med.analysis.calibration.dispersion`` returns it.

    Returns:
        One square panel; horizontal bars span the predicted standard deviations of a bin.

    Raises:
        TypeError, ValueError: No Dataset, or a variable is missing.
    """
    needed = ("predicted_sd", "rmse", "lower", "upper", "ence")
    require_variables(dataset, "dataset", needed, f"{_SOURCE}.dispersion")
    figure, ax = theme.new_panel(5.4, 5.4, grid="both")
    predicted, error = dataset["predicted_sd"].to_numpy(), dataset["rmse"].to_numpy()
    reach = theme.bars_to(predicted, dataset["lower"], dataset["upper"])
    top = 1.06 * max(float(dataset["upper"].max()), float(error.max()))
    theme.diagonal(ax, top)
    ax.errorbar(predicted, error, xerr=reach, color=theme.SERIES[0], marker="o", markersize=5,
                linewidth=1.2, elinewidth=1, ecolor=theme.MUTED, zorder=3)  # fmt: skip
    unit = theme.unit_of(dataset["rmse"], "1")
    ax.set(
        xlim=(0, top),
        ylim=(0, top),
        aspect="equal",
        xlabel=f"Predicted standard deviation [{unit}]",
    )
    ax.set_ylabel(f"Root mean squared error [{unit}]")
    title = f"ENCE {float(dataset['ence']):.3f}"
    if "ence_null" in dataset:
        title += f", {float(dataset['ence_null']):.3f} if calibrated"
    theme.subtitle(ax, title)
    theme.heading(figure, "Predicted and observed error")
    return figure


def _with_bars(ax: Axes, dataset: xr.Dataset, name: str, index: int) -> None:
    share = dataset["coverage"].to_numpy()
    bars = theme.bars_to(share, dataset["lower"], dataset["upper"])
    gap = f"mean gap {float(dataset['interval_error']):.3f}"
    if "interval_error_null" in dataset:
        gap += f" ({float(dataset['interval_error_null']):.3f} if calibrated)"
    ax.errorbar(
        dataset["level"], share, yerr=bars, elinewidth=1.2, markersize=4.5, linewidth=1, zorder=3,
        label=f"{theme.plain(name, 28)} · {gap}" if name else gap, **theme.series(index),
    )  # fmt: skip
