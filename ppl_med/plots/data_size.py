"""Uncertainty against the amount of training data: epistemic should shrink, aleatoric stay."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from ppl_med.plots.checks import require_variables
from ppl_med.plots.theme import ALEATORIC, EPISTEMIC, INK, MUTED, clean, heading, new_figure, plain

_PARTS = {"aleatoric": (ALEATORIC, "s"), "epistemic": (EPISTEMIC, "o")}
_SOURCE = "ppl_med.analysis.uncertainty.summary, joined along fraction, seed and method"


def data_size(table: xr.Dataset) -> Figure:
    """Draw aleatoric and epistemic variance against the fraction of the training set, log y-axis.

    Lines are means over seeds, small dots single seeds, and the band runs from the smallest to the
    largest seed. A value of exactly 0 (a point estimate has no epistemic variance) cannot stand on
    a log axis: it is left out and the panel says so.

    Args:
        table: ``aleatoric`` and ``epistemic`` (fraction), optionally with ``seed`` and ``method``;
            probability squared, 0 or more. ``fraction`` is a coordinate in (0, 1].

    Returns:
        One panel per method, all on the same axes.

    Raises:
        ValueError: A variable or the coordinate is missing, a dimension is left over, a value is
            negative, or a fraction lies outside (0, 1].
    """
    require_variables(table, "table", _PARTS, _SOURCE)
    _check(table)
    table = table.sortby("fraction")
    methods = np.atleast_1d(table["method"].values).tolist() if "method" in table.coords else [""]
    if "method" in table.dims and "method" not in table.coords:
        methods = list(range(table.sizes["method"]))
    columns = 2 if len(methods) == 4 else min(3, len(methods))
    rows = -(-len(methods) // columns)
    figure = new_figure(max(6.0, 3.3 * columns + 0.6), 3.5 * rows + 0.9)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for index, (ax, method) in enumerate(zip(axes.flat, methods, strict=False)):
        one = table.isel(method=index) if "method" in table.dims else table
        _panel(ax, one, str(method))
    for ax in axes.flat[len(methods) :]:
        ax.set_visible(False)
    unit = plain(table["epistemic"].attrs.get("units", "probability^2")).replace("^2", "²")
    for ax in axes[:, 0]:
        ax.set_ylabel(f"Variance [{unit}]")
    for ax in axes.flat[max(0, len(methods) - columns) : len(methods)]:
        ax.set_xlabel("Share of the training set")
        ax.tick_params(labelbottom=True)
    handles = [line for line in axes[0, 0].lines if line.get_label() in _PARTS]
    figure.legend(
        handles=handles,
        loc="outside lower right",
        ncols=2,
        frameon=False,
        fontsize=9.5,
        labelcolor=INK,
    )
    heading(figure, f"Uncertainty and data size{_seed_note(table)}")
    return figure


def _seed_note(table: xr.Dataset) -> str:
    num = table.sizes.get("seed", 1)
    return f" · band: range of {num} seeds" if num > 1 else ""


def _check(table: xr.Dataset) -> None:
    if "fraction" not in table.coords:
        raise ValueError("table has no coordinate fraction; assign the shares of the training set")
    fraction = table["fraction"].to_numpy()
    if fraction.ndim != 1 or not ((fraction > 0) & (fraction <= 1)).all():
        raise ValueError(f"table's fraction must lie in (0, 1], got {fraction.tolist()}")
    for name in _PARTS:
        extra = set(table[name].dims) - {"fraction", "seed", "method"}
        if extra or "fraction" not in table[name].dims:
            raise ValueError(
                f"table[{name!r}] must have fraction and at most seed and method, got "
                f"{table[name].dims}; average the others first"
            )
        if bool((table[name] < 0).any()):
            raise ValueError(f"table[{name!r}] has negative values; a variance is 0 or more")


def _panel(ax: Axes, table: xr.Dataset, method: str) -> None:
    fraction = table["fraction"].to_numpy().astype(np.float64)
    zeros = []
    for name, (color, marker) in _PARTS.items():
        values = table[name]
        if "seed" not in values.dims:
            values = values.expand_dims("seed")
        values = values.transpose("fraction", "seed")
        if bool((values == 0).any()):
            zeros.append(name)
        seeds = values.where(values > 0).to_numpy()
        mean = values.mean("seed").to_numpy()
        _series(ax, fraction, seeds, np.where(mean > 0, mean, np.nan), name, color, marker)
    ax.set_yscale("log")
    _fraction_axis(ax, fraction)
    clean(ax)
    if method:
        ax.set_title(plain(method, 34), fontsize=10, color=INK, loc="left")
    if zeros:
        text = f"{' and '.join(zeros)} exactly 0 in places: not shown"
        ax.text(0.03, 0.03, text, transform=ax.transAxes, fontsize=8, color=MUTED)


def _series(
    ax: Axes,
    fraction: NDArray[np.float64],
    seeds: NDArray[np.float64],
    mean: NDArray[np.float64],
    name: str,
    color: str,
    marker: str,
) -> None:
    if seeds.shape[1] > 1:
        low = np.fmin.reduce(seeds, axis=1)
        high = np.fmax.reduce(seeds, axis=1)
        ax.fill_between(fraction, low, high, color=color, alpha=0.18, linewidth=0)
        for column in seeds.T:
            ax.plot(
                fraction, column, color=color, marker=".", markersize=4, linestyle="", alpha=0.55
            )
    ax.plot(fraction, mean, color=color, marker=marker, markersize=5.5, linewidth=2, label=name)


def _fraction_axis(ax: Axes, fraction: NDArray[np.float64]) -> None:
    if fraction.max() / fraction.min() >= 8:
        ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(fraction.tolist()))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
