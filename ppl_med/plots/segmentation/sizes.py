"""Sizes of structures: does an interval hold the sizes that graders drew, and how wide is it?"""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ppl_med.checks import whole
from ppl_med.plots import theme
from ppl_med.plots.inputs import one_class, require_named, require_variables

_INTERVAL = "#b8c6d6"
_SOURCE = "ppl_med.analysis.segmentation.sizes"
_NEEDED = ("lower", "upper", "grader_size")


def area_intervals(sizes: xr.Dataset, class_name: str | None = None, *, num: int = 60) -> Figure:
    """Draw the credible interval of every case, sorted, with one mark for each grader's area.

    Args:
        sizes: As ``ppl_med.analysis.segmentation.sizes`` returns it: ``median``, ``lower``,
            ``upper`` (case, class) and, where graders drew, ``grader_size`` (case, grader, class).
        class_name: The structure; the first by default.
        num: Most cases to draw: evenly spaced in the order of their medians.

    Returns:
        One panel, one interval per case.

    Raises:
        ValueError: A variable is missing, the class is unknown, or ``num`` is below 1.
    """
    require_variables(sizes, "sizes", ("median", "lower", "upper"), _SOURCE)
    whole("num", num)
    part = one_class(sizes, class_name)
    graders = None
    if "grader_size" in part:
        graders = part["grader_size"].transpose("case", "grader").to_numpy()
    median, low, high = (part[name].to_numpy() for name in ("median", "lower", "upper"))
    order = theme.evenly(_order(median, low, high, graders), num)
    figure = theme.new_figure(9.0, 4.6)
    ax = figure.subplots()
    place = np.arange(len(order))
    thick = float(np.clip(260 / len(order), 1.5, 9))
    ax.vlines(
        place, low[order], high[order], color=_INTERVAL, linewidth=thick, label=_interval(sizes)
    )
    ax.plot(
        place, median[order], "_", color=theme.INK, markersize=max(4.0, thick + 1), label="median"
    )
    unit, note = theme.unit_of(sizes["median"], "pixels"), ""
    largest = np.fmax(high[order], median[order])
    if graders is not None:
        _graders(ax, place, graders[order], low[order], high[order])
        known = ~np.isnan(graders)
        note = "no grader measured any case"
        if known.any():
            share = 100 * _inside(graders, low, high)[known].mean()
            note = f"{share:.0f} % of the graders of all {len(median)} cases inside"
        largest = np.fmax(largest, np.fmax.reduce(graders[order], axis=1, initial=0.0))
    _axes(ax, unit, len(order), float(largest.max()))
    theme.remark(ax, note)
    theme.legend(figure, ncols=4)
    kind = "volume" if "³" in unit else "area"
    theme.heading(figure, f"Credible {kind} of {part['class'].item()}")
    return figure


def size_intervals(
    sizes: xr.Dataset | Mapping[str, xr.Dataset], class_name: str | None = None
) -> Figure:
    """Draw every case's interval over its true size; one that meets the diagonal holds the truth.

    Args:
        sizes: As ``ppl_med.analysis.segmentation.sizes`` returns it with annotations: ``lower``,
            ``upper`` (case, class) and ``grader_size`` (case, grader, class); the graders' mean is
            the truth. A mapping from name to Dataset draws one panel for each, on the same scales,
            for example to compare intervals of several methods.
        class_name: The structure; the first by default.

    Returns:
        One panel per Dataset; above it the share of cases inside and the mean width.

    Raises:
        ValueError: There is no Dataset, a variable is missing, sizes are not finite, the class is
            unknown, or units differ.
    """
    named = require_named(sizes, "sizes", _NEEDED, _SOURCE)
    parts = {name: _with_truth(one, class_name) for name, one in named.items()}
    units = {theme.unit_of(one["lower"], "pixels") for one in parts.values()}
    if len(units) > 1:
        raise ValueError(f"sizes have different units {sorted(units)}; draw them apart")
    (unit,) = units
    figure = theme.new_figure(max(4.4, 3.3 * len(parts) + 0.4), 4.1)
    axes = figure.subplots(1, len(parts), squeeze=False, sharex=True, sharey=True)[0]
    for ax, (name, one) in zip(axes, parts.items(), strict=True):
        _truth_panel(ax, one, name, unit)
    ends = [float(one[name].min()) for one in parts.values() for name in ("lower", "truth")]
    tops = [float(one[name].max()) for one in parts.values() for name in ("upper", "truth")]
    margin = 0.04 * (max(tops) - min(ends)) or 1.0
    limits = (max(0.0, min(ends) - margin), max(tops) + margin)
    for ax in axes:
        ax.plot(limits, limits, color=theme.MUTED, linewidth=0.9, zorder=1)
    truths = np.concatenate([one["truth"].values for one in parts.values()])
    spread = 0.06 * np.ptp(truths) or margin
    axes[0].set_xlim(truths.min() - spread, truths.max() + spread)
    axes[0].set_ylim(limits)
    axes[0].set_ylabel(f"Interval [{unit}]")
    kind = "volume" if "³" in unit else "area" if "²" in unit else "size"
    structure = next(iter(parts.values()))["class"].item()
    theme.heading(figure, f"{kind.capitalize()} of {structure} against the truth")
    return figure


