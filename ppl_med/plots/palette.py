"""One colour per class: masks of a few classes, or of many, drawn the same in every figure."""

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from ppl_med.checks import reject
from ppl_med.plots.theme import MUTED, legend, plain

_HUES = (
    "#4477AA", "#994455", "#EECC66", "#228833", "#AA3377", "#66CCEE", "#BB5522", "#44AA99",
    "#777777", "#332288", "#999933", "#EE8866",
)  # fmt: skip
_PALE = 0.55  # share of white in the second version of a class
_FILL = 0.45  # how strongly a mask covers its image
GRADER, SAMPLE = "#009E73", "#CC79A7"
UNKNOWN = (0.93, 0.93, 0.93)


def class_colors(names: Sequence[str], chosen: Mapping[str, str] | None = None) -> list[str]:
    """Choose a colour for every class.

    A class named "<name> 2" gets a paler tone of the colour of "<name>", so that a class and what
    it flips to are seen to belong together.

    Args:
        names: Class names, the background first.
        chosen: Colours that the caller wants, by class name.

    Returns:
        Hexadecimal colours, one per class.

    Raises:
        ValueError: ``chosen`` names a class that does not exist.
    """
    unknown = sorted(set(chosen or {}) - set(names))
    if unknown:
        reject("colors", f"a mapping from class names, of {list(names)}", unknown)
    found: dict[str, str] = {}
    hues = 0
    for name in names:
        base = name.removesuffix(" 2")
        if base != name and base in found:
            own = _paler(found[base])
        else:
            own, hues = _hue(hues), hues + 1
        found[name] = (chosen or {}).get(name, own)
    return [found[name] for name in names]


def painted(mask: NDArray, colors: Sequence[str]) -> NDArray[np.float64]:
    """Return class ids (row, col) as colours (row, col, 3); -1 is light grey."""
    table = np.array([UNKNOWN, *(to_rgb(color) for color in colors)])
    return table[np.asarray(mask).astype(np.int64) + 1]


def overlaid(
    picture: NDArray[np.float64], mask: NDArray, color: str, fill: float = _FILL
) -> NDArray[np.float64]:
    """Return a picture (row, col, 1 or 3) with class 1 of a mask tinted, (row, col, 3)."""
    return tinted(picture, mask, [None, color], fill)


def tinted(
    picture: NDArray[np.float64], mask: NDArray, colors: Sequence[str | None], fill: float = _FILL
) -> NDArray[np.float64]:
    """Return a picture (row, col, 1 or 3) tinted with a mask, (row, col, 3); -1 is light grey.

    Args:
        picture: Values 0 to 1.
        mask: Class ids (row, col).
        colors: Of the classes; None leaves the picture as it is.
        fill: How strongly a colour covers the picture.
    """
    base = np.broadcast_to(picture, (*picture.shape[:2], 3)).copy()
    mask = np.asarray(mask)
    for number, color in enumerate(colors):
        if color is not None:
            inside = mask == number
            base[inside] = (1 - fill) * base[inside] + fill * np.array(to_rgb(color))
    base[mask < 0] = UNKNOWN
    return base


def outline(ax: Axes, mask: NDArray, color: str) -> None:
    """Draw the border of class 1 of a mask (row, col)."""
    inside = np.asarray(mask) == 1
    if inside.any() and not inside.all():
        ax.contour(inside.astype(float), levels=[0.5], colors=[color], linewidths=1.1)


def class_legend(figure: Figure, names: Sequence[str], colors: Sequence[str]) -> None:
    """Name the colours below the figure."""
    handles = [
        Patch(facecolor=color, edgecolor=MUTED, linewidth=0.5, label=plain(name, 22))
        for name, color in zip(names, colors, strict=True)
    ]
    columns = max(1, min(len(names), 6, int(figure.get_figwidth() / 1.45)))
    legend(figure, handles=handles, ncols=columns, handlelength=1.2)


def _hue(index: int) -> str:
    if index < len(_HUES):
        return _HUES[index]
    golden = 0.618034  # steps that never come back to a colour
    return to_hex(colorsys.hsv_to_rgb((index * golden) % 1, 0.65, 0.8))


def _paler(color: str) -> str:
    red, green, blue = ((1 - _PALE) * part + _PALE for part in to_rgb(color))
    return to_hex((red, green, blue))
