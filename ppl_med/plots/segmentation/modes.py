"""Are known modes drawn as often as they should be?"""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ppl_med.plots import theme
from ppl_med.plots.inputs import require_named

_TRUTH = "#c3cad2"
_FREQUENCIES = ("frequency", "frequency_se", "probability")
_RATES = ("flip_mean", "flip_se", "rate")
_SOURCE = "ppl_med.analysis.segmentation.modes or flips, with the true probabilities"
_MOST_NAMES = 40  # modes whose names still fit


def mode_bars(
    modes: xr.Dataset | Mapping[str, xr.Dataset],
    flips: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
) -> Figure:
    """Draw the true probability of every mode and the frequency with which it was sampled.

    Modes are sorted by their true probability; whiskers are two standard errors over cases.

    Args:
        modes: As ``ppl_med.analysis.segmentation.modes`` or ``flips`` returns it, with the truth:
            ``frequency``, ``frequency_se``, ``probability`` (mode). A mapping from name to Dataset
            gives one panel each.
        flips: As ``flips`` returns it with rates: ``flip_mean``, ``flip_se``, ``rate`` (switch),
            for one more panel; a mapping draws several beside each other.

    Returns:
        Bars, and below them the flip rates where they were given.

    Raises:
        ValueError: A variable is missing, or a mapping is empty.
    """
    named = require_named(modes, "modes", _FREQUENCIES, _SOURCE)
    rates = {} if flips is None else require_named(flips, "flips", _RATES, _SOURCE)
    panels = len(named) + bool(rates)
    number = max(dataset.sizes["mode"] for dataset in named.values())
    figure = theme.new_figure(max(6.4, min(10.5, 0.28 * number + 1.4)), 2.3 * panels + 0.9)
    ratios = [1.0] * len(named) + [1.15] * bool(rates)
    axes = figure.subplots(panels, 1, squeeze=False, height_ratios=ratios)[:, 0]
    top = max(_highest(dataset) for dataset in named.values())
    for index, (ax, (name, dataset)) in enumerate(zip(axes, named.items(), strict=False)):
        _bars(ax, dataset, name, _color(index), last=index == len(named) - 1)
        ax.set_ylim(0, 1.12 * top)
    if rates:
        _rates(axes[-1], rates)
    theme.heading(figure, f"Frequencies of {number} modes")
    return figure


def _color(index: int) -> str:
    """Of one of several models; the first colour of the series is left to the axes."""
    return theme.SERIES[1 + index % (len(theme.SERIES) - 1)]


def _highest(dataset: xr.Dataset) -> float:
    error = dataset["frequency_se"].fillna(0)
    return float(np.fmax(dataset["probability"], dataset["frequency"] + 2 * error).max())


def _bars(ax: Axes, dataset: xr.Dataset, name: str, color: str, *, last: bool) -> None:
    order = np.argsort(-dataset["probability"].to_numpy(), kind="stable")
    part = dataset.isel(mode=order)
    place = np.arange(len(order))
    ax.bar(place, part["probability"], width=0.92, color=_TRUTH, label="true")
    errors = 2 * part["frequency_se"].fillna(0).to_numpy()
    ax.bar(
        place, part["frequency"], width=0.5, color=color, yerr=errors, label="sampled",
        error_kw={"ecolor": theme.INK, "elinewidth": 0.8},
    )  # fmt: skip
    ax.set(ylabel="Frequency\n[probability]", xlim=(-0.7, len(order) - 0.3))
    theme.clean(ax)
    handles = [Patch(color=_TRUTH, label="true"), Patch(color=color, label="sampled")]
    theme.legend(ax, "upper right", handles=handles)
    found = int((part["frequency"] > 0).sum())
    note = f"{found} of {len(order)} found"
    if "total_variation" in dataset:
        note += f" · total variation {float(dataset['total_variation']):.3f}"
    if "kl_empirical_true" in dataset:
        note += f" · KL {float(dataset['kl_empirical_true']):.3f} nats"
    theme.remark(ax, note, pad=3)
    if name:
        theme.subtitle(ax, theme.plain(name, 40), pad=3)
    labelled = last and len(order) <= _MOST_NAMES and "mode" in dataset.coords
    names = [theme.plain(one, 12) for one in part["mode"].values] if labelled else []
    ax.set_xticks(place if labelled else [], names, rotation=90, fontsize=7.5)
    if last:
        ax.set_xlabel("Mode, the most probable first")


def _rates(ax: Axes, named: Mapping[str, xr.Dataset]) -> None:
    first = next(iter(named.values()))
    place = np.arange(first.sizes["switch"])
    ax.hlines(
        first["rate"], place - 0.4, place + 0.4, color=theme.MUTED, linewidth=2.2, label="true rate"
    )
    for index, (name, dataset) in enumerate(named.items()):
        shift = 0.5 * ((index + 0.5) / len(named) - 0.5)
        ax.errorbar(
            place + shift, dataset["flip_mean"], 2 * dataset["flip_se"].fillna(0), markersize=5.5,
            linestyle="", elinewidth=1.2, label=name or "sampled",
            color=_color(index), marker=theme.series(index)["marker"],
        )  # fmt: skip
    ax.set_xticks(place, [theme.plain(one, 16) for one in first["switch"].values], fontsize=9)
    ax.set(ylabel="Flip rate\n[probability]", xlim=(-0.6, len(place) - 0.4))
    ax.set_ylim(0, max(0.6, ax.get_ylim()[1]))
    theme.clean(ax)
    handles, labels = ax.get_legend_handles_labels()
    handles = [Line2D([], [], color=theme.MUTED, linewidth=2.2), *handles[1:]]
    theme.legend(
        ax, "lower right", handles=handles, labels=[theme.plain(one, 24) for one in labels],
        ncols=min(4, len(labels)), bbox_to_anchor=(1.0, 0.98),
    )  # fmt: skip
