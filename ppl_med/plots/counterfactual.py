"""Counterfactuals of several kinds side by side: the image, what it would be, and the change."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ppl_med.plots import theme
from ppl_med.plots.inputs import require_named
from ppl_med.plots.pictures import color_bar, picture_grid, show_picture

_NEEDED = ("image", "counterfactual", "change", "present", "target", "flip_probability")
_SAME = ("image", "present", "target")
_MOST_ROWS = 12


def side_by_side(
    results: Mapping[str, xr.Dataset],
    classes: Sequence[str] | None = None,
    *,
    unit: str | None = None,
) -> Figure:
    """Draw one row per case: its image, then counterfactual and change of every kind.

    Image and counterfactuals of a case share one grey scale, that of the image. The changes of a
    kind share one signed scale, centred at 0 and cut at the 99.5th percentile; the scales of two
    kinds differ, as their colour bars say. Under each counterfactual: the share of posterior draws
    in which the class flips.

    Args:
        results: By name of the kind, as ``ppl_med.explain.minimal_perturbation`` and its like
            return them, of the same cases and images, with one channel or three.
        classes: Names of the classes.
        unit: Of the intensity; that of ``change`` by default.

    Returns:
        One figure with two columns per kind.

    Raises:
        ValueError: There is no result, a variable is missing, the cases, images or targets of two
            kinds differ, images are volumes, or there are more than 12 cases.
    """
    named = require_named(results, "results", _NEEDED, "ppl_med.explain.minimal_perturbation")
    first = next(iter(named.values()))
    if set(first["image"].dims) != {"case", "channel", "row", "col"}:
        raise ValueError(f"images have the axes {first['image'].dims}; choose a slice of volumes")
    if first.sizes["channel"] not in (1, 3):
        raise ValueError(f"images have {first.sizes['channel']} channels; grey has 1 and RGB 3")
    for name, one in named.items():
        if any(not one[each].equals(first[each]) for each in _SAME):
            raise ValueError(f"results[{name!r}] is of other cases, images or targets")
    num = first.sizes["case"]
    if num > _MOST_ROWS:
        raise ValueError(f"{num} cases are more than {_MOST_ROWS}; choose with isel(case=...)")
    return _draw(named, _class_names(first, classes), unit or first["change"].attrs.get("units"))


def _draw(named: dict[str, xr.Dataset], names: list[str], unit: str | None) -> Figure:
    first = next(iter(named.values()))
    num, columns = first.sizes["case"], 1 + 2 * len(named)
    aspect = first.sizes["row"] / first.sizes["col"]
    side = 1.22
    width, height = columns * side + 0.5, num * (side * aspect + 0.22) + 1.35
    padding = {"h_pad": 0.015, "w_pad": 0.02, "hspace": 0.0}
    figure, axes = picture_grid(num, columns, width, height, bar=0.07 / aspect, **padding)
    images = _last_channel(first["image"])
    limits = [np.quantile(image, [0.002, 0.998]) for image in images]
    for row, (image, limit) in enumerate(zip(images, limits, strict=True)):
        _picture(axes[row, 0], image, limit)
        case = first["case"].to_numpy()[row]
        axes[row, 0].set_xlabel(theme.plain(case, 20), fontsize=7.2, color=theme.INK, labelpad=2)
        axes[row, 0].set_ylabel(names[row], fontsize=7.8, color=theme.INK)
    axes[0, 0].set_title("image", fontsize=8.8, color=theme.INK, pad=4)
    for kind, (name, one) in enumerate(named.items()):
        pair = axes[:, 1 + 2 * kind : 3 + 2 * kind]
        for row, image in enumerate(_last_channel(one["counterfactual"])):
            _picture(pair[row, 0], image, limits[row])
            share = f"flips in {float(one['flip_probability'][row]):.0%}"
            pair[row, 0].set_xlabel(share, fontsize=7.2, color=theme.INK, labelpad=2)
        change = one["change"].sum("channel").transpose("case", "row", "col").to_numpy()
        top = float(np.quantile(np.abs(change), 0.995)) or float(np.abs(change).max()) or 1.0
        for row, values in enumerate(change):
            shown = pair[row, 1].imshow(values, cmap=theme.SIGNED_MAP, vmin=-top, vmax=top)
        pair[0, 0].set_title(
            theme.plain(name, 26), fontsize=8.8, color=theme.INK, weight="bold", pad=4
        )
        pair[0, 1].set_title("change", fontsize=8.8, color=theme.INK, pad=4)
        label = f"[{theme.plain(unit or 'intensity', 22)}]"
        bar = color_bar(figure, shown, label, 7.5, cax=pair[-1, 1], extend="both")
        bar.locator = MaxNLocator(nbins=2, symmetric=True)
        bar.update_ticks()
    theme.heading(figure, "What would have to differ")
    return figure


def _picture(ax: Axes, image: NDArray[np.float64], limits: NDArray[np.float64]) -> None:
    low, high = limits
    show_picture(ax, np.clip((image - low) / (high - low if high > low else 1.0), 0, 1))


def _last_channel(images: xr.DataArray) -> NDArray[np.float64]:
    return images.transpose("case", "row", "col", "channel").to_numpy().astype(np.float64)


def _class_names(first: xr.Dataset, classes: Sequence[str] | None) -> list[str]:
    """Present and wanted class of each case."""
    pairs = zip(first["present"].to_numpy(), first["target"].to_numpy(), strict=True)
    names: list[str] = []
    for pair in pairs:
        if classes is not None and max(pair) >= len(classes):
            raise ValueError(
                f"classes has {len(classes)} names; the results know class {max(pair)}"
            )
        of = [f"class {k}" if classes is None else theme.plain(classes[k], 16) for k in pair]
        names.append(f"{of[0]}\n→ {of[1]}")
    return names
