"""Attribution maps with their uncertainty: where the model looks, and where its draws disagree."""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from numpy.typing import ArrayLike, NDArray

from ppl_med.axes import SAMPLES
from ppl_med.plots import theme
from ppl_med.plots.inputs import require_dims, require_variables
from ppl_med.plots.pictures import color_bar, picture_grid, require_images, show_picture

_DIMS = ("case", "channel", "row", "col")
_NEEDED = ("mean", "sd", "mcse", "probability_positive")
_ERRORS = 2  # Monte Carlo standard errors that a mean must exceed for its sign to be shown
_WEAK = 0.05  # share of the colour scale below which a mean counts as nothing
_MOST_ROWS = 40
_UNDEFINED = "#d5d9de"
_CONTOUR = "#F0E442"


def attribution(
    images: ArrayLike, attribution_dataset: xr.Dataset, mask: ArrayLike | None = None
) -> Figure:
    """Draw image, mean attribution, its standard deviation over draws, and P(attribution > 0).

    One row per case. With several channels, the channels are summed when the Dataset keeps its
    draws (``attribution``); without draws the sd of a sum is unknown, and each channel gets a row.
    Colour scales are shared by all rows: the mean is centred at 0 and cut at its 99.5th percentile.
    P(attribution > 0) is grey where the mean is within two Monte Carlo standard errors of 0 (and
    where it is exactly 0, as in a pixel equal to the baseline): its sign there is not known. It is
    grey too where the mean is below a twentieth of the colour scale: signs of what is next to
    nothing would fill the panel with noise.

    Args:
        images: (case, channel, row, col), 1 or 3 channels, in the order of the Dataset's cases.
        attribution_dataset: As ``ppl_med.explain.attribution.attribute`` returns it: ``mean``,
            ``sd``, ``mcse`` (in the network output's unit), ``probability_positive`` (probability),
            each (case, channel, row, col).
        mask: True region (case, row, col), drawn as an outline where it is above 0.5.

    Returns:
        Four columns of pictures, each with one colour bar.

    Raises:
        ValueError: Shapes disagree, or there are more than 40 rows to draw.
    """
    source = "ppl_med.explain.attribution.attribute"
    require_variables(attribution_dataset, "attribution_dataset", _NEEDED, source)
    maps = _maps(attribution_dataset)
    num_cases = attribution_dataset.sizes["case"]
    pictures = require_images(images, num_cases)
    if pictures.shape[1:3] != maps.mean.shape[1:]:
        raise ValueError(
            f"images have (row, col) {pictures.shape[1:3]}, attributions {maps.mean.shape[1:]}; "
            "pass the images that were explained"
        )
    region = None if mask is None else _region(mask, num_cases, pictures.shape[1:3])
    if len(maps.names) > _MOST_ROWS:
        raise ValueError(
            f"{len(maps.names)} rows are more than {_MOST_ROWS}; choose cases with "
            "attribution_dataset.isel(case=...)"
        )
    return _draw(pictures, maps, region)


@dataclass
class _Maps:
    """Rows to draw: name, index of the case, and the maps, each (map, row, col)."""

    names: list[str]
    cases: list[int]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    error: NDArray[np.float64]
    positive: NDArray[np.float64]
    summed: bool
    unit: str


def _maps(dataset: xr.Dataset) -> _Maps:
    arrays = [require_dims(dataset[n], f"attribution_dataset[{n!r}]", _DIMS) for n in _NEEDED]
    ids = [theme.plain(c, 24) for c in dataset["case"].values.tolist()]
    several = dataset.sizes["channel"] > 1
    if several and "attribution" in dataset:
        draws = dataset["attribution"].astype(np.float64).sum("channel")
        num = draws.sizes["chain"] * draws.sizes["draw"]
        spread = draws.std(SAMPLES, ddof=1) if num > 1 else draws.mean(SAMPLES) * np.nan
        positive = (draws > 0).mean(SAMPLES) if num > 1 else spread
        arrays = [draws.mean(SAMPLES), spread, spread / np.sqrt(num), positive]
        arrays = [array.expand_dims("channel").transpose(*_DIMS) for array in arrays]
    unit = theme.unit_of(dataset["mean"], "output unit", 26)
    split = several and "attribution" not in dataset
    channels = [""]
    if split:
        channels = [f"\nchannel {theme.plain(c, 16)}" for c in dataset["channel"].values.tolist()]
    names = [f"Case {case}{channel}" for case in ids for channel in channels]
    cases = [index for index in range(len(ids)) for _ in channels]
    mean, sd, error, share = map(_rows, arrays)
    return _Maps(names, cases, mean, sd, error, share, several and not split, unit)