def _inside(sizes: NDArray, low: NDArray, high: NDArray) -> NDArray[np.bool_]:
    return (sizes >= low[:, None]) & (sizes <= high[:, None])


def _interval(sizes: xr.Dataset) -> str:
    level = sizes.attrs.get("attained_level", sizes.attrs.get("level"))
    return "credible interval" if level is None else f"{100 * float(level):.3g} % credible interval"


def _order(
    median: NDArray, low: NDArray, high: NDArray, graders: NDArray | None
) -> NDArray[np.intp]:
    """By median, ties by the graders' mean and by the interval."""
    tie = low + high if graders is None else np.nan_to_num(graders).mean(1)
    return np.lexsort((low + high, tie, median))


def _graders(ax: Axes, place: NDArray, areas: NDArray, low: NDArray, high: NDArray) -> None:
    across = np.repeat(place[:, None], areas.shape[1], 1)
    inside = _inside(areas, low, high)
    for chosen, color, label in (
        (inside, theme.INK, "grader inside"),
        (~inside & ~np.isnan(areas), theme.MISS, "grader outside"),
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
    ax.set_yticks(np.unique([float(f"{tick:.0e}") for tick in ticks]))  # one significant digit
    top = max(1.08 * largest, 1.0)
    ax.set_ylim(-0.001 * top, top)
    ax.set_xlim(-1, number)
    theme.clean(ax)


def _root(values: NDArray) -> NDArray:
    return np.sign(values) * np.sqrt(np.abs(values))


def _square(values: NDArray) -> NDArray:
    return np.sign(values) * np.square(values)


def _with_truth(sizes: xr.Dataset, class_name: str | None) -> xr.Dataset:
    """One structure: ``lower``, ``upper`` and ``truth`` (case)."""
    part = one_class(sizes[list(_NEEDED)], class_name)
    part["truth"] = part["grader_size"].mean("grader")
    for name in ("lower", "upper", "truth"):
        if not np.isfinite(part[name].values).all():
            raise ValueError(f"{name} holds NaN or infinite sizes; leave those cases out")
    return part


def _truth_panel(ax: Axes, part: xr.Dataset, name: str, unit: str) -> None:
    low, high, truth = (part[each].values for each in ("lower", "upper", "truth"))
    inside = (truth >= low) & (truth <= high)
    for chosen, color in ((inside, theme.INK), (~inside, theme.MISS)):
        ax.vlines(truth[chosen], low[chosen], high[chosen], color=color, linewidth=1.6, zorder=2)
        middle = (low + high)[chosen] / 2
        ax.plot(truth[chosen], middle, "o", color=color, markersize=2.6, zorder=3)
    share, width = 100 * inside.mean(), (high - low).mean()
    text = f"{theme.plain(name)}\n{share:.0f} % of {len(truth)} inside, {width:.0f} {unit} wide"
    theme.subtitle(ax, text.strip(), loc="center")
    ax.set_xlabel(f"True size [{unit}]")
    theme.clean(ax)
