"""Samples of masks beside the masks that graders drew: one row per case."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ppl_med.analysis.segmentation import maps
from ppl_med.analysis.tree import class_names, open_classes
from ppl_med.axes import SAMPLES
from ppl_med.checks import whole
from ppl_med.plots.inputs import case_positions, require_dims
from ppl_med.plots.palette import (
    GRADER,
    SAMPLE,
    class_colors,
    class_legend,
    outline,
    overlaid,
    painted,
)
from ppl_med.plots.pictures import color_bar, frame, picture_grid, require_images, show_picture
from ppl_med.plots.theme import INK, heading, plain

_SIDE = 1.08  # inches of a panel
_LINE = 12  # characters of a case's name along a square panel
_DIMS = (*SAMPLES, "case", "class", "row", "col")


def samples(
    tree: xr.DataTree,
    images: ArrayLike,
    case: Hashable | Sequence[Hashable] | None = None,
    *,
    num_samples: int = 4,
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Show image, graders' masks, samples, and the mean and spread of the probabilities.

    A sample is the most probable class of every pixel under one draw: a coherent mask. Samples are
    taken at even steps through chains and draws. With two classes the mask is outlined on the
    image, and the last two panels are mean and standard deviation over draws of the probability
    of the foreground. With more, masks are painted in one colour per class, and the last two panels
    are the entropy of the mean probabilities, in nats, and the square root of the variance summed
    over classes. Where a grader did not annotate is light grey.

    Args:
        tree: The tree of ``predict``: ``posterior/probs`` (chain, draw, case, class, row, col) and
            perhaps ``observed_data/mask`` (case, [grader,] row, col).
        images: (case, channel, row, col), 1 or 3 channels, any intensity unit; the tree's cases in
            their order.
        case: Ids of the cases to show; the first four by default.
        num_samples: Samples to show.
        colors: Colours by class name, where more than two.

    Returns:
        One row of panels per case.

    Raises:
        TypeError: ``tree`` is no DataTree.
        ValueError: No probabilities of pixels, volumes, unknown cases, or images that do not fit.
    """
    probs = _probabilities(tree)
    whole("num_samples", num_samples)
    pictures = require_images(images, probs.sizes["case"])
    if pictures.shape[1:3] != probs.shape[-2:]:
        raise ValueError(
            f"images are {pictures.shape[1]} x {pictures.shape[2]}, the tree's masks "
            f"{probs.shape[-2]} x {probs.shape[-1]}; pass the images that were predicted"
        )
    chosen = case_positions(probs, case)
    part = probs.isel(case=chosen).load()
    names = class_names(part)
    tones = class_colors(names, colors)
    graders = _graders(tree, chosen)
    flat = part.stack(sample=SAMPLES).transpose("sample", "case", "class", "row", "col")
    number = min(num_samples, flat.sizes["sample"])
    steps = np.linspace(0, flat.sizes["sample"] - 1, number).round().astype(int)
    masks = flat.isel(sample=steps).to_numpy().argmax(2)
    graders_shown = 0 if graders is None else graders.sizes["grader"]
    rows = _Rows(len(chosen), pictures.shape[1] / pictures.shape[2], graders_shown, number)
    rows.titles(_grader_names(graders))
    for row, index in enumerate(chosen):
        rows.picture(row, pictures[index], _label(probs, index))
        if graders is not None:
            rows.masks(row, 1, pictures[index], graders[row].to_numpy(), names, tones, GRADER)
        start = 1 + graders_shown
        rows.masks(row, start, pictures[index], masks[:, row], names, tones, SAMPLE)
    rows.summary(part)
    num_draws = flat.sizes["sample"]
    shown = "Graders and samples" if graders_shown else "Samples"
    heading(rows.figure, f"{shown} · {num_draws} draws")
    if len(names) > 2:
        class_legend(rows.figure, names, tones)
    return rows.figure


def _probabilities(tree: xr.DataTree) -> xr.DataArray:
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"tree must be the DataTree of predict, not {type(tree).__name__}")
    return require_dims(open_classes(tree).array, "posterior/probs", _DIMS)


def _label(probs: xr.DataArray, index: int) -> str:
    value = str(probs["case"].values[index])
    length = max(4, round(_LINE * probs.sizes["row"] / probs.sizes["col"]))
    lines = [value[:length], value[length:]] if len(value) > length else [value]
    return "\n".join(plain(line, length) for line in lines)