def _rows(array: xr.DataArray) -> NDArray[np.float64]:
    values = array.to_numpy().astype(np.float64)
    return values.reshape(-1, *values.shape[2:])


def _region(mask: ArrayLike, num_cases: int, size: tuple[int, ...]) -> NDArray[np.float64]:
    region = np.asarray(mask, dtype=np.float64)
    if region.shape != (num_cases, *size):
        raise ValueError(
            f"mask must be (case, row, col) = {(num_cases, *size)} like the images, "
            f"got {region.shape}"
        )
    return region


def _draw(pictures: NDArray[np.float64], maps: _Maps, region: NDArray[np.float64] | None) -> Figure:
    num = len(maps.names)
    aspect = pictures.shape[1] / pictures.shape[2]
    side = 2.0
    size = (4 * side + 0.9, num * side * aspect + 1.35)
    figure, axes = picture_grid(num, 4, *size, bar=0.05 / aspect, hspace=0)
    scale, top = _scale(np.abs(maps.mean)), _scale(maps.sd)
    least = np.maximum(_ERRORS * np.nan_to_num(maps.error), _WEAK * scale)
    nowhere = ~(np.abs(maps.mean) > least)
    positive = np.ma.masked_where(nowhere | np.isnan(maps.positive), maps.positive)
    for row, index in enumerate(maps.cases):
        first, *others = axes[row]
        show_picture(first, pictures[index])
        first.set_ylabel(maps.names[row], fontsize=8.8, color=theme.INK)
        style = {"interpolation": "nearest"}
        shown = [
            others[0].imshow(
                maps.mean[row], cmap=theme.SIGNED_MAP, vmin=-scale, vmax=scale, **style
            ),
            others[1].imshow(
                np.ma.masked_invalid(maps.sd[row]), cmap="Blues", vmin=0, vmax=top, **style
            ),
            others[2].imshow(positive[row], cmap=theme.SIGNED_MAP, vmin=0, vmax=1, **style),
        ]
        for ax in axes[row]:
            ax.set_facecolor(_UNDEFINED)
        if region is not None:
            for ax in axes[row, :3]:
                _outline(ax, region[index])
    _titles(axes, maps.summed, bool(nowhere.any()), bool(np.isnan(maps.sd).all()))
    _colour_bars(figure, axes, shown, maps.unit)
    note = " · yellow outline: true region" if region is not None else ""
    theme.heading(figure, f"Attribution{note}")
    return figure


def _scale(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 1.0
    return float(np.quantile(finite, 0.995)) or float(finite.max()) or 1.0


def _outline(ax: Axes, region: NDArray[np.float64]) -> None:
    if region.max() > 0.5 >= region.min():
        outline = ax.contour(region, levels=[0.5], colors=[_CONTOUR], linewidths=1.8)
        outline.set_path_effects([withStroke(linewidth=3.2, foreground=theme.INK)])


def _titles(axes: NDArray[np.object_], summed: bool, zeros: bool, single: bool) -> None:
    undefined = "\n(undefined for one draw)" if single else ""
    titles = (
        "Image",
        "Mean over draws" + ("\n(channels summed)" if summed else ""),
        "Spread over draws" + (undefined or "\n(epistemic)"),
        "P(attribution > 0)" + (undefined or ("\n(grey: weak or unclear)" if zeros else "")),
    )
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=9.5, color=theme.INK, pad=5)


def _colour_bars(
    figure: Figure, axes: NDArray[np.object_], shown: list[AxesImage], unit: str
) -> None:
    labels = (f"mean [{unit}]", f"sd [{unit}]", "[probability]")
    extends = ("both", "max", "neither")
    for column, (image, label, extend) in enumerate(
        zip(shown, labels, extends, strict=True), start=1
    ):
        bar = color_bar(figure, image, label, 8.8, cax=axes[-1, column], extend=extend)
        bar.locator = MaxNLocator(nbins=4)
        bar.formatter = ScalarFormatter()
        bar.formatter.set_powerlimits((-2, 3))
        bar.ax.xaxis.get_offset_text().set(size=8, color=theme.MUTED)
        bar.update_ticks()
