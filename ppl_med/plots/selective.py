"""The error that remains when the most uncertain is left out: one line per uncertainty."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppl_med.plots import theme
from ppl_med.plots.inputs import one_of, require_dims, require_named

_DASHES = ("-", (0, (6, 1.5)), (0, (2, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
_SOURCE = "ppl_med.analysis.selective"
Datasets = xr.Dataset | Mapping[str, xr.Dataset]


def risk_coverage(datasets: Datasets) -> Figure:
    """Draw the risk of what is kept against its share.

    The grey dashed line is the oracle, which knows the errors; the dotted one is the risk of all,
    which an uninformative uncertainty has at every coverage. Bands, of one or two curves, are two
    standard errors over cases each way; the legend has the standard errors of the areas.

    Args:
        datasets: As ``ppl_med.analysis.selective.risk_coverage`` returns it; a mapping from name to
            Dataset overlays several, all of the same errors.

    Returns:
        One panel; the legend gives the area under each curve (AURC) and AUGRC.

    Raises:
        TypeError, ValueError: No Dataset, or a variable or dimension is missing.
    """
    needed = ("risk", "risk_oracle", "aurc", "augrc", "error_mean")
    named = _named(datasets, needed, "coverage", "risk_coverage")
    figure, ax = _panel()
    first = next(iter(named.values()))
    _reference(ax, first, "coverage", "risk_oracle", float(first["error_mean"]))
    for index, (name, dataset) in enumerate(named.items()):
        areas = f"{_area(dataset, 'aurc', 'AURC')}, {_area(dataset, 'augrc', 'AUGRC')}"
        _curve(ax, dataset, "coverage", "risk", name, areas, index, band=len(named) < 3)
    ax.set_xlabel("Coverage [proportion kept, the most certain first]")
    ax.set_ylabel(f"Risk: mean error [{_unit(first['risk'])}]")
    ax.set(xlim=(0, 1), ylim=(0, None))
    return _finish(figure, ax, "Risk and coverage", named)


def sparsification(datasets: Datasets) -> Figure:
    """Draw the mean error of what remains as the most uncertain is removed.

    Args:
        datasets: As ``ppl_med.analysis.selective.sparsification`` returns it; a mapping from name
            to Dataset overlays several, all of the same errors.

    Returns:
        One panel with the oracle (dashed) and random order (dotted); the legend gives the area
        between each curve and the oracle's (AUSE).

    Raises:
        TypeError, ValueError: No Dataset, or a variable or dimension is missing.
    """
    needed = ("sparsification", "oracle", "random", "ause")
    named = _named(datasets, needed, "removed", "sparsification")
    figure, ax = _panel()
    first = next(iter(named.values()))
    _reference(ax, first, "removed", "oracle", float(first["random"][0]))
    for index, (name, dataset) in enumerate(named.items()):
        area = _area(dataset, "ause", "AUSE")
        band = len(named) < 3
        _curve(ax, dataset, "removed", "sparsification", name, area, index, band=band)
    ax.set_xlabel("Removed [proportion, the most uncertain first]")
    ax.set_ylabel(f"Mean error of what remains [{_unit(first['sparsification'])}]")
    ax.set(xlim=(0, 1), ylim=(0, None))
    return _finish(figure, ax, "Sparsification", named)


def precision_recall(datasets: Datasets) -> Figure:
    """Draw the precision of what is kept against the share of the correct that is kept.

    Args:
        datasets: As ``ppl_med.analysis.selective.precision_recall`` returns it; a mapping from name
            to Dataset overlays several, all of the same errors.

    Returns:
        One panel; the dotted line is the accuracy of all; the legend gives average precision (AP).

    Raises:
        TypeError, ValueError: No Dataset, or a variable or dimension is missing.
    """
    needed = ("precision", "average_precision", "accuracy")
    named = _named(datasets, needed, "recall", "precision_recall")
    figure, ax = _panel()
    first = next(iter(named.values()))
    _level(ax, float(first["accuracy"]), "accuracy of all")
    for index, (name, dataset) in enumerate(named.items()):
        area = _area(dataset, "average_precision", "AP")
        _curve(ax, dataset, "recall", "precision", name, area, index, band=len(named) < 3)
    ax.set_xlabel("Recall [proportion of correct entries kept, the most certain first]")
    ax.set_ylabel("Precision of what is kept [proportion]")
    ax.set(xlim=(0, 1), ylim=(None, min(1.005, ax.get_ylim()[1])))
    return _finish(figure, ax, "Precision and recall by uncertainty", named)


def _named(
    datasets: Datasets, needed: tuple[str, ...], dim: str, source: str
) -> dict[str, xr.Dataset]:
    named = require_named(datasets, "datasets", needed, f"{_SOURCE}.{source}")
    for name, dataset in named.items():
        require_dims(dataset[needed[0]], f"{one_of('datasets', name)}[{needed[0]!r}]", (dim,))
    return named


def _panel() -> tuple[Figure, Axes]:
    figure = theme.new_figure(6.4, 4.8)
    ax = figure.subplots()
    theme.clean(ax, grid="both")
    return figure, ax


def _reference(ax: Axes, dataset: xr.Dataset, dim: str, oracle: str, chance: float) -> None:
    _level(ax, chance, "random order")
    style = {"color": theme.MUTED, "linewidth": 1.2, "linestyle": theme.DASHED, "label": "oracle"}
    ax.plot(dataset[dim], dataset[oracle], zorder=1.5, **style)  # type: ignore[arg-type]


def _level(ax: Axes, height: float, label: str) -> None:
    ax.axhline(
        height, color=theme.MUTED, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1.5, label=label
    )


def _area(dataset: xr.Dataset, name: str, label: str) -> str:
    error = float(dataset.get(f"{name}_se", np.nan))
    spread = f" ± {error:.2g}" if np.isfinite(error) else ""
    return f"{label} {float(dataset[name]):.3g}{spread}"


def _curve(
    ax: Axes,
    dataset: xr.Dataset,
    dim: str,
    variable: str,
    name: str,
    area: str,
    index: int,
    *,
    band: bool,
) -> None:
    color = theme.SERIES[index % len(theme.SERIES)]
    x, y = dataset[dim].to_numpy(), dataset[variable].to_numpy()
    label = f"{theme.plain(name, 28)} · {area}" if name else area
    if band and f"{variable}_se" in dataset:
        reach = 2 * dataset[f"{variable}_se"].to_numpy()
        ax.fill_between(x, y - reach, y + reach, color=color, alpha=0.13, linewidth=0, zorder=1)
    ax.plot(
        x, y, color=color, linewidth=1.8, linestyle=_DASHES[index % len(_DASHES)], zorder=3,
        label=label,
    )  # fmt: skip


def _unit(array: xr.DataArray) -> str:
    unit = theme.unit_of(array, "1")
    return "proportion" if unit == "probability" else unit


def _finish(figure: Figure, ax: Axes, title: str, named: Mapping[str, xr.Dataset]) -> Figure:
    low, high = ax.get_ylim()
    known = [line.get_ydata() for line in ax.lines]
    top = theme.longest(known)
    if title.startswith("Precision"):
        bottom = -theme.longest(-np.asarray(values, float) for values in known)
        ax.set_ylim(bottom - 0.08 * (high - bottom or 1), high)
    else:  # the first few entries have bands far above the curves
        ax.set_ylim(low, min(high, 1.25 * top or 1))
    theme.legend(figure, ncols=1 if len(named) > 1 else 3)
    first = next(iter(named.values()))
    number, cases = first.attrs.get("num_entries"), first.attrs.get("num_cases")
    left_out = first.attrs.get("num_left_out", 0)
    if number is not None and number + left_out == cases:
        title += f" · {number} of {cases} cases" if left_out else f" · {number} cases"
    elif number is not None:
        title += f" · {number:,} pixels of {cases} cases"
    theme.heading(figure, title)
    return figure
