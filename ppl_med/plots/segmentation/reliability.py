"""Reliability of pixels: of those with a probability of 30 %, did 30 % of the graders mark them?"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ppl_med.plots import theme
from ppl_med.plots.inputs import require_variables

_NEEDED = ("probability", "fraction", "fraction_se", "count", "ece")


def pixel_reliability(dataset: xr.Dataset) -> Figure:
    """Draw the share of graders that marked a pixel against its predicted probability.

    Args:
        dataset: As ``ppl_med.analysis.segmentation.pixel_reliability`` returns it.

    Returns:
        One square panel; bars are 95 % intervals over cases.

    Raises:
        TypeError, ValueError: A variable is missing.
    """
    source = "ppl_med.analysis.segmentation.pixel_reliability"
    require_variables(dataset, "dataset", _NEEDED, source)
    used = dataset.isel(bin=np.flatnonzero(dataset["count"].to_numpy()))
    figure, ax = theme.new_panel(5.4, 5.7, grid="both")
    theme.diagonal(ax)
    half = 1.96 * np.nan_to_num(used["fraction_se"].to_numpy())
    ax.errorbar(used["probability"], used["fraction"], yerr=half, markersize=6, linewidth=1.2,
                elinewidth=1.6, **theme.series(0))  # fmt: skip
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    ax.set_xlabel("Predicted probability of the structure [probability]")
    ax.set_ylabel("Share of graders who marked it [proportion]")
    pixels = int(dataset["count"].sum())
    theme.subtitle(ax, f"mean distance {float(dataset['ece']):.4f}, {pixels:,} pixels")
    theme.heading(figure, "Reliability of pixels")
    return figure
