"""Boxes with all that is not sure about them over their picture, and free-response curves."""

from collections.abc import Hashable, Mapping
from typing import Any, cast

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, NullLocator
from numpy.typing import ArrayLike, NDArray

from ppl_med.analysis.detection.open_objects import FoundObjects, object_group, open_objects
from ppl_med.analysis.tree import find_group, observed_boxes
from ppl_med.checks import finite, whole
from ppl_med.plots import theme
from ppl_med.plots.inputs import case_positions, require_dims, require_variables
from ppl_med.plots.palette import class_colors
from ppl_med.plots.pictures import frame, one_picture, show_picture

_EDGES = ("edge_lower", "edge_upper", "edge_aleatoric", "edge_epistemic")
_SCORES = ("score_aleatoric", "score_epistemic")
_BAND = 0.35
_PANEL = 5.2  # height of the picture in inches
_COLUMNS = (0.0, 0.08, 0.3, 0.45, 0.61, 0.79, 0.92)
_HEADS = (
    ("", theme.INK), ("class", theme.INK), ("p(exists)", theme.INK), ("aleatoric", theme.ALEATORIC),
    ("epistemic", theme.EPISTEMIC), ("aleat.", theme.ALEATORIC), ("epist.", theme.EPISTEMIC),
)  # fmt: skip


def boxes(
    image: ArrayLike,
    tree: xr.DataTree,
    case: Hashable | None = None,
    *,
    least: float = 0.5,
    most: int = 12,
    colors: Mapping[str, str] | None = None,
    axes: Axes | None = None,
) -> Figure:
    """Show the objects of one case over its picture, with what is not sure about each.

    A box is drawn at the mean of its edges; the translucent band along an edge is its interval.
    True boxes, where the tree has them, are thin and dashed, those of all readers alike. The table
    beside gives of every object the probability that it is there, the aleatoric (orange) and
    epistemic (blue) variance of that, and the standard deviation of its edges, likewise in two
    parts (root of the mean over edges).

    Args:
        image: The picture of the case (channel, row, col), 1 or 3 channels, any unit.
        tree: A tree of `ppl_med.analysis.detection.objects`.
        case: Its id; None is the first.
        least: Least p_exists of an object that is drawn.
        most: Most objects, the most probable; the heading says how many are left out.
        colors: Of classes, by name.
        axes: A panel of one's own for the picture alone, without table and legend.

    Returns:
        The picture and the table, or the figure of ``axes``.

    Raises:
        TypeError, ValueError: No tree of objects, an unknown case, or a malformed argument.
    """
    finite("least", least, 0, 1)
    whole("most", most)
    group = object_group(tree)
    place = case_positions(group["p_exists"], None if case is None else [case])[0]
    picture = one_picture(image)
    own = tree.isel(case=[place], missing_dims="ignore")
    found = open_objects(own, *_EDGES, *_SCORES, truth=False)
    true = _true_boxes(own)
    order = np.argsort(-found.p_exists, kind="stable")
    wanted = order[found.p_exists[order] >= least]
    shown = wanted[:most]
    shades = class_colors(found.names, colors)
    name = theme.plain(group["case"].values[place] if "case" in group.coords else place, 30)
    text = f"Objects of {name}"
    if len(wanted) > len(shown):
        text += f", the first {len(shown)} of {len(wanted)}"
    if axes is not None:
        _draw(axes, picture, found, true, shown, shades)
        theme.subtitle(axes, text)
        return cast(Figure, axes.get_figure(root=True))
    width = float(np.clip(_PANEL * picture.shape[1] / picture.shape[0], 3.2, 7.5))
    figure = theme.new_figure(width + 5.4, _PANEL + 1.1)
    ax, table = figure.subplots(1, 2, width_ratios=[width, 5.2])
    _draw(ax, picture, found, true, shown, shades)
    _table(table, found, shown, shades, least)
    level = float(tree.attrs.get("level", group.attrs.get("level", np.nan)))
    _legend(figure, found, shades, level, len(true) > 0)
    theme.heading(figure, text)
    return figure


def _draw(
    ax: Axes,
    picture: NDArray[np.float64],
    found: FoundObjects,
    true: NDArray[np.float64],
    shown: NDArray[np.intp],
    shades: list[str],
) -> None:
    rows, cols = picture.shape[:2]
    show_picture(ax, picture)
    ax.images[0].set_extent((0, cols, rows, 0))  # boxes count from the edges of pixels
    ax.set(xlim=(0, cols), ylim=(rows, 0))
    frame([ax])
    for box in true:
        _outline(ax, box, "white", linestyle=theme.DASHED, linewidth=1.1)
    for number, index in enumerate(shown.tolist(), 1):
        _object(ax, found, index, number, shades[found.label[index]])


def _true_boxes(tree: xr.DataTree) -> NDArray[np.float64]:
    """Edges of the true boxes of a case, of all readers (true, edge); none where there are none."""
    if "box_edge" not in find_group(tree, "observed_data"):
        return np.zeros((0, 4))
    edges = observed_boxes(tree)[0].transpose(..., "edge").values.reshape(-1, 4)
    return edges[np.isfinite(edges).all(1)].astype(np.float64)


