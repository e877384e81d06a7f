"""Clusters of attribution maps: how many there are, how they lie, and what is in each."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from ppl_med.analysis.spray import unit_maps
from ppl_med.checks import whole
from ppl_med.plots import theme
from ppl_med.plots.inputs import require_labels, require_variables
from ppl_med.plots.palette import class_colors
from ppl_med.plots.pictures import color_bar, frame, require_images, show_picture

_SOURCE = "ppl_med.analysis.spray.clusters"
_COLUMNS = 6


def eigenvalues(clusters: xr.Dataset) -> Figure:
    """Draw the smallest eigenvalues of the graph Laplacian, and the gap that gives the number.

    Args:
        clusters: As ``ppl_med.analysis.spray.clusters`` returns it.

    Returns:
        One panel: dots are the mean map's, faint lines those of every draw. The shaded gap stands
        between the last eigenvalue that is counted and the next.

    Raises:
        ValueError: A variable is missing.
    """
    require_variables(clusters, "clusters", ("eigenvalue", "num_clusters", "num_pieces"), _SOURCE)
    number, pieces = int(clusters["num_clusters"]), int(clusters["num_pieces"])
    figure, ax = theme.new_panel(5.6, 3.4)
    order, values = clusters["number"].to_numpy(), clusters["eigenvalue"].to_numpy()
    ax.axvspan(number, number + 1, color="#eef1f4", label="gap")
    if "draw_eigenvalue" in clusters:
        for line in clusters["draw_eigenvalue"].to_numpy().reshape(-1, len(order)):
            ax.plot(order, line, color=theme.MUTED, alpha=0.35, linewidth=0.8, label="draw")
    ax.plot(order, values, "o", color=theme.INK, markersize=5, label="mean map")
    ax.set(
        xlabel="Number [count]", ylabel="Eigenvalue [no unit]", ylim=(-0.04 * values.max(), None)
    )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    by = "chosen" if clusters.attrs.get("num_clusters_by") == "argument" else "by the eigengap"
    note = f"{number} clusters {by}; {pieces} at 0: connected pieces of the graph"
    if "draw_num_clusters" in clusters:
        same = float((clusters["draw_num_clusters"] == number).mean())
        note += f"\n{same:.0%} of the draws have the largest gap there too"
    theme.subtitle(ax, note, fontsize=9)
    theme.heading(figure, "Eigenvalues of the neighbour graph of attribution maps")
    return figure


def embedding(clusters: xr.Dataset, label: Sequence[Hashable] | None = None) -> Figure:
    """Scatter the cases in the plane, coloured by cluster.

    Args:
        clusters: As ``ppl_med.analysis.spray.clusters`` returns it.
        label: Chooses the markers, (case,), such as class or scanner; six different ones at most.

    Returns:
        One panel. Cases that stay in their cluster in fewer than 90 % of draws are hollow.

    Raises:
        ValueError: A variable is missing, or the labels do not fit.
    """
    require_variables(clusters, "clusters", ("coordinate", "cluster", "size"), _SOURCE)
    cluster = clusters["cluster"].to_numpy()
    num = len(cluster)
    labels = np.zeros(num) if label is None else require_labels(label, num)
    kinds = np.unique(labels)
    if len(kinds) > len(theme.MARKERS):
        raise ValueError(
            f"label has {len(kinds)} values; {len(theme.MARKERS)} markers are told apart"
        )
    colors = _colors(clusters)
    sure = clusters["membership"].to_numpy() >= 0.9 if "membership" in clusters else None
    figure, ax = theme.new_panel(6.6, 4.4, grid=None)
    for group, color in enumerate(colors):
        for kind, marker in zip(kinds, theme.MARKERS, strict=False):
            own = (cluster == group) & (labels == kind)
            _dots(ax, clusters["coordinate"].to_numpy(), own, sure, color, marker)
    name = "t-SNE" if clusters.attrs.get("embedding") == "tsne" else "spectral coordinate"
    ax.set(xlabel=f"{name} 1 [no unit]", ylabel=f"{name} 2 [no unit]")
    _legend(figure, clusters, colors, kinds if label is not None else None)
    note = "; hollow: in its cluster in fewer than 90 % of draws" if sure is not None else ""
    theme.subtitle(ax, f"one dot per case{note}", fontsize=9)
    theme.heading(figure, "Cases by where the model looked")
    return figure


def contact_sheet(
    images: ArrayLike,
    maps: xr.DataArray | xr.Dataset,
    clusters: xr.Dataset,
    group: int,
    *,
    num: int = 12,
    label: Sequence[Hashable] | None = None,
) -> Figure:
    """Show a cluster's most typical cases, each image above its map, after the cluster's means.

    The most typical cases are those whose maps are most similar to the mean map. All maps are of
    unit length and share one scale.

    Args:
        images: (case, channel, row, col), 1 or 3 channels, in the order of the clustered cases.
        maps: The maps that were clustered.
        clusters: As ``ppl_med.analysis.spray.clusters`` returns it.
        group: Number of the cluster.
        num: Most cases to show.
        label: Shown below the id of a case, (case,).

    Returns:
        Pairs of pictures with the ids of their cases.

    Raises:
        ValueError: Images, maps, labels and clusters do not fit, the maps have a depth, or the
            group is unknown.
    """
    require_variables(clusters, "clusters", ("cluster", "mean_map", "size"), _SOURCE)
    number, num_cases = clusters.sizes["group"], clusters.sizes["case"]
    whole("group", group, 0, number - 1)
    whole("num", num)
    unit = unit_maps(maps, clusters.attrs.get("part", "signed"))
    if unit.ndim != 3:
        raise ValueError(
            "maps have a depth; choose a slice of maps and images with isel(depth=...)"
        )
    mean = clusters["mean_map"].isel(group=group).to_numpy()
    if unit.shape != (num_cases, *mean.shape):
        raise ValueError(
            f"maps have sizes {dict(unit.sizes)}, the clusters {num_cases} cases of {mean.shape}; "
            "give the maps that were clustered"
        )
    pictures = require_images(images, num_cases)
    labels = None if label is None else require_labels(label, num_cases)
    own = np.flatnonzero(clusters["cluster"].to_numpy() == group)
    alike = (unit.to_numpy()[own] * mean).sum((1, 2))
    chosen = own[np.argsort(-alike, kind="stable")[:num]]
    names = [theme.plain(case, 18) for case in clusters["case"].to_numpy()[chosen]]
    if labels is not None:
        names = [
            f"{name}\n{theme.plain(labels[i], 18)}" for name, i in zip(names, chosen, strict=True)
        ]
    shown = np.stack([pictures[own].mean(0), *pictures[chosen]])
    heat = np.stack([mean, *unit.to_numpy()[chosen]])
    return _sheet(shown, heat, ["mean of all", *names], _told(clusters, group))


def _sheet(
    pictures: NDArray[np.float64], maps: NDArray[np.float64], names: list[str], title: str
) -> Figure:
    lines = -(-len(maps) // _COLUMNS)
    height = maps.shape[1] / maps.shape[2]
    size = (1.25 * _COLUMNS + 0.9, lines * (2.4 * height + 0.36) + 0.45)
    figure = theme.new_figure(*size, h_pad=0.02, hspace=0.0)
    axes = figure.subplots(2 * lines, _COLUMNS, squeeze=False)
    top = float(np.quantile(np.abs(maps), 0.998)) or 1.0
    frame(axes.flat)
    for ax in axes.flat:
        ax.set_visible(False)
    for place, (picture, heat, name) in enumerate(zip(pictures, maps, names, strict=True)):
        line, column = divmod(place, _COLUMNS)
        above, below = axes[2 * line, column], axes[2 * line + 1, column]
        above.set_visible(True), below.set_visible(True)
        show_picture(above, picture)
        weight = "bold" if place == 0 else "normal"
        above.set_title(name, fontsize=7.4, color=theme.INK, weight=weight, pad=3)
        shown = below.imshow(heat, cmap=theme.SIGNED_MAP, vmin=-top, vmax=top)
    color_bar(figure, shown, "attribution, unit length [no unit]", 8, ax=axes,
              shrink=min(1.0, 0.9 / lines), aspect=18, extend="both")  # fmt: skip
    theme.heading(figure, title)
    return figure


def _told(clusters: xr.Dataset, group: int) -> str:
    one = clusters.isel(group=group)
    cases = int(one["size"])
    told = [f"Cluster {group}: {cases} case" + "s" * (cases != 1)]
    if "purity" in one:
        most = theme.plain(one["class"].to_numpy()[int(one["class_count"].to_numpy().argmax())], 18)
        told.append(f"{float(one['purity']):.0%} {most} (p = {float(one['enrichment_p']):.2g})")
    if "stability" in one:
        told.append(f"stability {float(one['stability']):.2f}")
    return " · ".join(told)


def _colors(clusters: xr.Dataset) -> list[str]:
    return class_colors([f"cluster {group}" for group in range(clusters.sizes["group"])])


def _dots(
    ax: Axes,
    place: NDArray[np.float64],
    own: NDArray[np.bool_],
    sure: NDArray[np.bool_] | None,
    color: str,
    marker: str,
) -> None:
    for filled in (True, False):
        here = own & (filled if sure is None else sure == filled)
        if here.any():
            ax.scatter(
                place[here, 0], place[here, 1], s=26, marker=marker, linewidths=0.9,
                facecolors=color if filled else "white", edgecolors="white" if filled else color,
            )  # fmt: skip


def _legend(figure: Figure, clusters: xr.Dataset, colors: list[str], kinds: NDArray | None) -> None:
    style: dict[str, Any] = {"linestyle": "", "markersize": 6}
    handles = [
        Line2D([], [], marker="o", color=color, label=_told(clusters, group), **style)
        for group, color in enumerate(colors)
    ]
    for kind, marker in zip([] if kinds is None else kinds, theme.MARKERS, strict=False):
        handles.append(
            Line2D([], [], marker=marker, color=theme.MUTED, label=theme.plain(kind, 24), **style)
        )
    theme.legend(figure, "outside lower left", handles=handles, fontsize=8.5)
