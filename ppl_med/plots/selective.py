"""The error that remains when the most uncertain is left out: one line per uncertainty."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppl_med.plots import theme
from ppl_med.plots.inputs import one_of, require_dims, require_named

_DASHES = ("-", (0, (6, 1.5)), (0, (2, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
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
    areas = {"aurc": "AURC", "augrc": "AUGRC"}
    named = _named(datasets, "risk_coverage", ("risk", "risk_oracle", "error_mean"), areas)
    first = next(iter(named.values()))
    figure, ax = _panel(named, "coverage", "risk", areas)
    _level(ax, float(first["error_mean"]), "random order")
    _oracle(ax, first["coverage"], first["risk_oracle"])
    ax.set_xlabel("Coverage [proportion kept, the most certain first]")
    ax.set_ylabel(f"Risk: mean error [{_unit(first['risk'])}]")
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
    areas = {"ause": "AUSE"}
    named = _named(datasets, "sparsification", ("sparsification", "oracle", "random"), areas)
    first = next(iter(named.values()))
    figure, ax = _panel(named, "removed", "sparsification", areas)
    _level(ax, float(first["random"][0]), "random order")
    _oracle(ax, first["removed"], first["oracle"])
    ax.set_xlabel("Removed [proportion, the most uncertain first]")
    ax.set_ylabel(f"Mean error of what remains [{_unit(first['sparsification'])}]")
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
    areas = {"average_precision": "AP"}
    named = _named(datasets, "precision_recall", ("precision", "accuracy"), areas)
    figure, ax = _panel(named, "recall", "precision", areas)
    _level(ax, float(next(iter(named.values()))["accuracy"]), "accuracy of all")
    ax.set_xlabel("Recall [proportion of correct entries kept, the most certain first]")
    ax.set_ylabel("Precision of what is kept [proportion]")
    return _finish(figure, ax, "Precision and recall by uncertainty", named)


_DIMS = {"risk_coverage": "coverage", "sparsification": "removed", "precision_recall": "recall"}


def _named(
    datasets: Datasets, source: str, needed: tuple[str, ...], areas: Mapping[str, str]
) -> dict[str, xr.Dataset]:
    full = f"ppl_med.analysis.selective.{source}"
    named = require_named(datasets, "datasets", (*needed, *areas), full)
    for name, dataset in named.items():
        argument = f"{one_of('datasets', name)}[{needed[0]!r}]"
        require_dims(dataset[needed[0]], argument, (_DIMS[source],))
    return named


def _panel(
    named: Mapping[str, xr.Dataset], dim: str, variable: str, areas: Mapping[str, str]
) -> tuple[Figure, Axes]:
    """One line for each Dataset, with a band where there are one or two."""
    figure, ax = theme.new_panel(6.4, 4.8, grid="both")
    for index, (name, dataset) in enumerate(named.items()):
        color, dashes = theme.series(index)["color"], _DASHES[index % len(_DASHES)]
        area = ", ".join(_area(dataset, area, label) for area, label in areas.items())
        label = f"{theme.plain(name, 28)} · {area}" if name else area
        x, y = dataset[dim].to_numpy(), dataset[variable].to_numpy()
        if len(named) < 3 and f"{variable}_se" in dataset:
            reach = 2 * dataset[f"{variable}_se"].to_numpy()
            ax.fill_between(x, y - reach, y + reach, color=color, alpha=0.13, linewidth=0, zorder=1)
        ax.plot(x, y, color=color, linewidth=1.8, linestyle=dashes, zorder=3, label=label)
    return figure, ax


def _oracle(ax: Axes, x: xr.DataArray, y: xr.DataArray) -> None:
    ax.plot(x, y, color=theme.MUTED, linewidth=1.2, linestyle=theme.DASHED, zorder=1.5,
            label="oracle")  # fmt: skip


def _level(ax: Axes, height: float, label: str) -> None:
    ax.axhline(
        height, color=theme.MUTED, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1.5, label=label
    )


def _area(dataset: xr.Dataset, name: str, label: str) -> str:
    error = float(dataset.get(f"{name}_se", np.nan))
    spread = f" ± {error:.2g}" if np.isfinite(error) else ""
    return f"{label} {float(dataset[name]):.3g}{spread}"


def _unit(array: xr.DataArray) -> str:
    unit = theme.unit_of(array, "1")
    return "proportion" if unit == "probability" else unit


def _finish(figure: Figure, ax: Axes, title: str, named: Mapping[str, xr.Dataset]) -> Figure:
    ax.set_xlim(0, 1)
    high = ax.get_ylim()[1]
    known = [line.get_ydata() for line in ax.lines]
    if title.startswith("Precision"):
        bottom, high = -theme.longest(-np.asarray(y, float) for y in known), min(1.005, high)
        ax.set_ylim(bottom - 0.08 * (high - bottom or 1), high)
    else:  # the first few entries have bands far above the curves
        ax.set_ylim(0, min(high, 1.25 * theme.longest(known) or 1))
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
