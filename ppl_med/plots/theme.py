"""One look for every figure: the colours and what they mean, and axes drawn the same way.

The palette is Okabe and Ito's, which colour-blind readers can tell apart ("Color Universal Design",
2008). Orange and blue are kept for the two kinds of uncertainty and used for nothing else.
"""

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

ALEATORIC = "#E69F00"
EPISTEMIC = "#0072B2"
INK = "#1f2933"
MUTED = "#66707c"
GRID = "#e4e7eb"
SERIES = ("#1f2933", "#009E73", "#CC79A7", "#D55E00", "#8c6bb1", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
SIGNED_MAP = "PRGn"


def new_figure(width: float, height: float, *, constrained: bool = True, **padding: Any) -> Figure:
    """Make an empty white figure that belongs to no window.

    Args:
        width: Inches.
        height: Inches.
        constrained: Let matplotlib place the axes; False when the caller places them.
        padding: Around and between axes that matplotlib places: ``w_pad`` and ``h_pad`` in inches,
            ``wspace`` and ``hspace`` in shares of the axes.

    Returns:
        The figure.
    """
    layout = ConstrainedLayoutEngine(**padding) if constrained else None
    return Figure(figsize=(width, height), facecolor="white", layout=layout)


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


def plain(value: Hashable, width: int | None = None) -> str:
    r"""Write a caller's name so that matplotlib shows it as it is.

    Dollar signs would start a formula, so they are escaped.

    Args:
        value: A case id, class name or title.
        width: Most characters to show; longer text ends in an ellipsis. None shows all.

    Returns:
        Text for a matplotlib artist.
    """
    text = str(value)
    if width is not None and len(text) > width:
        text = text[: width - 1].rstrip() + "…"
    return text.replace("$", r"\$")


def robust_limits(
    values: Sequence[NDArray[np.float64]], *, skip: float = 0.1, squash: float = 3.0
) -> tuple[float, float]:
    """Choose y-limits that the first steps of training cannot stretch.

    The whole range is shown unless it is more than ``squash`` times the range after the first
    ``skip`` of each curve; then the later range is shown.

    Args:
        values: Curves, each (step); non-finite values are ignored.
        skip: Fraction of each curve that may be cut off.
        squash: How much larger the whole range must be before anything is cut off.

    Returns:
        Lower and upper limit with a margin of 6 %.
    """
    whole = np.concatenate([v[np.isfinite(v)] for v in values])
    tails = [v[int(np.ceil(skip * len(v))) :] if len(v) > 1 else v for v in values]
    tail = np.concatenate([v[np.isfinite(v)] for v in tails])
    if not whole.size:
        return 0.0, 1.0
    kept = tail if tail.size and np.ptp(whole) > squash * np.ptp(tail) > 0 else whole
    low, high = float(kept.min()), float(kept.max())
    margin = 0.06 * (high - low) or 0.06 * max(abs(high), 1.0)
    return low - margin, high + margin
