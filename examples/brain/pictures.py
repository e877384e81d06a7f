"""Three planes of a scan, and of the mean and the spread of its map over posterior draws."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

PLANES = (("axial", "front", "right"), ("coronal", "top", "right"), ("sagittal", "top", "front"))


def three_planes(
    scan: np.ndarray, maps: xr.Dataset, region: np.ndarray | None, spacing: Any, title: str
) -> Figure:
    """Planes through the region, or through the highest voxel of the mean.

    Args:
        scan: Grey levels (depth, row, col).
        maps: ``mean`` and ``sd`` of one case, (channel=1, depth, row, col).
        region: Where the disease is, drawn as an outline; None if it is not known.
        spacing: mm along depth, row and col.
        title: What the case is.
    """
    mean, sd = (maps[name].values[0] for name in ("mean", "sd"))
    if region is None:
        at = np.unravel_index(mean.argmax(), mean.shape)
    else:
        side = region & (np.arange(region.shape[2]) >= region.shape[2] / 2)
        at = tuple(round(place) for place in np.argwhere(side).mean(0))
    figure = Figure(figsize=(8.4, 8.2), layout="constrained")
    axes = figure.subplots(3, 3)
    top = np.abs(mean).max()
    scan = np.where(scan == 0, scan.min(), scan)  # the background of a standardised scan
    rows = (
        ("scan", scan, {"cmap": "gray", "vmin": scan.min(), "vmax": scan.max()}, "grey level"),
        ("mean", mean, {"cmap": "RdBu_r", "vmin": -top, "vmax": top}, "log-odds (nats)"),
        ("sd over draws", sd, {"cmap": "viridis", "vmin": 0, "vmax": sd.max()}, "nats"),
    )
    for line, (name, values, colours, unit) in zip(axes, rows, strict=True):
        for axis, (ax, (plane, up, along)) in enumerate(zip(line, PLANES, strict=True)):
            other = [k for k in range(3) if k != axis]
            aspect = spacing[other[0]] / spacing[other[1]]
            shown = ax.imshow(
                values.take(at[axis], axis), origin="lower", aspect=float(aspect), **colours
            )
            if region is not None and region.take(at[axis], axis).any():
                ax.contour(region.take(at[axis], axis), [0.5], colors="#F0E442", linewidths=1.2)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_xlabel(f"{along} →", fontsize=9)
            ax.set_ylabel(f"{up} →", fontsize=9)
            if name == "scan":
                ax.set_title(plane, fontsize=11)
        figure.colorbar(shown, ax=line, label=f"{name}: {unit}", shrink=0.8)
    figure.suptitle(title, fontsize=11)
    return figure
