"""Images and maps in panels: checked, windowed, framed, and with their colour bars."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike, NDArray

from ppl_med.plots.theme import INK, MUTED


def require_images(
    images: ArrayLike, num_cases: int, argument: str = "images"
) -> NDArray[np.float64]:
    """Check images and bring each to the range 0 to 1 for display.

    Each case is windowed on its own from its 0.5th to its 99.5th percentile, so any unit will do.

    Args:
        images: (case, channel, row, col) with 1 (grey) or 3 (RGB) channels.
        num_cases: How many there must be.
        argument: Name for the message.

    Returns:
        (case, row, col, channel), values 0 to 1.

    Raises:
        ValueError: Wrong number of axes, channels or cases, or a value that is not finite.
    """
    array = np.asarray(images, dtype=np.float64)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(
            f"{argument} must be (case, channel, row, col) with 1 or 3 channels, "
            f"got shape {array.shape}; choose the channels to show, e.g. image[:, :1]"
        )
    if len(array) != num_cases:
        raise ValueError(
            f"{argument} holds {len(array)} cases where {num_cases} are described; "
            "pass one image per case, in the same order"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{argument} holds NaN or infinite values; replace them before plotting")
    low, high = np.quantile(array, [0.005, 0.995], axis=(1, 2, 3), keepdims=True)
    scaled = np.clip((array - low) / np.where(high > low, high - low, 1.0), 0.0, 1.0)
    return np.moveaxis(scaled, 1, -1)


def show_picture(ax: Axes, picture: NDArray[np.float64]) -> None:
    """Show an image (row, col, 1 or 3) with values 0 to 1."""
    grey = picture.shape[-1] == 1
    ax.imshow(picture[..., 0] if grey else picture, cmap="gray", vmin=0, vmax=1)


def frame(axes: Iterable[Axes], width: float = 0.5, color: str = MUTED) -> None:
    """Leave only a frame of the panels; a width of 0 removes that too."""
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(color=color, linewidth=width, visible=width > 0)


def color_bar(
    figure: Figure, shown: AxesImage | Any, label: str, size: float = 8.5, **place: Any
) -> Colorbar:
    """Add a colour bar.

    Args:
        figure: That holds the panel.
        shown: The image whose colours it explains.
        label: Quantity and unit.
        size: Of the label; numbers are a little smaller.
        place: ``cax``, or ``ax`` and what ``Figure.colorbar`` takes.
    """
    bar = figure.colorbar(shown, **place)
    bar.set_label(label, fontsize=size, color=INK)
    bar.ax.tick_params(labelsize=size - 0.5, colors=MUTED, labelcolor=INK, length=2)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return bar


def color_bar_below(figure: Figure, axes: NDArray[np.object_], unit: str) -> None:
    """Add the colour bar of a column of maps below it, with its two ends marked."""
    shown = axes[0].images[0]
    ends = list(shown.get_clim())
    bar = color_bar(figure, shown, f"[{unit}]", ax=axes.tolist(), location="bottom", shrink=0.85,
                    pad=0.02, aspect=16)  # fmt: skip
    bar.set_ticks(ends, labels=[f"{end:.2g}" for end in ends])
    bar.ax.xaxis.labelpad = -4
