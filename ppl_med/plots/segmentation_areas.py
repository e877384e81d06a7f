"""Does the credible interval of an area hold the areas that graders drew?"""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ppl_med.plots.checks import require_variables
from ppl_med.plots.theme import INK, MUTED, clean, heading, new_figure, plain

_INTERVAL, _INSIDE, _OUTSIDE = "#b8c6d6", "#1f2933", "#D55E00"
_SOURCE = "ppl_med.analysis.segmentation.sizes"


def area_intervals(sizes: xr.Dataset, class_name: str | None = None, *, num: int = 60) -> Figure:
    """Draw the credible interval of every case, sorted, with one mark for each grader's area.

    Args:
        sizes: As ``ppl_med.analysis.segmentation.sizes`` returns it: ``median``, ``lower``,
            ``upper`` (case, class) and, where graders drew, ``grader_size`` (case, grader, class).
        class_name: The structure; the first by default.
        num: Most cases to draw: evenly spaced in the order of their medians.

    Returns:
        One panel, an interval a case.

    Raises:
        ValueError: A variable is missing, the class is unknown, or ``num`` is below 1.
    """
    require_variables(sizes, "sizes", ("median", "lower", "upper"), _SOURCE)
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}")
    names = [str(name) for name in sizes["class"].values]
    if class_name is not None and class_name not in names:
        raise ValueError(f"class_name is {class_name!r}; sizes has {names}")
    part = sizes.isel({"class": 0 if class_name is None else names.index(class_name)})
    graders = None
    if "grader_size" in part:
        graders = part["grader_size"].transpose("case", "grader").to_numpy()
    median, low, high = (part[name].to_numpy() for name in ("median", "lower", "upper"))
    order = _order(median, low, high, graders)
    if len(order) > num:
        order = order[np.linspace(0, len(order) - 1, num).round().astype(int)]
    figure = new_figure(9.0, 4.6)
    ax = figure.subplots()
    place = np.arange(len(order))
    thick = float(np.clip(260 / len(order), 1.5, 9))
    ax.vlines(
        place, low[order], high[order], color=_INTERVAL, linewidth=thick, label=_interval(sizes)
    )
    ax.plot(place, median[order], "_", color=INK, markersize=max(4.0, thick + 1), label="median")
    unit = plain(sizes["median"].attrs.get("units", "pixels"))
    unit = unit.replace("^2", "²").replace("^3", "³")
    note = ""
    if graders is not None:
        _graders(ax, place, graders[order], low[order], high[order])
        inside = (graders >= low[:, None]) & (graders <= high[:, None])
        known = ~np.isnan(graders)
        note = "no grader measured any case"
        if known.any():
            share = 100 * inside[known].mean()
            note = f"{share:.0f} % of the graders of all {len(median)} cases inside"
    largest = np.fmax(high[order], median[order])
    if graders is not None:
        largest = np.fmax(largest, np.fmax.reduce(graders[order], axis=1, initial=0.0))
    _axes(ax, unit, len(order), float(largest.max()))
    ax.set_title(note, fontsize=8.5, color=MUTED, loc="right", pad=4)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9, labelcolor=INK)
    kind = "volume" if "³" in unit else "area"
    heading(figure, f"Credible {kind} of {plain(part['class'].item())}")
    return figure


def _interval(sizes: xr.Dataset) -> str:
    level = sizes.attrs.get("attained_level", sizes.attrs.get("level"))
    return "credible interval" if level is None else f"{100 * float(level):.3g} % credible interval"


def _order(
    median: NDArray, low: NDArray, high: NDArray, graders: NDArray | None
) -> NDArray[np.intp]:
    """By median, ties by the graders' mean and by the interval."""
    tie = low + high
    if graders is not None:
        tie = np.nan_to_num(graders).mean(1)
    return np.lexsort((low + high, tie, median))


def _graders(ax: Axes, place: NDArray, areas: NDArray, low: NDArray, high: NDArray) -> None:
    across = np.repeat(place[:, None], areas.shape[1], 1)
    inside = (areas >= low[:, None]) & (areas <= high[:, None])
    for chosen, color, label in (
        (inside, _INSIDE, "grader inside"),
        (~inside & ~np.isnan(areas), _OUTSIDE, "grader outside"),
    ):
        ax.plot(
            across[chosen], areas[chosen], "o", color=color, markersize=3.4, alpha=0.75,
            markeredgewidth=0, label=label,
        )  # fmt: skip


def _axes(ax: Axes, unit: str, number: int, largest: float) -> None:
    ax.set(xlabel=f"Case, sorted by median ({number} shown)", ylabel=f"Size [{unit}]")
    # The root spreads small structures and keeps 0, which a logarithm cannot show.
    ax.set_yscale("function", functions=(_root, _square))
    ticks = largest * np.array([0, 0.01, 0.05, 0.2, 0.5, 1.0])
    ax.set_yticks(np.unique([_round(tick) for tick in ticks]))
    top = max(1.08 * largest, 1.0)
    ax.set_ylim(-0.001 * top, top)
    ax.set_xlim(-1, number)
    clean(ax)


def _root(values: NDArray) -> NDArray:
    return np.sign(values) * np.sqrt(np.abs(values))


def _square(values: NDArray) -> NDArray:
    return np.sign(values) * np.square(values)


def _round(value: float) -> float:
    """To one significant digit."""
    return float(f"{value:.0e}")
