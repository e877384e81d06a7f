"""Where a segmentation is uncertain, and whether the draws agree on that."""

from collections.abc import Hashable, Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ppl_med.plots.checks import require_images, require_variables
from ppl_med.plots.segmentation_samples import positions
from ppl_med.plots.theme import INK, MUTED, heading, new_figure, plain

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
        One row of panels a case.

    Raises:
        ValueError: A map is missing, maps of volumes, unknown cases, or images that do not fit.
    """
    require_variables(maps, "maps", _PANELS, "ppl_med.analysis.segmentation.maps")
    first = maps["predictive_entropy"]
    if set(first.dims) != {"case", "row", "col"}:
        raise ValueError(f"maps has dimensions {first.dims}; choose a slice of volumes first")
    pictures = require_images(images, maps.sizes["case"])
    chosen = positions(first, case)
    aspect = pictures.shape[1] / pictures.shape[2]
    figure = new_figure(4 * _SIDE + 1.2, len(chosen) * _SIDE * aspect + 0.9)
    axes = figure.subplots(len(chosen), 4, squeeze=False, gridspec_kw={"hspace": 0.02})
    top = float(first.isel(case=chosen).max()) or 1.0
    for row, index in enumerate(chosen):
        grey = pictures.shape[-1] == 1
        picture = pictures[index, ..., 0] if grey else pictures[index]
        axes[row, 0].imshow(picture, cmap="gray", vmin=0, vmax=1)
        axes[row, 0].set_ylabel(plain(first["case"].values[index], 20), fontsize=8.5, color=INK)
        for ax, (name, (_, cmap)) in zip(axes[row, 1:], _PANELS.items(), strict=True):
            values = maps[name].transpose("case", "row", "col")[index].to_numpy()
            ax.imshow(values, cmap=cmap, vmin=0, vmax=top, interpolation="nearest")
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(color=MUTED, linewidth=0.5)
    for ax, title in zip(axes[0], ("image", *(t for t, _ in _PANELS.values())), strict=True):
        ax.set_title(title, fontsize=9.5, color=INK, pad=4)
    _bars(figure, axes, top)
    heading(figure, "Entropy per pixel")
    return figure


def _bars(figure: Figure, axes: np.ndarray, top: float) -> None:
    """One colour bar a column of maps."""
    for column in (1, 2, 3):
        shown = axes[0, column].images[0]
        bar = figure.colorbar(
            shown, ax=axes[:, column], location="bottom", shrink=0.85, pad=0.02, aspect=18
        )
        bar.set_ticks([0, top], labels=["0", f"{top:.2g}"])
        bar.ax.tick_params(labelsize=8, colors=MUTED, length=2)
        bar.set_label("[nats]", fontsize=8.5, color=INK, labelpad=-4)
        bar.outline.set(edgecolor=MUTED, linewidth=0.5)  # type: ignore[operator]
