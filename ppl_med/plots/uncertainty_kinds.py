"""The two kinds of uncertainty: of every case, and against the amount of training data."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from ppl_med.analysis.tree import Posterior
from ppl_med.analysis.uncertainty import variance
from ppl_med.axes import SAMPLES
from ppl_med.plots import theme
from ppl_med.plots.inputs import class_per_case, require_variables

_PARTS = {"aleatoric": (theme.ALEATORIC, "s"), "epistemic": (theme.EPISTEMIC, "o")}
_SOURCE = "ppl_med.analysis.uncertainty.summary, joined along fraction, seed and method"
_DOT = {"markersize": 5, "markeredgewidth": 0}
_CROSS = {"color": "#b3123d", "markersize": 7, "markeredgecolor": "white", "markeredgewidth": 0.6}
_MARKS: dict[str, tuple[str, dict[str, Any]]] = {
    "case": ("o", {"color": theme.MUTED, **_DOT}),
    "right": ("o", {"color": theme.MUTED, **_DOT}),
    "not labelled": ("o", {"color": "#c3cad2", **_DOT}),
    "wrong": ("X", _CROSS),
}


def uncertainty(tree: Posterior) -> Figure:
    """Draw aleatoric against epistemic variance, one mark per case, wrong predictions crossed.

    The variances are those of the class indicator, summed over classes; with many draws their sum
    is at most 1 - 1 / K for K classes.

    Args:
        tree: The tree of ``predict``, or its ``probs`` (chain, draw, case, class).

    Returns:
        A scatter plot with a histogram along each axis.

    Raises:
        ValueError: The probabilities are malformed or per pixel.
    """
    probs, label = class_per_case(tree)
    parts = variance(probs, mcse=False).sum("class")
    aleatoric, epistemic = parts["aleatoric"].to_numpy(), parts["epistemic"].to_numpy()
    kinds = {"case": np.ones(len(aleatoric), dtype=bool)}
    if label is not None:
        guess, known = probs.mean(SAMPLES).to_numpy().argmax(1), label >= 0
        kinds = {"right": guess == label, "wrong": known & (guess != label), "not labelled": ~known}
    figure = theme.new_figure(6.4, 5.2)
    axes = figure.subplots(
        2, 2, width_ratios=[5, 1], height_ratios=[1, 4], gridspec_kw={"hspace": 0, "wspace": 0}
    )
    main = axes[1, 0]
    alpha = float(np.clip(20 / np.sqrt(len(aleatoric)), 0.35, 0.9))
    for name, (marker, style) in _MARKS.items():
        chosen = kinds.get(name, np.zeros(0))
        if chosen.any():
            text = name if label is None else f"{name} ({int(chosen.sum())})"
            faint = {"alpha": alpha} if marker == "o" else {}
            main.plot(aleatoric[chosen], epistemic[chosen], marker, label=text, **style, **faint)
    _margins(axes, aleatoric, epistemic)
    theme.legend(figure, ncols=3)
    theme.heading(figure, f"Uncertainty of {len(aleatoric)} cases")
    return figure


def _margins(
    axes: NDArray[np.object_], aleatoric: NDArray[np.float64], epistemic: NDArray[np.float64]
) -> None:
    (top, corner), (main, right) = axes
    corner.set_axis_off()
    main.set_xlabel("Aleatoric variance [probability²]: the image is ambiguous")
    main.set_ylabel("Epistemic variance [probability²]:\nthe model has seen too little")
    main.margins(0.04)
    top.hist(aleatoric, bins=30, range=main.get_xlim(), color=theme.ALEATORIC)
    right.hist(
        epistemic, bins=30, range=main.get_ylim(), color=theme.EPISTEMIC, orientation="horizontal"
    )
    top.set(xlim=main.get_xlim(), ylabel="Cases\n[count]")
    right.set(ylim=main.get_ylim(), xlabel="Cases\n[count]")
    theme.clean(main, grid="both")
    for ax in (top, right):
        theme.clean(ax, grid=None)
        ax.locator_params(nbins=2)
    top.set_xticks([])
    right.set_yticks([])


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
    num = len(methods)
    margins = (2.1 if num == 1 else 0.6, 0.9)
    figure, axes = theme.grid_of_panels(
        num, 2 if num == 4 else 3, 3.3 if num > 1 else 3.9, 3.5, margins
    )
    for index, (ax, method) in enumerate(zip(axes, methods, strict=True)):
        one = table.isel(method=index) if "method" in table.dims else table
        _panel(ax, one, str(method))
    unit = theme.unit_of(table["epistemic"], "probability^2")
    theme.label_outer(axes, "Share of the training set [%]", f"Variance [{unit}]")
    handles = [line for line in axes[0].lines if line.get_label() in _PARTS]
    theme.legend(figure, "outside lower right", handles=handles, ncols=2, fontsize=9.5)
    theme.heading(figure, f"Uncertainty and data size{_seed_note(table)}")
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
        if seeds.shape[1] > 1:
            ends = np.fmin.reduce(seeds, axis=1), np.fmax.reduce(seeds, axis=1)
            ax.fill_between(fraction, *ends, color=color, alpha=0.18, linewidth=0)
            ax.plot(fraction, seeds, ".", color=color, markersize=4, alpha=0.55)
        ax.plot(fraction, np.where(mean > 0, mean, np.nan), color=color, marker=marker,
                markersize=5.5, linewidth=2, label=name)  # fmt: skip
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _fraction_axis(ax, fraction)
    theme.clean(ax)
    if method:
        theme.subtitle(ax, theme.plain(method, 34))
    if zeros:
        text = f"{' and '.join(zeros)} exactly 0 in places: not shown"
        ax.text(0.03, 0.03, text, transform=ax.transAxes, fontsize=8, color=theme.MUTED)


def _fraction_axis(ax: Axes, fraction: NDArray[np.float64]) -> None:
    if fraction.max() / fraction.min() >= 8:
        ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(fraction.tolist()))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(theme.percent))
