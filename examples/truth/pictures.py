"""The heat map of the study: guides times problems."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

PANELS = (
    ("sd_ratio", "predictive sd / NUTS's", "RdBu_r", (-2.0, 2.0)),
    ("mean_error", "error of the mean, in posterior sd", "Greys", (0.0, 1.5)),
)


def heat_map(scores: xr.Dataset, path: Path) -> None:
    """Write the picture of mean scores over seeds.

    Args:
        scores: Scores with dims (problem, guide).
        path: File to write.
    """
    guides, problems = scores["guide"].values, scores["problem"].values
    size = (8.4, 0.9 + 0.36 * len(guides))
    figure, axes = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    for axis, (name, title, colours, limits) in zip(axes, PANELS, strict=True):
        values = scores[name].transpose("guide", "problem").values
        shown = np.log2(np.clip(values, 0.25, 4)) if name == "sd_ratio" else values
        axis.imshow(shown, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
        axis.set_xticks(range(len(problems)), problems)
        axis.set_yticks(range(len(guides)), guides)
        axis.set_title(title, fontsize=11)
        axis.tick_params(labelsize=11, length=0)
        for row, column in np.ndindex(values.shape):
            value = values[row, column]
            dark = abs(shown[row, column]) > 0.7 * limits[1]
            near = name == "sd_ratio" and abs(value - 1) <= 0.1
            axis.text(
                column,
                row,
                "" if np.isnan(value) else f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=11,
                weight="bold" if near else "normal",
                color="white" if dark else "black",
            )
    figure.savefig(path, dpi=110)
    plt.close(figure)
