"""Predicted numbers with their intervals: against the observed ones, or in order."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ppl_med.checks import reject
from ppl_med.plots import theme

_MOST = 400


def predicted_numbers(
    median: ArrayLike,
    lower: ArrayLike,
    upper: ArrayLike,
    observed: ArrayLike | None = None,
    *,
    level: float = 0.9,
    unit: str = "",
) -> Figure:
    """Draw the interval of every case, over the observed number where there is one.

    Args:
        median: Of the predicted distribution (case,).
        lower: Lower end of its interval (case,).
        upper: Upper end (case,).
        observed: What was observed (case,), NaN where nothing was; None draws the cases in the
            order of their medians.
        level: Probability of the interval, for the label.
        unit: Of the numbers.

    Returns:
        One panel; an interval that meets the diagonal holds what was observed.

    Raises:
        ValueError: Arrays of different shapes, or no case.
    """
    arrays = [np.asarray(one, np.float64) for one in (median, lower, upper)]
    truth = None if observed is None else np.asarray(observed, np.float64)
    shapes = {one.shape for one in (*arrays, *(() if truth is None else (truth,)))}
    if len(shapes) > 1 or arrays[0].ndim != 1 or not arrays[0].size:
        reject("median", "one number per case, as lower, upper and observed", sorted(shapes))
    figure, ax = theme.new_panel(6.2, 5.4, grid="both")
    label = f" [{unit}]" if unit else ""
    kept = np.arange(len(arrays[0])) if truth is None else np.flatnonzero(np.isfinite(truth))
    order = arrays[0] if truth is None else truth
    kept = theme.evenly(kept[np.argsort(order[kept], kind="stable")], _MOST)
    middle, low, high = (one[kept] for one in arrays)
    place = np.arange(len(kept)) if truth is None else truth[kept]
    inside = np.ones(len(kept), bool) if truth is None else (low <= place) & (place <= high)
    text = f"{100 * level:.3g} % interval"
    for chosen, color, name in (
        (inside, theme.MUTED, text),
        (~inside, theme.MISS, f"{text} missed"),
    ):
        if chosen.any():
            ax.vlines(
                place[chosen], low[chosen], high[chosen], color=color, linewidth=1.3, label=name
            )
    ax.plot(place, middle, "o", color=theme.INK, markersize=3.2, label="median")
    if truth is None:
        ax.set_xlabel(f"Case, sorted by median ({len(kept)} shown)")
        ax.set_ylabel(f"Predicted{label}")
    else:
        if len(place):
            ends = [min(place.min(), low.min()), max(place.max(), high.max())]
            ax.plot([place.min(), place.max()], [place.min(), place.max()], color=theme.MUTED,
                    linewidth=1, linestyle=theme.DASHED, zorder=1)  # fmt: skip
            ax.set_ylim(ends[0] - 0.03 * (ends[1] - ends[0]), ends[1] + 0.03 * (ends[1] - ends[0]))
            theme.remark(ax, f"{100 * inside.mean():.0f} % of {len(place)} inside")
        ax.set_xlabel(f"Observed{label}")
        ax.set_ylabel(f"Predicted{label}")
    theme.legend(figure, ncols=3)
    theme.heading(figure, "Predicted numbers")
    return figure
