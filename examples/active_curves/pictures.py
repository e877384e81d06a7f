"""Curves over the number of labels, with bands over seeds."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import xarray as xr

from active_curves.comparison import interval

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")


def draw_curves(
    path: Path, result: xr.Dataset, panels: Mapping[str, xr.DataArray], title: str
) -> None:
    """One panel for every figure: the mean over seeds, its 95 % interval as a band.

    Args:
        path: PNG to write.
        result: Runs (rule, seed, step), for the number of labels.
        panels: Label of the axis -> values (rule, seed, step).
        title: Above all panels.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 3.9), layout="constrained", squeeze=False
    )
    labels = result["num_labelled"].values.ravel()[-result.sizes["step"] :]
    for ax, (name, values) in zip(axes[0], panels.items(), strict=True):
        for colour, rule in zip(COLOURS, values["rule"].values.tolist(), strict=False):
            mean, half = interval(values.sel(rule=rule))
            style = "--" if rule.startswith("point") else "-"
            width = 2.6 if rule.endswith("random") else 1.6
            ax.plot(labels, mean, style, color=colour, lw=width, label=rule.replace("_", " "))
            ax.fill_between(labels, mean - half, mean + half, color=colour, alpha=0.10, lw=0)
        ax.set(xlabel="labels bought", ylabel=name)
        ax.spines[["top", "right"]].set_visible(False)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=90)
    plt.close(figure)
