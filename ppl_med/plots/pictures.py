"""Images and maps in panels: checked, windowed, framed, and with their colour bars."""

import textwrap
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike, NDArray

from ppl_med.checks import reject
from ppl_med.plots.theme import BAND, INK, MUTED, new_figure, plain


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


def in_own_units(images: ArrayLike, loc: ArrayLike, scale: ArrayLike) -> NDArray[np.float64]:
    """Undo a normalisation per channel, so that colours are those of the picture.

    Args:
        images: (case, channel, row, col).
        loc: What was taken off, one number or one per channel.
        scale: What it was divided by.

    Raises:
        ValueError: As many numbers as there are channels are needed; ``scale`` is not positive.
    """
    array = np.asarray(images, np.float64)
    values = {name: np.asarray(value, np.float64).ravel()
              for name, value in (("loc", loc), ("scale", scale))}  # fmt: skip
    for name, value in values.items():
        if array.ndim == 4 and len(value) not in (1, array.shape[1]):
            reject(name, f"one number, or {array.shape[1]}, one per channel", value.tolist())
    if not (values["scale"] > 0).all():
        reject("scale", "positive", values["scale"].tolist())
    shift, factor = (values[name].reshape(-1, 1, 1) for name in ("loc", "scale"))
    return array * factor + shift


def one_picture(
    image: ArrayLike, loc: ArrayLike = 0.0, scale: ArrayLike = 1.0
) -> NDArray[np.float64]:
    """Bring the image of one case to the range 0 to 1; of more than 3 channels the first.

    Args:
        image: (channel, row, col) or (channel, depth, row, col), any unit.
        loc: As for `in_own_units`.
        scale: Likewise.

    Returns:
        ([depth,] row, col, 1 or 3), windowed as in `require_images`.

    Raises:
        ValueError: Wrong number of axes, or values that are not finite.
    """
    array = np.asarray(image, np.float64)
    if array.ndim not in (3, 4):
        reject("images", "(channel, row, col) or (channel, depth, row, col) per case", array.shape)
    flat = in_own_units(array.reshape(1, array.shape[0], -1, array.shape[-1]), loc, scale)
    flat = flat if flat.shape[1] in (1, 3) else flat[:, :1]
    shown = require_images(flat, 1)[0]
    return shown.reshape(*array.shape[1:], shown.shape[-1])


def show_picture(ax: Axes, picture: NDArray[np.float64]) -> None:
    """Show an image (row, col, 1 or 3) with values 0 to 1."""
    grey = picture.shape[-1] == 1
    ax.imshow(picture[..., 0] if grey else picture, cmap="gray", vmin=0, vmax=1)


def frame(axes: Iterable[Any], width: float = 0.5, color: str = MUTED) -> None:
    """Leave only a frame of the panels; a width of 0 removes that too."""
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(color=color, linewidth=width, visible=width > 0)


def picture_grid(
    num: int, columns: int, width: float, height: float, bar: float, **padding: Any
) -> tuple[Figure, NDArray[np.object_]]:
    """Make framed panels for pictures, and a low row of empty ones for their colour bars.

    Args:
        num: Rows of pictures.
        columns: Pictures in a row.
        width: Of the figure, in inches.
        height: Of the figure, in inches.
        bar: Height of the lowest row, as a fraction of the others.
        padding: As for ``new_figure``.

    Returns:
        The figure and its panels (num + 1, columns).
    """
    figure = new_figure(width, height, **padding)
    ratios = [1.0] * num + [bar]
    axes = figure.subplots(num + 1, columns, squeeze=False, height_ratios=ratios)
    frame(axes[:-1].flat)
    for ax in axes[-1]:
        ax.set_axis_off()
    return figure, axes


def color_bar(
    figure: Figure, shown: AxesImage | Any, label: str, size: float = 8.5, **place: Any
) -> Colorbar:
    """Add a colour bar.

    Args:
        figure: That holds the panel.
        shown: The image whose colours it explains.
        label: Quantity and unit.
        size: Of the label; numbers are a little smaller.
        place: ``cax`` for a bar that lies in it, or ``ax`` and what ``Figure.colorbar`` takes.
    """
    if "cax" in place:
        place["cax"].set_axis_on()
        place["orientation"] = "horizontal"
    bar = figure.colorbar(shown, **place)
    bar.set_label(label, fontsize=size, color=INK)
    bar.ax.tick_params(labelsize=size - 0.5, colors=MUTED, labelcolor=INK, length=2)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return bar


def map_rows(
    pictures: NDArray[np.float64],
    names: Sequence[Hashable],
    panels: Mapping[str, tuple[NDArray, str, float, float]],
    unit: str,
    side: float,
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Draw one row per case: its image and its maps, with a colour bar below each column of maps.

    Args:
        pictures: (case, row, col, 1 or 3), values 0 to 1.
        names: Of the cases.
        panels: By title: values (case, row, col), colour map, lowest and highest value.
        unit: Of the values.
        side: Width of a panel, in inches.
        colors: Of titles, where they differ from the rest.

    Returns:
        The figure, without a heading.
    """
    count, rows, cols = pictures.shape[:3]
    columns = 1 + len(panels)
    figure = new_figure(side * columns + 0.8, side * rows / cols * count + 1.2)
    axes = figure.subplots(count, columns, squeeze=False, gridspec_kw={"hspace": 0.02})
    frame(axes.flat)
    for ax, picture, name in zip(axes[:, 0], pictures, names, strict=True):
        show_picture(ax, picture)
        label = "\n".join(plain(line) for line in textwrap.wrap(str(name), round(10 * side))[:3])
        ax.set_ylabel(label, fontsize=7.5, color=INK)
    for column, (values, cmap, low, high) in zip(axes.T[1:], panels.values(), strict=True):
        for ax, one in zip(column, values, strict=True):
            ax.set_facecolor(BAND)
            ax.imshow(one, cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
    for ax, title in zip(axes[0], ("image", *panels), strict=True):
        ax.set_title(title, fontsize=9, color=(colors or {}).get(title, INK), pad=4)
    for column in axes.T:
        ends = list(column[0].images[0].get_clim())
        bar = color_bar(figure, column[0].images[0], f"[{unit}]", ax=column.tolist(),
                        location="bottom", shrink=0.85, pad=0.02, aspect=16)  # fmt: skip
        bar.set_ticks(ends, labels=[f"{end:.2g}" for end in ends])
        bar.ax.xaxis.labelpad = -4
    figure.axes[-columns].set_visible(False)  # of the images; it keeps all panels of one height
    return figure
