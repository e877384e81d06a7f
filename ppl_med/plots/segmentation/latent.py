"""What the latent code means: masks over two of its dimensions, and where the draws lie."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ppl_med.analysis.tree import find_group
from ppl_med.plots import theme
from ppl_med.plots.inputs import case_positions, require_dims
from ppl_med.plots.palette import SAMPLE, class_colors, class_legend, overlaid, painted
from ppl_med.plots.pictures import color_bar, require_images

_GAP = 2  # pixels between masks
_UNKNOWN = "#b8c1cc"  # of points without a value


def latent_plane(
    decoded: xr.DataArray,
    classes: Sequence[str],
    image: ArrayLike | None = None,
    *,
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Tile the masks that a grid of latent codes decodes to, as Kohl et al. (2018) show them.

    Args:
        decoded: Class ids (second, first, row, col), with the codes as coordinates ``first`` and
            ``second``, in standard deviations of the prior from its mean; ``long_name`` in their
            attributes labels the axes.
        classes: Class names, the background first.
        image: (channel, row, col), drawn under the masks where there are two classes.
        colors: Colours by class name.

    Returns:
        One panel: ``first`` runs to the right and ``second`` upwards.

    Raises:
        ValueError: ``decoded`` lacks a dimension or coordinate, or the image does not fit.
    """
    decoded = require_dims(decoded, "decoded", ("second", "first", "row", "col"))
    missing = [name for name in ("first", "second") if name not in decoded.coords]
    if missing:
        raise ValueError(f"decoded has no coordinate {missing}; assign the codes of the grid")
    tones = class_colors(classes, colors)
    decoded = decoded.sortby("first").sortby("second", ascending=False)
    masks = decoded.to_numpy()
    rows, cols = masks.shape[2:]
    picture = _picture(image, (rows, cols))
    mosaic = np.ones((masks.shape[0] * (rows + _GAP), masks.shape[1] * (cols + _GAP), 3))
    for down, across in np.ndindex(*masks.shape[:2]):
        tile = masks[down, across]
        binary = len(classes) == 2 and picture is not None
        shown = overlaid(picture, tile, SAMPLE, 0.6) if binary else painted(tile, tones)  # type: ignore[arg-type]
        top, left = down * (rows + _GAP), across * (cols + _GAP)
        mosaic[top : top + rows, left : left + cols] = shown
    width = 6.2
    below = 0.2 * -(-len(classes) // 4) + 0.2 if len(classes) > 2 else 0.0
    height = (width - 0.6) * mosaic.shape[0] / mosaic.shape[1] + 0.95 + below
    figure = theme.new_figure(width, height)
    ax = figure.subplots()
    ax.imshow(mosaic, interpolation="nearest")
    _ticks(ax, decoded, rows, cols)
    theme.heading(figure, "Masks over the latent plane")
    if len(classes) > 2:
        class_legend(figure, classes, tones)
    return figure


def latent_draws(
    tree: xr.DataTree,
    values: xr.DataArray,
    case: Hashable | Sequence[Hashable] | None = None,
    *,
    latent: tuple[int, int] = (0, 1),
    site: str = "z",
) -> Figure:
    """Scatter the latent codes of the draws, coloured by a figure or by a group.

    Args:
        tree: The tree of ``predict``, with ``posterior/z`` (chain, draw, case, latent).
        values: Dims (chain, draw, case): numbers, such as areas, or text, such as names of modes;
            its name and the attribute ``units`` label the colours.
        case: Ids of the cases to show, one panel per case; the first four by default.
        latent: Which two dimensions of the code.
        site: Name of the code in the tree.

    Returns:
        One panel per case, all on the same axes.

    Raises:
        ValueError: The tree has no such code, a dimension is missing or unknown.
    """
    found = find_group(tree, "posterior")
    if site not in found or set(found[site].dims) != {"chain", "draw", "case", "latent"}:
        raise ValueError(
            f"tree has no posterior/{site} with dimensions (chain, draw, case, latent); it holds "
            f"{sorted(map(str, found))}"
        )
    code = found[site].transpose("case", "chain", "draw", "latent")
    if not all(0 <= k < code.sizes["latent"] for k in latent):
        raise ValueError(f"latent is {latent}; the code has {code.sizes['latent']} dimensions")
    values = require_dims(values, "values", ("case", "chain", "draw"))
    if values.shape != code.shape[:3]:
        raise ValueError(f"values has sizes {dict(values.sizes)}; the code {dict(code.sizes)}")
    chosen = case_positions(code, case)
    figure, axes = theme.grid_of_panels(len(chosen), 2, 3.6, 3.1, margins=(1.0, 0.8))
    for ax, index in zip(axes, chosen, strict=True):
        points = code.isel(case=index).to_numpy().reshape(-1, code.sizes["latent"])[:, latent]
        theme.subtitle(ax, theme.plain(code["case"].values[index], 30))
        _scatter(ax, points, values[index].to_numpy().reshape(-1), values[chosen].to_numpy())
        theme.clean(ax, grid="both")
    theme.label_outer(axes, *(f"{site}{number + 1} [no unit]" for number in latent))
    _key(figure, axes, values)
    theme.heading(figure, f"Latent codes of {code.sizes['chain'] * code.sizes['draw']} draws")
    return figure


def _picture(image: ArrayLike | None, size: tuple[int, int]) -> NDArray[np.float64] | None:
    if image is None:
        return None
    picture = require_images(np.asarray(image)[None], 1, "image")[0]
    if picture.shape[:2] != size:
        raise ValueError(f"image is {picture.shape[:2]}, the masks are {size}; pass the same case")
    return picture


def _ticks(ax: Axes, decoded: xr.DataArray, rows: int, cols: int) -> None:
    for name, size, axis in (("first", cols, ax.xaxis), ("second", rows, ax.yaxis)):
        place = np.arange(decoded.sizes[name]) * (size + _GAP) + size / 2
        axis.set_ticks(place, labels=[f"{value:g}" for value in decoded[name].values])
        label = decoded[name].attrs.get("long_name", "z1" if name == "first" else "z2")
        axis.set_label_text(
            f"{theme.plain(label)} [sd of the prior]", color=theme.INK, fontsize=9.5
        )
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelsize=9, labelcolor=theme.INK)


