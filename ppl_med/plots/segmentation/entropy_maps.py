"""Where a segmentation is uncertain, and whether the draws agree on that."""

from collections.abc import Hashable, Sequence

import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ppl_med.plots.inputs import case_positions, require_variables
from ppl_med.plots.pictures import color_bar_below, frame, require_images, show_picture
from ppl_med.plots.theme import INK, heading, new_figure, plain

_PANELS = {
    "predictive_entropy": ("all uncertainty", "Greys"),
    "expected_entropy": ("inside each draw", "Oranges"),
    "mutual_information": ("between the draws", "Blues"),
}
_SIDE = 1.7  # inches of a panel


def uncertainty_maps(
    maps: xr.Dataset,
    images: ArrayLike,
    case: Hashable | Sequence[Hashable] | None = None,
) -> Figure:
    """Draw the entropy of every pixel and its two parts, in nats, on one scale.

    The entropy of the mean probabilities is the sum of the mean entropy of single draws (each draw
    is unsure of the pixel) and the mutual information (draws are sure, but disagree).

    Args:
        maps: As ``ppl_med.analysis.segmentation.maps`` returns it.
        images: (case, channel, row, col), 1 or 3 channels, any intensity unit; the cases of
            ``maps`` in their order.
        case: Ids of the cases to show; the first four by default.

    Returns:
        One row of panels per case.

    Raises:
        ValueError: A map is missing, maps of volumes, unknown cases, or images that do not fit.
    """
    require_variables(maps, "maps", _PANELS, "ppl_med.analysis.segmentation.maps")
    first = maps["predictive_entropy"]
    if set(first.dims) != {"case", "row", "col"}:
        raise ValueError(f"maps has dimensions {first.dims}; choose a slice of volumes first")
    pictures = require_images(images, maps.sizes["case"])
    chosen = case_positions(first, case)
    aspect = pictures.shape[1] / pictures.shape[2]
    figure = new_figure(4 * _SIDE + 1.2, len(chosen) * _SIDE * aspect + 0.9)
    axes = figure.subplots(len(chosen), 4, squeeze=False, gridspec_kw={"hspace": 0.02})
    top = float(first.isel(case=chosen).max()) or 1.0
    for row, index in enumerate(chosen):
        show_picture(axes[row, 0], pictures[index])
        axes[row, 0].set_ylabel(plain(first["case"].values[index], 20), fontsize=8.5, color=INK)
        for ax, (name, (_, cmap)) in zip(axes[row, 1:], _PANELS.items(), strict=True):
            values = maps[name].transpose("case", "row", "col")[index].to_numpy()
            ax.imshow(values, cmap=cmap, vmin=0, vmax=top, interpolation="nearest")
    frame(axes.flat)
    for ax, title in zip(axes[0], ("image", *(t for t, _ in _PANELS.values())), strict=True):
        ax.set_title(title, fontsize=9.5, color=INK, pad=4)
    for column in axes.T[1:]:
        color_bar_below(figure, column, "nats")
    heading(figure, "Entropy per pixel")
    return figure
