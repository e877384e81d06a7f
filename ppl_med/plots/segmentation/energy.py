"""How near samples come to the graders as more of them are drawn."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ppl_med.plots import theme
from ppl_med.plots.inputs import require_dims, require_variables

_SOURCE = (
    "ppl_med.analysis.segmentation.ged with several numbers of samples, joined along num_samples "
    "and model"
)

_FLOOR, _PUBLISHED = "a perfect model", ", published"


def ged_by_samples(table: xr.Dataset, published: xr.Dataset | None = None) -> Figure:
    """Draw the squared generalised energy distance against the number of samples.

    The biased estimate, which papers print, falls with the number of samples even for a perfect
    model; that floor is dashed. Whiskers are two standard errors over cases.

    Args:
        table: ``ged`` (model, num_samples), with both coordinates; optionally ``ged_se`` of the
            same dims, and ``floor`` (num_samples). NaN where a model cannot draw so many.
        published: Results of others, ``ged`` (model, num_samples): faint markers, in the colour of
            the model of the same name if there is one; its attribute ``source`` is quoted.

    Returns:
        One panel.

    Raises:
        ValueError: A variable, dimension or coordinate is missing.
    """
    values = _ged(table, "table")
    names = [str(name) for name in values["model"].values]
    figure = theme.new_figure(7.2, 4.8)
    ax = figure.subplots()
    samples = values["num_samples"].to_numpy().astype(float)
    for index, name in enumerate(names):
        line = values.isel(model=index).dropna("num_samples")
        errors = None
        if "ged_se" in table:
            spread = table["ged_se"].transpose("model", "num_samples").isel(model=index)
            errors = 2 * spread.sel(num_samples=line["num_samples"]).fillna(0).to_numpy()
        ax.errorbar(
            line["num_samples"], line, errors, markersize=6, linewidth=1.8, elinewidth=1,
            capsize=2, label=theme.plain(name, 30), zorder=3, **theme.series(index),
        )  # fmt: skip
    if "floor" in table:
        floor = require_dims(table["floor"], "table['floor']", ("num_samples",))
        ax.plot(
            floor["num_samples"], floor, color=theme.MUTED, linestyle="--", linewidth=1.4,
            label=_FLOOR, zorder=2,
        )  # fmt: skip
    if published is not None:
        others = _ged(published, "published")
        _published(ax, others, names)
        samples = np.union1d(samples, others["num_samples"].to_numpy())
    _axes(ax, samples)
    handles, labels = ax.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda k: (_rank(labels[k]), k))
    theme.legend(figure, "outside right upper", handles=[handles[k] for k in order],
                 labels=[labels[k] for k in order])  # fmt: skip
    theme.heading(figure, "Generalised energy distance")
    if published is not None and "source" in published.attrs:
        theme.remark(ax, theme.plain(f"faint: {published.attrs['source']}"), loc="left")
    return figure


def _ged(table: xr.Dataset, argument: str) -> xr.DataArray:
    require_variables(table, argument, ("ged",), _SOURCE)
    values = require_dims(table["ged"], f"{argument}['ged']", ("model", "num_samples"))
    missing = [name for name in ("model", "num_samples") if name not in values.coords]
    if missing:
        raise ValueError(f"{argument} has no coordinate {missing}; assign names and numbers")
    return values


def _rank(label: str) -> int:
    """Own models first, then the floor, then the results of others."""
    return 1 if label == _FLOOR else 2 if label.endswith(_PUBLISHED) else 0


def _published(ax: Axes, others: xr.DataArray, names: list[str]) -> None:
    known = [str(name) for name in others["model"].values]
    for index, name in enumerate(known):
        matches = name in names
        color = theme.SERIES[names.index(name) % len(theme.SERIES)] if matches else theme.MUTED
        marker = theme.MARKERS[(names.index(name) if matches else index) % len(theme.MARKERS)]
        line = others.isel(model=index)
        ax.plot(
            line["num_samples"], line, color=color, marker=marker, markersize=6, alpha=0.38,
            linestyle=":", linewidth=1, zorder=1, label=f"{theme.plain(name, 24)}{_PUBLISHED}",
            markerfacecolor="none",
        )  # fmt: skip


def _axes(ax: Axes, samples: np.ndarray) -> None:
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(np.unique(samples).tolist()))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set(xlabel="Samples per case [count]", ylabel="GED², biased [no unit]")
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    theme.clean(ax)
