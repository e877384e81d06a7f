"""Cards of the cases with the least and the most certain predictions."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from ppl_med.analysis.statistics import monte_carlo
from ppl_med.analysis.statistics.draw_ranks import RANKS, attained
from ppl_med.analysis.statistics.weight_draws import num_functions, one_of_each
from ppl_med.analysis.tree import Posterior, class_names
from ppl_med.analysis.uncertainty import entropy, variance
from ppl_med.axes import SAMPLES
from ppl_med.checks import choice, whole
from ppl_med.plots import theme
from ppl_med.plots.inputs import class_per_case, require_variables
from ppl_med.plots.pictures import frame, require_images, show_picture

_INTERVAL = (0.05, 0.95)
_MOST_CLASSES = 5


def cases(
    images: ArrayLike,
    tree: Posterior,
    prediction_sets: xr.Dataset | None = None,
    num: int = 6,
    by: Literal["total", "mutual_information"] = "total",
) -> Figure:
    """Show the least certain cases on the left and the most certain on the right.

    Each card has the picture, the observed label, every class's mean probability (dot) with its
    credible interval over draws (bar), of 90 % where there are 19 draws or more, the uncertainty
    split into aleatoric and epistemic on one scale for all cards, and the prediction set. Where all
    draws are one network (a single draw, or a recalibrated mixture) the split is unknown and only
    the total is shown. With more
    than 5 classes a card shows the 5 most probable and the observed one.

    Args:
        images: (case, channel, row, col), 1 or 3 channels, any intensity unit; the order of
            ``tree``'s cases.
        tree: The tree of ``predict``, or its ``probs`` (chain, draw, case, class).
        prediction_sets: As ``ppl_med.analysis.conformal.predict_sets`` returns it:
            ``prediction_set`` (case, class) bool for all these cases.
        num: Cases in each column; fewer where there are less than 2 * num.
        by: What orders the cases and fills the bars. ``total``: variances of the class indicator
            summed over classes (probability squared). ``mutual_information``: epistemic is the
            mutual information, aleatoric the expected entropy, both in nats; the order is by
            mutual information.

    Returns:
        Up to 2 * num cards.

    Raises:
        ValueError: Images, probabilities and prediction sets do not describe the same cases, or
            the probabilities are per pixel.
    """
    probs, label = class_per_case(tree)
    whole("num", num)
    choice("by", by, ("total", "mutual_information"))
    pictures = require_images(images, probs.sizes["case"])
    sets = None if prediction_sets is None else _aligned_sets(prediction_sets, probs)
    order, parts, unit = _uncertainty(probs, by)
    num = min(num, len(order) // 2) or 1
    columns = [order[::-1][:num], order[:num]] if len(order) > 1 else [order]
    figure = theme.new_figure(4.5 * len(columns), 1.95 * num + 1.0, constrained=False)
    height = figure.get_figheight()
    grid = figure.add_gridspec(
        num, len(columns), left=0.015, right=0.985, top=1 - 1.1 / height, bottom=0.12 / height,
        wspace=0.06, hspace=0.22,
    )  # fmt: skip
    widest = max(float(sum(p[i] for p in parts)) for c in columns for i in c) or 1.0
    split = not monte_carlo.all_equal(probs)
    for column, indices in enumerate(columns):
        for row, index in enumerate(indices):
            card = _Card(figure, grid[row, column], probs.isel(case=int(index)), label, int(index))
            card.picture(pictures[index])
            card.classes()
            card.uncertainty([float(p[index]) for p in parts], widest, unit, split)
            card.caption(None if sets is None else sets[index])
    _headings(figure, columns, num_functions(probs), by, label is not None, split)
    return figure


def _aligned_sets(prediction_sets: xr.Dataset, probs: xr.DataArray) -> NDArray[np.bool_]:
    source = "ppl_med.analysis.conformal.predict_sets"
    require_variables(prediction_sets, "prediction_sets", ("prediction_set",), source)
    sets = prediction_sets["prediction_set"].transpose("case", "class")
    if "case" in sets.coords and "case" in probs.coords:
        missing = np.setdiff1d(probs["case"].values, sets["case"].values)
        if missing.size:
            raise ValueError(
                f"prediction_sets lacks {missing.size} of the tree's cases (first: {missing[0]}); "
                "compute them on the tree that is plotted"
            )
        sets = sets.sel(case=probs["case"].values)
    if sets.shape != (probs.sizes["case"], probs.sizes["class"]):
        raise ValueError(
            f"prediction_sets has shape {sets.shape}, the tree has {probs.sizes['case']} cases and "
            f"{probs.sizes['class']} classes; compute them on the tree that is plotted"
        )
    return sets.to_numpy().astype(bool)


def _uncertainty(
    probs: xr.DataArray, by: str
) -> tuple[NDArray[np.intp], list[NDArray[np.float64]], str]:
    if by == "total":
        split = variance(probs, mcse=False).sum("class")
        parts = [split["aleatoric"].to_numpy(), split["epistemic"].to_numpy()]
        return np.argsort(split["total"].to_numpy(), kind="stable"), parts, "probability²"
    split = entropy(probs, mcse=False)
    parts = [split["expected_entropy"].to_numpy(), split["mutual_information"].to_numpy()]
    return np.argsort(parts[1], kind="stable"), parts, "nats"


def _headings(
    figure: Figure,
    columns: Sequence[NDArray[np.intp]],
    num_draws: int,
    by: str,
    has_label: bool,
    split: bool,
) -> None:
    height = figure.get_figheight()
    measure = "total variance" if by == "total" else "mutual information"
    theme.heading(figure, f"Least and most certain cases, by {measure}", y=1 - 0.08 / height)
    note = "dot: probability under the one draw"
    if num_draws > 1:
        level = 100 * attained(_INTERVAL[1] - _INTERVAL[0], num_draws)
        note = f"dot: mean of {num_draws} draws; bar: {level:.0f} % credible interval"
    note += "; bold: truth" if has_label else ""
    theme.write(figure, 0.012, 1 - 0.36 / height, note, 8.5, color=theme.MUTED)
    kinds = ("variance",) * 2 if by == "total" else ("expected entropy", "mutual information")
    names = (f"aleatoric: {kinds[0]}", f"epistemic: {kinds[1]}")
    drop = 0.26 if len(columns) > 1 else 0.58
    colors = (theme.ALEATORIC, theme.EPISTEMIC)
    handles = [Patch(color=c, label=name) for c, name in zip(colors, names, strict=True)]
    if not split:
        handles = [Patch(color=theme.MUTED, label="total variance" if by == "total" else "entropy")]
    theme.legend(figure, "upper right", handles=handles, bbox_to_anchor=(0.99, 1 - drop / height),
                 ncols=2, fontsize=8.5, handlelength=1.1)  # fmt: skip
    titles = ("LEAST CERTAIN", "MOST CERTAIN") if len(columns) > 1 else ("THE CASE",)
    for column, title in enumerate(titles):
        place = (0.015 + 0.5 * column, 1 - 0.70 / height)
        theme.write(figure, *place, title, 9, weight="bold", color=theme.MUTED)


class _Card:
    """One case: picture on the left, probabilities and uncertainty on the right."""

    def __init__(
        self,
        figure: Figure,
        place: SubplotSpec,
        probs: xr.DataArray,
        label: NDArray[np.int64] | None,
        index: int,
    ) -> None:
        inner = place.subgridspec(
            3, 2, width_ratios=[1.25, 2.2], height_ratios=[0.34, 1, 0.3], wspace=0.04, hspace=0.12
        )
        self.figure, self.probs = figure, probs
        self.title, self.image = figure.add_subplot(inner[0, :]), figure.add_subplot(inner[1:, 0])
        self.bars, self.split = figure.add_subplot(inner[1, 1]), figure.add_subplot(inner[2, 1])
        self.names = class_names(probs)
        self.mean = probs.mean(SAMPLES).to_numpy()
        self.label = None if label is None or label[index] < 0 else int(label[index])
        self.case = probs["case"].item() if "case" in probs.coords else index
        for ax in (self.title, self.bars, self.split):
            ax.set_axis_off()

    def picture(self, picture: NDArray[np.float64]) -> None:
        show_picture(self.image, picture)
        frame([self.image], 0.8)
        self.image.set_anchor("NW")

    def classes(self) -> None:
        shown = list(range(len(self.mean)))  # few classes keep their order, so cards compare
        if len(shown) > _MOST_CLASSES:
            shown = np.argsort(-self.mean, kind="stable")[:_MOST_CLASSES].tolist()
        if self.label is not None and self.label not in shown:
            shown[-1] = self.label
        few = len(shown) <= 3
        several = num_functions(self.probs) > 1
        quantiles = one_of_each(self.probs).quantile(_INTERVAL, SAMPLES, method=RANKS)
        low, high = quantiles.transpose("quantile", "class").to_numpy()
        for line, k in enumerate(shown):
            ax, ink, level = self.bars, theme.INK, [line, line]
            bold = "bold" if k == self.label else "normal"
            ax.plot([0, 1], level, color=theme.GRID, linewidth=1, solid_capstyle="butt")
            if several:
                ends = [low[k], high[k]]
                ax.plot(ends, level, color=ink, linewidth=2.6, label=f"interval {k}")
            ax.plot([self.mean[k]], [line], "o", color=ink, markersize=5, label=f"mean {k}")
            if few:
                name = theme.plain(self.names[k], 26)
                theme.write(ax, 0, line - 0.22, name, 8.2, weight=bold, va="bottom")
            else:  # beside the bar, since there is no room above it
                name = theme.plain(self.names[k], 14)
                theme.write(ax, -0.06, line, name, 7.2, weight=bold, va="center", ha="right")
            theme.write(ax, 1.06, line, f"{self.mean[k]:.2f}", 8.2, weight=bold, va="center")
        self.bars.set(xlim=(-0.06 if few else -0.6, 1.24), ylim=(max(len(shown), 2) - 0.6, -0.75))

    def uncertainty(self, parts: Sequence[float], widest: float, unit: str, split: bool) -> None:
        left = 0.0
        colors = (theme.ALEATORIC, theme.EPISTEMIC) if split else (theme.MUTED,) * 2
        for value, color in zip(parts, colors, strict=True):
            self.split.barh(0, value, left=left, height=0.55, color=color)
            left += value
        text = f"aleatoric {_short(parts[0])} · epistemic {_short(parts[1])} {unit}"
        if not split:
            text = f"total {_short(sum(parts))} {unit} (one network: epistemic part unknown)"
        theme.write(self.split, 0, 0.42, text, 7.8)
        self.split.set(xlim=(-0.06 * widest, 1.24 * widest), ylim=(1.0, -0.35))

    def caption(self, members: NDArray[np.bool_] | None) -> None:
        guess = int(self.mean.argmax())
        text = f"Case {theme.plain(self.case, 18)}"
        if self.label is not None:
            mark = "✓" if guess == self.label else "✗"
            text += f"  ·  true: {theme.plain(self.names[self.label], 20)} {mark}"
        theme.write(self.title, 0, 0.98, text, 8.8, weight="bold")
        if members is not None:
            chosen = [theme.plain(self.names[k], 20) for k in np.flatnonzero(members)]
            text = f"Prediction set: {{{', '.join(chosen)}}}"
            if not chosen:
                text = "Prediction set: empty, no class is likely enough"
            text = text if len(text) <= 68 else text[:66].rstrip() + "…}"
            theme.write(self.title, 0, 0.42, text, 8.2)


def _short(value: float) -> str:
    return f"{value:.3f}" if value >= 0.0005 or value == 0 else "<0.001"
