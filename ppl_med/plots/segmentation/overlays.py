"""A prediction on its image, to be looked at: outlines, probability, entropy."""

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy

from ppl_med.analysis.exports.nifti import safe_name
from ppl_med.analysis.tree import class_site, find_group, open_classes, open_probabilities
from ppl_med.checks import a_path, reject
from ppl_med.plots.inputs import case_positions
from ppl_med.plots.palette import class_colors, outline
from ppl_med.plots.pictures import color_bar, frame, require_images, show_picture
from ppl_med.plots.theme import heading, legend, new_figure, plain, subtitle
from ppl_med.storage import replacing

_DPI = 160


def overlay(
    tree: xr.DataTree,
    images: ArrayLike,
    case: Hashable,
    *,
    depth: int | None = None,
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the prediction of one case on its image.

    Args:
        tree: The tree of ``predict`` of masks.
        images: (case, channel, [depth,] row, col), 1 or 3 channels, any intensity unit; the tree's
            cases in their order.
        case: Id of the case.
        depth: Slice of a volume; by default the one with the most predicted foreground.
        colors: Colours by class name.

    Returns:
        Three panels: the most probable class outlined, the observed mask dashed where there is
        one; the probability of the foreground (all classes but the first); and the entropy, nats,
        both of the mean over draws.

    Raises:
        TypeError, ValueError: ``tree`` is of something else, an unknown case or slice, or images
            that do not fit.
    """
    open_probabilities(tree)
    source = open_classes(tree)
    (position,) = case_positions(source.array, [case])
    pixels = np.asarray(images, np.float64)
    size = source.array.shape[4:]
    if pixels.ndim != 2 + len(size) or pixels.shape[2:] != size:
        raise ValueError(
            f"images have shape {pixels.shape}, the tree's masks {size}; pass the images that were "
            "predicted, (case, channel, ...)"
        )
    if len(pixels) != source.sizes["case"]:
        raise ValueError(f"images holds {len(pixels)} cases; the tree has {source.sizes['case']}")
    mean = source.isel(slice(position, position + 1)).mixture().values[0]
    truth = _observed(tree, position)
    picture, at = pixels[position], None
    if len(size) == 3:
        at = _slice(mean, depth)
        mean, picture = mean[:, at], picture[:, at]
        truth = None if truth is None else truth[at]
    names = source.names
    tones = class_colors(names, colors)
    shown = require_images(picture[None], 1)[0]
    height = 3.1 * shown.shape[0] / shown.shape[1]
    figure = new_figure(9.9, min(height, 6.0) + 1.3)
    axes = figure.subplots(1, 3)
    frame(axes)
    for ax in axes:
        show_picture(ax, shown)
    for index in range(1, len(names)):
        outline(axes[0], mean.argmax(0) == index, tones[index])
        if truth is not None and (truth == index).any() and not (truth == index).all():
            axes[0].contour((truth == index).astype(float), levels=[0.5], colors=[tones[index]],
                            linewidths=1.0, linestyles="dashed")  # fmt: skip
    subtitle(axes[0], "most probable class" + (", observed dashed" if truth is not None else ""))
    entropy = -xlogy(mean, mean).sum(0)
    for ax, values, title, unit, top, cmap in (
        (axes[1], 1 - mean[0], "foreground", "probability", 1.0, "viridis"),
        (axes[2], entropy, "entropy", "nats", float(np.log(len(names))), "magma"),
    ):
        alpha = 0.75 * (values / top).clip(0, 1)
        layer = ax.imshow(values, cmap=cmap, vmin=0, vmax=top, alpha=alpha)
        color_bar(figure, layer, f"{title} [{unit}]", ax=ax, location="bottom", shrink=0.9)
        subtitle(ax, title)
    handles = [
        Line2D([], [], color=tone, label=plain(name, 22))
        for name, tone in list(zip(names, tones, strict=True))[1:]
    ]
    legend(figure, handles=handles, ncols=min(len(handles), 5))
    place = "" if at is None else f" · slice {at}"
    heading(figure, f"{plain(case, 60)}{place}")
    return figure


def write_overlays(
    tree: xr.DataTree,
    images: ArrayLike,
    folder: str | os.PathLike[str],
    case: Hashable | Sequence[Hashable] | None = None,
    *,
    colors: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write ``<folder>/<case>.png`` of every case, as `overlay` draws it.

    Args:
        tree: The tree of ``predict`` of masks.
        images: As for `overlay`.
        folder: Where the files go; it is made. Earlier files of the same names are replaced.
        case: Ids of the cases; all by default.
        colors: Colours by class name.

    Returns:
        The files.

    Raises:
        TypeError, ValueError: As for `overlay`, or two ids give one file name.
        OSError: A file cannot be written.
    """
    source = open_classes(tree)
    ids = source.array["case"].values.tolist()
    chosen = ids if case is None else list(case) if isinstance(case, list | tuple) else [case]
    files = {f"{safe_name(one)}.png": one for one in chosen}
    if len(files) < len(chosen):
        reject("case", "ids that give different file names", chosen[:5], "write them apart")
    place = a_path("folder", folder)
    place.mkdir(parents=True, exist_ok=True)
    for file, one in files.items():
        figure = overlay(tree, images, one, colors=colors)
        with replacing(place / file, "picture") as partial:
            figure.savefig(partial, format="png", dpi=_DPI, metadata={"Software": None})
    return [place / file for file in files]


def _observed(tree: xr.DataTree, position: int) -> NDArray | None:
    name = class_site(tree, "observed_data")
    found = find_group(tree, "observed_data")
    if name is None or "grader" in found[name].dims:
        return None
    return np.asarray(found[name].isel(case=position).values)


def _slice(mean: NDArray[np.float64], depth: int | None) -> int:
    if depth is None:
        return int((mean.argmax(0) > 0).sum((1, 2)).argmax())
    if not 0 <= depth < mean.shape[1]:
        reject("depth", f"a slice from 0 to {mean.shape[1] - 1}", depth)
    return depth