def froc(dataset: xr.Dataset) -> Figure:
    """Draw sensitivity against the number of false objects an image, one line a class.

    Dots are at the numbers over which the mean, CPM, is taken. Of a result of
    ``bootstrap("froc", ...)`` bands are over images.

    Args:
        dataset: As ``ppl_med.analysis.detection.froc`` returns it, or ``bootstrap`` of it.

    Returns:
        One panel.

    Raises:
        TypeError, ValueError: No Dataset, or a variable or dimension is missing.
    """
    source = "ppl_med.analysis.detection.froc"
    require_variables(dataset, "dataset", ("curve", "sensitivity", "cpm"), source)
    require_dims(dataset["curve"], "dataset['curve']", ("class", "false_objects_of_curve"))
    figure, ax = theme.new_panel(6.2, 4.4, grid="both")
    for index, name in enumerate(dataset["class"].values):
        part = dataset.isel({"class": index})
        if not np.isfinite(part["cpm"]):
            continue
        style = theme.series(index)
        x = part["false_objects_of_curve"].to_numpy()
        text = f"{theme.plain(name, 22)} · CPM {float(part['cpm']):.3f}"
        if "cpm_lower" in part:
            text += f" [{float(part['cpm_lower']):.3f}, {float(part['cpm_upper']):.3f}]"
            ends = part["curve_lower"], part["curve_upper"]
            ax.fill_between(x, *ends, color=style["color"], alpha=0.15, linewidth=0, zorder=1)
        ax.plot(x, part["curve"], color=style["color"], linewidth=1.8, zorder=2)
        at = part["false_objects"].to_numpy()
        ax.plot(at, part["sensitivity"], linestyle="", markersize=5, zorder=3, **style)
        ax.plot([], [], linewidth=1.8, markersize=5, label=text, **style)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(FuncFormatter(_rate))
    ax.set_xticks(dataset["false_objects"].to_numpy())
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(ylim=(-0.02, 1.02), xlabel="False objects per image [count]", ylabel="Sensitivity")
    if "num_units" in dataset.attrs:
        level = 100 * float(dataset.attrs["level"])
        unit = {"case": "images", "patient": "patients"}.get(dataset.attrs["unit"], "groups")
        theme.remark(ax, f"bands: {level:g} % over {dataset.attrs['num_units']} {unit}")
    theme.legend(figure, ncols=1)
    theme.heading(figure, f"Free response, hit: {dataset.attrs.get('hit', '')}")
    return figure


def _object(ax: Axes, found: FoundObjects, index: int, number: int, color: str) -> None:
    box = found.box[index]
    lower, upper = found.others["edge_lower"][index], found.others["edge_upper"][index]
    for edge in range(4):
        start, end = lower[edge], upper[edge]
        if edge % 2 == 0:
            corner, size = (start, box[1]), (end - start, box[3] - box[1])
        else:
            corner, size = (box[0], start), (box[2] - box[0], end - start)
        ax.add_patch(Rectangle(corner, size[0], size[1], facecolor=color, alpha=_BAND, linewidth=0))
    _outline(ax, box, color, linewidth=1.6)
    ax.annotate(
        f"{number} · {found.p_exists[index]:.2f}", box[:2], xytext=(2, -2),
        textcoords="offset points", va="top", fontsize=8, color="white", clip_on=True,
        path_effects=[withStroke(linewidth=2, foreground=color)],
    )  # fmt: skip


def _outline(ax: Axes, box: NDArray[np.float64], color: str, **style: Any) -> None:
    size = box[2:] - box[:2]
    stroke = [withStroke(linewidth=2.2, foreground=theme.INK)] if color == "white" else []
    edge = {"fill": False, "edgecolor": color, "path_effects": stroke, **style}
    ax.add_patch(Rectangle((box[0], box[1]), size[0], size[1], **edge))


def _table(
    ax: Axes, found: FoundObjects, shown: NDArray[np.intp], shades: list[str], least: float
) -> None:
    ax.set_axis_off()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    step = min(0.065, 0.9 / max(len(shown) + 2, 1))
    for text, left in (("variance of p", _COLUMNS[3]), ("sd of an edge [px]", _COLUMNS[5])):
        theme.write(ax, left, 1.0, text, 8.5, color=theme.MUTED)
    for (head, color), x in zip(_HEADS, _COLUMNS, strict=True):
        theme.write(ax, x, 1 - step, head, 8.5, color=color, weight="bold")
    for row, index in enumerate(shown):
        scores = [float(found.others[name][index]) for name in _SCORES]
        spread = [float(found.others[name][index].mean() ** 0.5) for name in _EDGES[2:]]
        label = found.label[index]
        cells = [
            f"{row + 1}", theme.plain(found.names[label], 14), f"{found.p_exists[index]:.4f}",
            *(f"{one:.5f}" for one in scores), *(f"{one:.2f}" for one in spread),
        ]  # fmt: skip
        for place, (cell, x) in enumerate(zip(cells, _COLUMNS, strict=True)):
            color = shades[label] if place < 2 else theme.INK
            theme.write(ax, x, 1 - (row + 2.2) * step, cell, 8.5, color=color)
    if not len(shown):
        text = f"no object has a p(exists) of {least:g} or more"
        if len(found.p_exists):
            text += f"; the highest is {found.p_exists.max():.4f}"
        theme.write(ax, 0, 1 - 2.2 * step, text, 8.5, color=theme.MUTED)


def _legend(
    figure: Figure, found: FoundObjects, shades: list[str], level: float, with_true: bool
) -> None:
    used = sorted(set(found.label.tolist()))
    handles: list[Patch | Line2D] = [
        Patch(facecolor=shades[label], label=theme.plain(found.names[label], 22)) for label in used
    ]
    handles.append(Patch(facecolor=theme.MUTED, alpha=_BAND, label=f"{100 * level:g} % of an edge"))
    if with_true:
        handles.append(
            Line2D([], [], color=theme.INK, linestyle=theme.DASHED, linewidth=1.1, label="true box")
        )
    theme.legend(figure, handles=handles, ncols=min(len(handles), 6), handlelength=1.6)


def _rate(value: float, _: object = None) -> str:
    """Write a power of two as a fraction where it is below 1."""
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"
