"""Small pictures side by side, and slices of volumes behind a slider, as HTML.

A slice is a row of panels. Without the script of the page, and in print, the slice in the middle is
shown; the slider is an ordinary ``<input type=range>``, which keys move as well.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from ppl_med.plots.report.page import part, written

SIDE = 224  # most pixels along a panel of a picture
SLICE_SIDE = 128  # and of a slice of a volume
MOST_SLICES = 24


@dataclass(frozen=True)
class Panel:
    """One picture, or one per slice.

    Args:
        caption: Plain text below it.
        pictures: (slice, row, col, 1 or 3), values 0 to 1; of a map (slice, row, col).
        colors: Colour map of a map.
        top: Value of the map's strongest colour; its palest is 0, or ``low``.
        low: Value of the palest colour.
    """

    caption: str
    pictures: NDArray[np.float64]
    colors: str = ""
    top: float = 1.0
    low: float = 0.0


def show_panels(
    identity: str,
    name: str,
    panels: Sequence[Panel],
    titles: Sequence[str] = ("",),
    *,
    ratio: float | None = None,
    legend: Sequence[tuple[str, str]] = (),
    units: dict[str, str] | None = None,
) -> str:
    """Return panels as HTML, with a slider where there are several slices.

    Args:
        identity: Different for every call on a page; letters, digits and dashes.
        name: What is shown, plain text, for the alternative texts.
        panels: All with as many slices.
        titles: Plain text above each slice, such as "Slice 3 of 20".
        ratio: Width over height of a panel in millimetres; None for square pixels.
        legend: Colours of classes, with their names.
        units: By caption, the unit of maps, which get a bar with their ends.
    """
    side = SLICE_SIDE if len(titles) > 1 else SIDE
    groups = []
    for index, title in enumerate(titles):
        row = []
        for panel in panels:
            picture = _smaller(panel.pictures[index], side)
            alt = f"{name}{', ' + title.lower() if title else ''}: {panel.caption}"
            shape = ratio or picture.shape[1] / picture.shape[0]
            row.append((panel.caption, encoded(picture, panel), alt, shape))
        groups.append((title, row))
    bars, seen = [], set()
    for panel in panels:
        key = (panel.colors, panel.low, panel.top)
        if panel.colors and key not in seen:
            seen.add(key)
            ramp = encoded(np.linspace(panel.low, panel.top, 64)[None], panel)
            unit = (units or {}).get(panel.caption, "")
            text = f"{panel.caption}{f' [{unit}]' if unit else ''}"
            bars.append((ramp, text, written(float(panel.low)), written(float(panel.top))))
    return part("viewer", identity, name, groups, len(titles) // 2, list(legend), bars)


def encoded(picture: NDArray[np.float64], panel: Panel) -> str:
    """Return a picture (row, col, 1 or 3), or a map (row, col), as a PNG in base64."""
    if panel.colors:
        span = (panel.top - panel.low) or 1.0
        index = np.nan_to_num((picture - panel.low) / span).clip(0, 1) * 255
        image = Image.fromarray(index.round().astype(np.uint8)).convert("P")
        palette = (colormaps[panel.colors](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
        image.putpalette(palette.tobytes())
    else:
        values = (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
        image = Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def choose_slices(present: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Choose slices (slice,) that hold something, with a margin; at most ``MOST_SLICES``."""
    found = np.flatnonzero(present)
    if not len(found):
        found = np.array([0, len(present) - 1])
    first, last = max(0, found[0] - 2), min(len(present) - 1, found[-1] + 2)
    number = min(last - first + 1, MOST_SLICES)
    return np.linspace(first, last, number).round().astype(np.intp)


def _smaller(picture: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    step = -(-max(picture.shape[:2]) // side)
    return picture[::step, ::step]