def _scatter(ax: Axes, points: NDArray, values: NDArray, every: NDArray) -> None:
    style: dict[str, Any] = {"s": 34, "edgecolors": "white", "linewidths": 0.5}
    if values.dtype.kind in "iuf":
        known = every[np.isfinite(every)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        high = high if high > low else low + 1  # equal values get one colour in every panel
        shades = colormaps["viridis"].with_extremes(bad=_UNKNOWN)
        ax.scatter(
            points[:, 0], points[:, 1], c=np.ma.masked_invalid(values), cmap=shades, vmin=low,
            vmax=high, plotnonfinite=True, **style,
        )  # fmt: skip
        return
    for index, name in enumerate(np.unique(every)):
        here = values == name
        color, marker = (
            theme.SERIES[index % len(theme.SERIES)],
            theme.MARKERS[(index // 6 + index) % len(theme.MARKERS)],
        )
        ax.scatter(
            *points[here].T, color=color, marker=marker, label=theme.plain(name, 24), **style
        )


def _key(figure: Figure, axes: list[Axes], values: xr.DataArray) -> None:
    name = theme.plain(values.name or "value")
    if values.dtype.kind in "iuf":
        label = f"{name} [{theme.unit_of(values, 'no unit')}]"
        grid = [ax for ax in figure.axes if ax.get_subplotspec()]
        color_bar(figure, axes[0].collections[0], label, 9.5, ax=grid, shrink=0.7, aspect=24,
                  pad=0.02)  # fmt: skip
        return
    found: dict[str, Any] = {}
    for ax in axes:
        found |= dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
    theme.legend(figure, "outside right upper", handles=list(found.values()), labels=list(found),
                 title=name)  # fmt: skip