def _graders(tree: xr.DataTree, chosen: list[int]) -> xr.DataArray | None:
    mask = open_classes(tree).observation()
    if mask is None:
        return None
    mask = mask.isel(case=chosen)
    if "grader" not in mask.dims:
        mask = mask.expand_dims("grader")
    return mask.transpose("case", "grader", "row", "col")


def _grader_names(graders: xr.DataArray | None) -> list[str]:
    if graders is None:
        return []
    if "grader" in graders.coords:
        return [plain(name, 12) for name in graders["grader"].values]
    number = graders.sizes["grader"]
    return ["annotation"] if number == 1 else [f"grader {k + 1}" for k in range(number)]


class _Rows:
    """The panels: image, graders, samples, mean, spread."""

    def __init__(self, num_cases: int, aspect: float, graders: int, num_samples: int) -> None:
        columns = 1 + graders + num_samples + 2
        height = num_cases * (_SIDE * aspect + 0.05) + 1.3
        self.figure, self.axes = picture_grid(
            num_cases, columns, columns * (_SIDE + 0.06) + 0.3, height, bar=0.07 / aspect,
            hspace=0.02, wspace=0.02,
        )  # fmt: skip
        self.num_samples = num_samples
        frame(self.axes[:-1].flat, 0)

    def titles(self, graders: Sequence[str]) -> None:
        names = ["image", *graders, *(f"sample {k + 1}" for k in range(self.num_samples))]
        for index, (ax, name) in enumerate(zip(self.axes[0], names, strict=False)):
            color = INK if index == 0 else GRADER if index <= len(graders) else "#a4497c"
            ax.set_title(name, fontsize=10.5, color=color, pad=3)

    def picture(self, row: int, picture: NDArray[np.float64], name: str) -> None:
        ax = self.axes[row, 0]
        show_picture(ax, picture)
        ax.set_ylabel(name, fontsize=9, color=INK)

    def masks(
        self,
        row: int,
        start: int,
        picture: NDArray[np.float64],
        masks: NDArray,
        names: Sequence[str],
        tones: Sequence[str],
        color: str,
    ) -> None:
        for column, mask in enumerate(masks, start):
            ax = self.axes[row, column]
            if len(names) > 2:
                ax.imshow(painted(mask, tones), interpolation="nearest")
            else:
                ax.imshow(overlaid(picture, mask, color), interpolation="nearest")
                outline(ax, mask, color)
            if (mask < 0).all():
                _note(ax, "not annotated")
            elif len(names) == 2 and not (mask == 1).any():
                _note(ax, "empty")

    def summary(self, probs: xr.DataArray) -> None:
        """Mean and spread, each with a colour bar below."""
        binary = probs.sizes["class"] == 2
        if binary:
            foreground = probs.isel({"class": 1})
            mean = foreground.mean(SAMPLES).to_numpy()
            spread = foreground.std(SAMPLES).to_numpy()
            top, titles = 1.0, ("mean", "sd")
        else:
            found = maps(probs)
            mean = found["predictive_entropy"].to_numpy()
            spread = np.sqrt(found["variance"].to_numpy())
            top, titles = float(np.log(probs.sizes["class"])), ("entropy", "sd")
        units = ("probability" if binary else "nats", "probability")
        # Many draws that each name one of K classes, all as often, have a variance of 1 - 1 / K;
        # a few have more, by n / (n - 1).
        most = 0.5 if binary else float(np.sqrt(1 - 1 / probs.sizes["class"]))
        limits = (top, max(most, float(spread.max(initial=0))))
        for offset, (values, title, unit, limit) in enumerate(
            zip((mean, spread), titles, units, limits, strict=True)
        ):
            column, cmap = offset - 2, ("viridis", "Blues")[offset]
            self.axes[0, column].set_title(title, fontsize=10.5, color=INK, pad=3)
            for row in range(len(values)):
                shown = self.axes[row, column].imshow(
                    values[row], cmap=cmap, vmin=0, vmax=limit, interpolation="nearest"
                )
            frame(self.axes[:-1, column])
            bar = self.axes[-1, column]
            drawn = color_bar(self.figure, shown, f"[{unit}]", 9, cax=bar)
            drawn.set_ticks([0, limit], labels=["0", f"{limit:.2g}"])
            bar.xaxis.labelpad = 1


def _note(ax: Axes, text: str) -> None:
    ax.text(
        0.5, 0.04, text, transform=ax.transAxes, ha="center", va="bottom", fontsize=9,
        color=INK, bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.2},
    )  # fmt: skip
