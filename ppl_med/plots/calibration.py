"""Reliability diagram: of the cases with a confidence of 80 %, are 80 % classified correctly?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ppl_med.plots import theme
from ppl_med.plots.inputs import one_of, require_named

_NEEDED = ("confidence", "accuracy", "count", "lower", "upper")
_SOURCE = "ppl_med.analysis.scoring.reliability"


def reliability(datasets: xr.Dataset | Mapping[str, xr.Dataset]) -> Figure:
    """Draw accuracy against confidence with exact 95 % intervals, and the count of each bin.

    Bars on the points are Clopper-Pearson intervals. Points below the diagonal are over-confident.
    The expected calibration error (ECE, Naeini et al. 2015) in the title is the mean over cases of
    the distance to the diagonal: sum over bins of count / n * |accuracy - confidence|.

    Args:
        datasets: As ``ppl_med.analysis.scoring.reliability`` returns it: ``confidence``,
            ``accuracy``, ``lower``, ``upper`` (probability) and ``count``, all (bin);
            ``edge_lower`` and ``edge_upper`` (bin), or bins of equal width over 0 to 1. A mapping
            from name to Dataset overlays several.

    Returns:
        The diagram above a histogram of confidence.

    Raises:
        ValueError: A variable is missing, there is no case, or no dataset.
    """
    named = require_named(datasets, "datasets", _NEEDED, _SOURCE)
    for name, dataset in named.items():
        if not int(dataset["count"].sum()):
            argument = one_of("datasets", name)
            raise ValueError(f"{argument} counts no case; compute reliability on labelled cases")
    figure = theme.new_figure(6.4, 6.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    start = min(_first_edge(dataset) for dataset in named.values())
    _halves(upper, start)
    for index, (name, dataset) in enumerate(named.items()):
        _points(upper, dataset, name, index)
        _histogram(lower, dataset, index, filled=len(named) == 1)
    _finish(upper, lower, start)
    if len(named) == 1:
        (name, dataset), *_ = named.items()
        theme.heading(figure, f"Reliability{f' of {name}' if name else ''} · {_summary(dataset)}")
    else:
        theme.heading(figure, "Reliability")
        theme.legend(upper, "lower left", bbox_to_anchor=(0, 1.0))
    return figure


def expected_calibration_error(dataset: xr.Dataset) -> float:
    """Average the distance between accuracy and confidence over cases.

    Args:
        dataset: A reliability Dataset over bin; empty bins weigh nothing.

    Returns:
        ECE, a probability.
    """
    count = dataset["count"].to_numpy()
    gap = np.abs((dataset["accuracy"] - dataset["confidence"]).to_numpy())
    return float((np.where(count > 0, gap, 0.0) * count).sum() / count.sum())


def _summary(dataset: xr.Dataset) -> str:
    return f"ECE {expected_calibration_error(dataset):.3f}, n = {int(dataset['count'].sum())}"


def _edges(dataset: xr.Dataset) -> NDArray[np.float64]:
    if "edge_lower" in dataset and "edge_upper" in dataset:
        last = dataset["edge_upper"].to_numpy()[-1:]
        return np.concatenate([dataset["edge_lower"].to_numpy(), last]).astype(np.float64)
    return np.linspace(0.0, 1.0, dataset.sizes["bin"] + 1)


def _first_edge(dataset: xr.Dataset) -> float:
    return float(_edges(dataset)[np.flatnonzero(dataset["count"].to_numpy())[0]])


def _halves(ax: Axes, start: float) -> None:
    theme.diagonal(ax)
    ax.fill_between([0, 1, 1.02], [0, 1, 1.02], 0, color="#f3f4f6", linewidth=0, zorder=0)
    style: dict[str, Any] = {"size": 9, "transform": ax.transAxes, "color": theme.MUTED}
    theme.write(
        ax, 0.98, 0.04, "below the line: over-confident", ha="right", va="baseline", **style
    )
    theme.write(ax, 0.02, 0.985, "above the line: under-confident", **style)
    ax.set_xlim(max(0.0, start - 0.02), 1.02)


def _points(ax: Axes, dataset: xr.Dataset, name: str, index: int) -> None:
    used = dataset.isel(bin=np.flatnonzero(dataset["count"].to_numpy()))
    accuracy = used["accuracy"].to_numpy()
    bars = theme.bars_to(accuracy, used["lower"], used["upper"])
    label = theme.plain(f"{name} · {_summary(dataset)}", 60) if name else "accuracy"
    ax.errorbar(
        used["confidence"], accuracy, yerr=bars, markersize=6, linewidth=1.2, elinewidth=1.6,
        alpha=0.95, label=label, **theme.series(index),
    )  # fmt: skip


def _histogram(ax: Axes, dataset: xr.Dataset, index: int, *, filled: bool) -> None:
    ax.stairs(
        dataset["count"].to_numpy(), _edges(dataset), color=theme.series(index)["color"],
        fill=filled, alpha=0.35 if filled else 1.0, linewidth=1.5,
    )  # fmt: skip


def _finish(upper: Axes, lower: Axes, start: float) -> None:
    upper.set(ylim=(-0.02, 1.1), ylabel="Accuracy in the bin [proportion],\n95 % interval")
    lower.set(xlabel="Confidence in the predicted class [probability]", ylabel="Cases\n[count]")
    lower.set_ylim(0, None)
    for ax in (upper, lower):
        theme.clean(ax)
