"""One look for every figure: the colours and what they mean, and axes drawn the same way.

The palette is Okabe and Ito's, which colour-blind readers can tell apart ("Color Universal Design",
2008). Orange and blue are kept for the two kinds of uncertainty and used for nothing else.
"""

from collections.abc import Hashable, Iterable
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import ArrayLike, NDArray

ALEATORIC = "#E69F00"
EPISTEMIC = "#0072B2"
INK = "#1f2933"
MUTED = "#66707c"
GRID = "#e4e7eb"
BAND = "#d5d9de"
HIT, MISS = "#009E73", "#D55E00"
SERIES = ("#1f2933", "#009E73", "#CC79A7", "#D55E00", "#8c6bb1", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
SIGNED_MAP = "PRGn"
DASHED = (0, (4, 3))


def new_figure(width: float, height: float, *, constrained: bool = True, **padding: Any) -> Figure:
    """Make an empty white figure that belongs to no window.

    Args:
        width: Inches.
        height: Inches.
        constrained: Let matplotlib place the axes; False when the caller places them.
        padding: Around and between axes that matplotlib places: ``w_pad`` and ``h_pad`` in inches,
            ``wspace`` and ``hspace`` as fractions of the axes.
    """
    layout = ConstrainedLayoutEngine(**padding) if constrained else None
    return Figure(figsize=(width, height), facecolor="white", layout=layout)


def new_panel(
    width: float, height: float, grid: Literal["both", "x", "y"] | None = "y"
) -> tuple[Figure, Axes]:
    """Make a figure of one clean panel; sizes in inches."""
    figure = new_figure(width, height)
    ax = figure.subplots()
    clean(ax, grid=grid)
    return figure, ax


def grid_of_panels(
    count: int, across: int, width: float, height: float, margins: tuple[float, float]
) -> tuple[Figure, list[Axes]]:
    """Make a figure of equal panels on shared axes; spare places stay empty.

    Args:
        count: Panels.
        across: Most panels in a row.
        width: Of a panel, in inches.
        height: Of a panel, in inches.
        margins: Added to the width and the height of the figure, in inches.

    Returns:
        The figure and its panels, row by row.
    """
    across = min(across, count)
    down = -(-count // across)
    figure = new_figure(width * across + margins[0], height * down + margins[1])
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for ax in axes[count:]:
        ax.set_visible(False)
    return figure, axes[:count]


def label_outer(axes: list[Axes], x: str, y: str) -> None:
    """Label the left and the lowest panels of a grid."""
    grid = axes[0].get_gridspec()
    across = grid.ncols if grid is not None else 1
    for index, ax in enumerate(axes):
        if index % across == 0:
            ax.set_ylabel(y)
        if index + across >= len(axes):
            ax.set_xlabel(x)
            ax.tick_params(labelbottom=True)


def clean(ax: Axes, *, grid: Literal["both", "x", "y"] | None = "y") -> None:
    """Leave only what carries information: two thin spines and a light grid behind the data.

    Args:
        ax: The axes to restyle.
        grid: Which grid lines to keep.
    """
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(MUTED)
    ax.tick_params(colors=MUTED, labelcolor=INK, labelsize=9, length=3)
    ax.xaxis.label.set(color=INK, size=9.5)
    ax.yaxis.label.set(color=INK, size=9.5)
    ax.set_axisbelow(True)
    if grid is not None:
        ax.grid(True, axis=grid, color=GRID, linewidth=0.8)


def heading(figure: Figure, title: str, *, y: float | None = None) -> None:
    """Put a left-aligned title above all axes.

    Args:
        figure: The figure to title.
        title: One line; names the quantity.
        y: Height in figure fractions; None leaves it to the layout.
    """
    place = {} if y is None else {"y": y, "va": "top"}
    figure.suptitle(
        plain(title), x=0.012, ha="left", fontsize=12, weight="bold", color=INK, **place
    )


def subtitle(ax: Axes, text: str, **style: Any) -> None:
    """Put a line above the left end of a panel: its name, or what it amounts to."""
    ax.set_title(text, **{"fontsize": 9.5, "color": INK, "loc": "left", **style})


def remark(ax: Axes, text: str, **style: Any) -> None:
    """Put a muted line above the right end of a panel."""
    ax.set_title(text, **{"fontsize": 8.5, "color": MUTED, "loc": "right", "pad": 4, **style})


def legend(owner: Figure | Axes, loc: str = "outside lower center", **style: Any) -> None:
    """Add a legend without a frame, by default below all axes of a figure."""
    owner.legend(loc=loc, **{"frameon": False, "fontsize": 9, "labelcolor": INK, **style})


def write(owner: Figure | Axes, x: float, y: float, text: str, size: float, **style: Any) -> None:
    """Write text into a panel or a figure."""
    owner.text(x, y, text, **{"fontsize": size, "color": INK, "va": "top", **style})


def series(index: int) -> dict[str, Any]:
    """Colour and marker of one of several lines."""
    return {"color": SERIES[index % len(SERIES)], "marker": MARKERS[index % len(MARKERS)]}


def diagonal(ax: Axes, top: float = 1.0) -> None:
    """Draw the dashed line on which both axes agree, from 0 to ``top``."""
    ax.plot([0, top], [0, top], color=MUTED, linewidth=1, linestyle=DASHED, zorder=1.5,
            label="_diagonal")  # fmt: skip


def bars_to(middle: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> NDArray[np.float64]:
    """Lengths (2, ...) of error bars that end at ``lower`` and ``upper``, 0 or more."""
    middle = np.asarray(middle, np.float64)
    return np.stack([middle - np.asarray(lower), np.asarray(upper) - middle]).clip(0)


def percent(value: float, _: object = None) -> str:
    """Write a proportion in percent, for an axis."""
    return f"{100 * value:.3g} %"


def plain(value: Hashable, width: int | None = None) -> str:
    r"""Write a caller's name so that matplotlib shows it as it is.

    Dollar signs would start a formula, so they are escaped.

    Args:
        value: A case id, class name or title.
        width: Most characters to show; of longer text the middle is left out, since names of
            cases often begin alike. None shows all.
    """
    text = str(value)
    if width is not None and len(text) > width:
        end = width // 2
        text = f"{text[: width - 1 - end].rstrip()}…{text[-end:].lstrip()}"
    return text.replace("$", r"\$")


def unit_of(array: Any, otherwise: str, width: int | None = None) -> str:
    """Write the unit of an array, powers raised; ``otherwise`` where it has none."""
    unit = plain(array.attrs.get("units", otherwise), width)
    return unit.replace("^2", "²").replace("^3", "³")


def evenly(order: NDArray[np.intp], num: int) -> NDArray[np.intp]:
    """Choose at most ``num`` entries at even steps, the first and the last among them."""
    if len(order) <= num:
        return order
    return order[np.linspace(0, len(order) - 1, num).round().astype(int)]


def longest(values: Iterable[ArrayLike]) -> float:
    """The largest finite value of several arrays."""
    return max(float(np.nanmax(np.asarray(one, np.float64))) for one in values)
