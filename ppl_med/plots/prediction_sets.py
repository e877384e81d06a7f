"""Prediction sets: their sizes, their classes beside the image, their coverage by group."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from ppl_med.analysis.tree import class_names
from ppl_med.checks import whole
from ppl_med.plots import theme
from ppl_med.plots.inputs import require_dims, require_labels, require_variables
from ppl_med.plots.pictures import frame, require_images, show_picture

_UNKNOWN, _BAND = "#8fa1b3", "#d3dbe4"
_SETS = "ppl_med.analysis.conformal.predict_sets"
_COVERAGE = "ppl_med.analysis.conformal.coverage"
_COLUMNS = 4
_LINES = 5
_STATES = {
    1.0: (theme.HIT, "holds the true class"),
    0.0: (theme.MISS, "misses it"),
    np.nan: (_UNKNOWN, "not labelled"),
}
_LABELLED = 16  # bars that have room for figures


def set_sizes(sets: xr.Dataset) -> Figure:
    """Draw the share of cases by the size of their prediction set.

    Args:
        sets: As ``ppl_med.analysis.conformal.predict_sets`` returns it; with labels the bars are
            split into sets that hold the true class and sets that miss it, and the coverage is
            stated with what it should be.

    Returns:
        One panel, one bar for every size from 0 to the largest.

    Raises:
        ValueError: ``sets`` holds no ``prediction_set``.
    """
    member = _member(sets)
    size = member.sum("class").to_numpy()
    place = np.arange(size.max() + 1)
    figure, ax = theme.new_panel(6.4, 4.0)
    covered = _covered(sets)
    total = np.zeros(len(place))
    for state, (color, label) in _STATES.items():
        part = np.isnan(covered) if np.isnan(state) else covered == state
        if part.any():
            height = np.bincount(size[part], minlength=len(place)) / len(size)
            ax.bar(place, height, 0.72, bottom=total, color=color, label=label)
            total = total + height
    for x, share in enumerate(total.tolist() if len(place) <= _LABELLED else ()):
        text = f"{100 * share:.0f} %" if share >= 0.005 or share == 0 else "<1 %"
        theme.write(ax, x, share, text, 8.5, ha="center", va="bottom")
    ax.set(
        xlabel="Classes in the set [count]",
        ylabel="Share of cases [%]",
        ylim=(0, 1.13 * total.max()),
    )
    if len(place) <= _LABELLED:
        ax.set_xticks(place)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_formatter(theme.percent)
    if "covered" in sets:
        theme.legend(figure, ncols=3)
    theme.remark(ax, _note(sets), pad=6)
    theme.heading(figure, f"Size of the prediction sets, mean {size.mean():.2f}")
    return figure


def sets_over_images(
    images: ArrayLike,
    sets: xr.Dataset,
    label: ArrayLike | None = None,
    *,
    num: int = 12,
) -> Figure:
    """Show pictures with the classes of their prediction set beneath, small sets first.

    Args:
        images: (case, channel, row, col), 1 or 3 channels, in the order of the cases of ``sets``.
        sets: As ``ppl_med.analysis.conformal.predict_sets`` returns it. Where it holds ``covered``,
            the frame tells whether the set holds the true class.
        label: Observed class index of every case (case), -1 where unknown; it is written in bold.
        num: Most pictures: evenly spaced in the order of set sizes.

    Returns:
        A grid of pictures, four in a row.

    Raises:
        ValueError: Images, sets and labels do not describe the same cases, or ``num`` below 1.
    """
    member = _member(sets)
    pictures = require_images(images, member.sizes["case"])
    whole("num", num)
    truth = None if label is None else _checked_label(label, member)
    order = theme.evenly(np.argsort(member.sum("class").to_numpy(), kind="stable"), num)
    names = class_names(member)
    columns = min(_COLUMNS, len(order))
    rows = -(-len(order) // columns)
    figure = theme.new_figure(2.3 * columns + 0.3, 3.1 * rows + 0.9, w_pad=0.09, h_pad=0.05)
    cards = figure.subplots(rows, columns, squeeze=False).ravel()
    covered = _covered(sets)
    for ax, index in zip(cards, order, strict=False):
        color = theme.MISS if covered[index] == 0 else theme.HIT
        color = _UNKNOWN if np.isnan(covered[index]) else color
        _picture(ax, pictures[index], color, theme.plain(member["case"].values[index], 22))
        own = None if truth is None or truth[index] < 0 else int(truth[index])
        _classes(ax, names, member.values[index], own)
    for ax in cards[len(order) :]:
        ax.set_axis_off()
    if "covered" in sets:
        handles = [
            Patch(facecolor="none", edgecolor=color, linewidth=2.5, label=text)
            for color, text in list(_STATES.values())[: 3 if np.isnan(covered).any() else 2]
        ]
        theme.legend(figure, handles=handles, ncols=3)
    bold = ", truth in bold" if truth is not None else ""
    theme.heading(figure, f"Prediction sets, small to large{bold}")
    return figure


def group_coverage(coverage: xr.Dataset) -> Figure:
    """Draw the coverage of every group against the band it must lie in.

    Args:
        coverage: As ``ppl_med.analysis.conformal.coverage`` returns it.

    Returns:
        One line per group: the band of the exact distribution (bar), the share of covered cases
        (dot), its 95 % interval (whiskers) and the number of cases; a dot outside the band is
        orange.

    Raises:
        ValueError: ``coverage`` lacks a variable.
    """
    require_variables(
        coverage, "coverage", ("coverage", "count", "interval_lower", "interval_upper"), _COVERAGE
    )
    names = [theme.plain(name, 24) for name in coverage["group"].values]
    share, low, high = (
        coverage[name].to_numpy() for name in ("coverage", "interval_lower", "interval_upper")
    )
    count = coverage["count"].to_numpy()
    has_band = "lower" in coverage
    band = [coverage[name].to_numpy() for name in ("lower", "upper")] if has_band else []
    outside = (share < band[0]) | (share > band[1]) if has_band else np.zeros(len(share), bool)
    figure, ax = theme.new_panel(7.4, 0.46 * len(names) + 2.0, grid="x")
    place = np.arange(len(names))
    target = 1 - float(coverage.attrs["alpha"])
    ax.axvline(target, color=theme.MUTED, linewidth=1, linestyle=theme.DASHED)
    if has_band:
        ax.barh(place, band[1] - band[0], 0.56, left=band[0], color=_BAND)
    ax.hlines(place, low, high, color=theme.INK, linewidth=1.2)
    for chosen, color in ((~outside, theme.INK), (outside, theme.MISS)):
        ax.plot(share[chosen], place[chosen], "o", color=color, markersize=6.5)
    left = float(min([target, *low, *(band[0] if has_band else [])]))
    ax.set(xlim=(max(-0.02, left - 0.05), 1.02), ylim=(len(names) - 0.4, -0.6))
    style: dict[str, Any] = {"size": 8.5, "color": theme.MUTED, "clip_on": False}
    for y, number in zip(place, count, strict=True):
        theme.write(ax, 1.035, float(y), f"{number}", va="center", **style)
    theme.write(ax, 1.035, -0.75, "cases", va="bottom", **style)
    ax.set_yticks(place, names)
    ax.set_xlabel("Share of cases whose set holds the true class [%]")
    ax.xaxis.set_major_formatter(theme.percent)
    _legend(figure, coverage, has_band, bool(outside.any()), target)
    theme.heading(figure, _title(coverage))
    return figure


def _member(sets: xr.Dataset) -> xr.DataArray:
    require_variables(sets, "sets", ("prediction_set",), _SETS)
    return require_dims(sets["prediction_set"], "sets['prediction_set']", ("case", "class"))


def _covered(sets: xr.Dataset) -> NDArray[np.float64]:
    """1 where the set holds the true class, 0 where it misses it, NaN without a label."""
    if "covered" not in sets:
        return np.full(sets.sizes["case"], np.nan)
    return sets["covered"].to_numpy().astype(np.float64)


def _note(sets: xr.Dataset) -> str:
    if "coverage" not in sets:
        return ""
    text = f"{100 * float(sets['coverage']):.1f} % hold the true class"
    if "coverage_lower" in sets:
        low, high = (100 * float(sets[f"coverage_{end}"]) for end in ("lower", "upper"))
        text += f"; {low:.1f} to {high:.1f} % was expected (99 % band)"
    return text


def _checked_label(label: ArrayLike, member: xr.DataArray) -> NDArray[np.int64]:
    values = require_labels(label, member.sizes["case"])
    if values.dtype.kind not in "iu":
        raise ValueError(
            f"label must hold one class index per case, {member.sizes['case']} integers; got "
            f"{values.dtype} of shape {values.shape}"
        )
    if values.min() < -1 or values.max() >= member.sizes["class"]:
        raise ValueError(
            f"label runs from {values.min()} to {values.max()}, outside 0 to "
            f"{member.sizes['class'] - 1}; pass class indices, -1 for no label"
        )
    return values.astype(np.int64)


def _picture(ax: Axes, picture: NDArray[np.float64], color: str, title: str) -> None:
    show_picture(ax, picture)
    frame([ax], 2.5, color)
    ax.set_anchor("N")
    ax.set_title(title, fontsize=8.5, color=theme.MUTED, loc="left", pad=4)


def _classes(ax: Axes, names: list[str], member: NDArray[np.bool_], truth: int | None) -> None:
    """Write the set beneath the picture; a true class that is missing stands below."""
    inside = np.flatnonzero(member).tolist()
    if truth in inside:  # a long list must not hide it
        inside = [truth, *(k for k in inside if k != truth)]
    lines = [(theme.plain(names[k], 24), k == truth, theme.INK) for k in inside[:_LINES]]
    if len(inside) > _LINES:
        lines[-1] = (f"and {len(inside) - _LINES + 1} more", False, theme.MUTED)
    if not inside:
        lines = [("empty set", False, theme.MUTED)]
    if truth is not None and truth not in inside:
        lines.append((f"not in it: {theme.plain(names[truth], 16)}", True, theme.MISS))
    for index, (text, bold, color) in enumerate(lines):
        ax.annotate(
            text, (0, 0), (1, -5 - 11.5 * index), xycoords="axes fraction",
            textcoords="offset points", fontsize=8.5, color=color, va="top",
            weight="bold" if bold else "normal",
        )  # fmt: skip


def _legend(
    figure: Figure, coverage: xr.Dataset, has_band: bool, outside: bool, target: float
) -> None:
    level = 100 * float(coverage.attrs.get("level", 0.99))
    promised = bool(coverage.attrs.get("promised", 0))
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=theme.INK, marker="o", markersize=6, linewidth=1.2,
               label="coverage, 95 % interval"),
        Line2D([], [], color=theme.MUTED, linestyle=theme.DASHED, linewidth=1,
               label=f"{'promised' if promised else 'aimed at'} {100 * target:g} %"),
    ]  # fmt: skip
    if has_band:
        text = "exact" if promised else "if the groups did not differ"
        handles.append(Patch(color=_BAND, label=f"{level:g} % band, {text}"))
    if outside:
        dot = Line2D(
            [], [], color=theme.MISS, marker="o", markersize=6, linestyle="", label="outside"
        )
        handles.append(dot)
    theme.legend(figure, handles=handles, ncols=len(handles), fontsize=8, handletextpad=0.6,
                 columnspacing=1.3)  # fmt: skip


def _title(coverage: xr.Dataset) -> str:
    by = str(coverage.attrs.get("by", "group"))
    words = {"class": "true class", "set_size": "set size", "array": "group"}.get(by, by)
    own = str(coverage.attrs.get("within", ""))
    text = f"Coverage by {words.replace('_', ' ')}"
    if own == by:
        return f"{text}, a threshold for each"
    return text
