"""The table and the picture of the study."""

from pathlib import Path

import numpy as np
import xarray as xr
from active_curves.comparison import interval, shown

from ppl_med.plots import theme
from ppl_med.storage import markdown_table

COLUMNS = {
    "between_raters": "between raters",
    "true_raters": "the same, true",
    "between_weights": "between weights",
    "squared_error": "squared error of the mean",
    "regression": "regression on the contrast",
    "of_outlines": "masks of either size",
}
PARTS = ("between_raters", "between_weights")


def table(scores: xr.Dataset) -> str:
    """Means over images and seeds, then differences of the parts, both with 95 % t-intervals.

    Args:
        scores: Of `scores.score`, over (guide, images, seed, case).
    """
    means = scores.mean("case")
    lines = []
    for guide in means["guide"].values:
        for number in means["images"].values:
            one = means.sel(guide=guide, images=number)
            cells = [_cell(one[name], 2 if name == "of_outlines" else 1) for name in COLUMNS]
            lines.append([str(guide), str(number), *cells])
    text = markdown_table(["guide", "images", *COLUMNS.values()], lines)
    most = means["images"].values.max()
    lines = []
    for guide in means["guide"].values[:-1]:  # but the baseline
        for number in means["images"].values[:-1]:
            fewer, all_of_them = (means.sel(guide=guide, images=n) for n in (number, most))
            cells = [_cell(fewer[name] - all_of_them[name], 1) for name in PARTS]
            share = (
                fewer[PARTS[1]] / fewer[PARTS[0]] - all_of_them[PARTS[1]] / all_of_them[PARTS[0]]
            )
            lines.append([str(guide), f"{number} less {most}", *cells, _cell(100 * share, 1)])
    head = ["guide", "images", *(COLUMNS[name] for name in PARTS), "share of raters' part, points"]
    return text + "\n\n" + markdown_table(head, lines)


def _cell(values: xr.DataArray, digits: int) -> str:
    """Mean over seeds with its interval; nothing where there is no figure."""
    mean, half = interval(values)
    return "" if np.isnan(float(mean)) else shown(mean, half, digits)


def draw_parts(scores: xr.Dataset, path: Path) -> None:
    """Draw both parts of the variance against the number of training images.

    Args:
        scores: Of `scores.score`, over (guide, images, seed, case).
        path: File to write.
    """
    means = scores.mean("case")
    numbers = means["images"].values
    guides = [str(name) for name in means["guide"].values[:-1]]
    figure = theme.new_figure(7.2, 3.4)
    panels = figure.subplots(1, 2)
    colors = (theme.ALEATORIC, theme.EPISTEMIC)
    for ax, name, color in zip(panels, PARTS, colors, strict=True):
        theme.clean(ax)
        for place, guide in enumerate(guides):
            middle, half = interval(means[name].sel(guide=guide))
            shifted = numbers * 1.06**place
            style = {"color": color, "marker": theme.MARKERS[place], "capsize": 3}
            ax.errorbar(
                shifted, middle, np.nan_to_num(half), label=guide.replace("_", " "), **style
            )
        ax.set_xscale("log", base=2)
        ax.set_xticks(numbers, [str(n) for n in numbers])
        ax.set_xlabel("training images")
        theme.subtitle(ax, COLUMNS[name])
    panels[0].set_ylabel("variance of the area, pixels²")
    truth = float(means["true_raters"].mean())
    panels[0].axhline(truth, color=theme.INK, linestyle=theme.DASHED, label="truth")
    error, least = (
        interval(means[name].sel(guide=guides[0]))[0] for name in ("squared_error", "regression")
    )
    panels[1].plot(
        numbers, error, color=theme.MUTED, marker="x", label=f"squared error of {guides[0]}'s mean"
    )
    panels[1].plot(
        numbers,
        least,
        color=theme.INK,
        linestyle=theme.DASHED,
        label="regression that is told the contrast",
    )
    for ax in panels:
        ax.set_ylim(0)
        theme.legend(ax, "best")
    figure.savefig(path, dpi=100)
