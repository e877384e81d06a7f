"""ROC and precision-recall curves with a band over patients, and what a guess would give."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppl_med.plots import theme
from ppl_med.plots.inputs import require_dims, require_variables

_SCORING = "ppl_med.analysis.scoring"
_MOST_DRAWS = 24


def roc(dataset: xr.Dataset) -> Figure:
    """Draw the ROC curve of every class against the rest.

    The line is that of the mean over draws, the band is over patients or cases, faint blue lines
    are single draws. On the dashed line is a model that does not see the image. Of two classes the
    last is drawn alone: the curve of the other is the same, turned.

    Args:
        dataset: As ``ppl_med.analysis.scoring.roc`` returns it.

    Returns:
        One panel per class.

    Raises:
        TypeError, ValueError: No Dataset, or a variable or dimension is missing.
    """
    figure, axes, parts = _panels(dataset, "true_positive_rate", "false_positive_rate", "auroc")
    for ax, (name, part) in zip(axes, parts, strict=True):
        theme.diagonal(ax)
        _curve(ax, part, "true_positive_rate", "false_positive_rate")
        theme.subtitle(ax, _summary(name, part, "auroc", "AUROC"))
    theme.label_outer(
        axes, "False positive rate\n(1 - specificity)", "True positive rate\n(sensitivity)"
    )
    theme.heading(figure, f"ROC{_note(dataset)}")
    return figure


def precision_recall(dataset: xr.Dataset) -> Figure:
    """Draw precision against recall of every class.

    The line is that of the mean over draws, the band is over patients or cases, faint blue lines
    are single draws. The dashed line is the share of the class among all, the precision of a model
    that does not see the image. Of two classes the last is drawn alone.

    Args:
        dataset: As ``ppl_med.analysis.scoring.precision_recall`` returns it.

    Returns:
        One panel per class.

    Raises:
        TypeError, ValueError: No Dataset, or a variable or dimension is missing.
    """
    figure, axes, parts = _panels(dataset, "precision", "recall", "average_precision")
    for ax, (name, part) in zip(axes, parts, strict=True):
        if "prevalence" in part:
            ax.axhline(float(part["prevalence"]), color=theme.MUTED, linewidth=1,
                       linestyle=theme.DASHED, zorder=1.5)  # fmt: skip
        _curve(ax, part, "precision", "recall")
        theme.subtitle(ax, _summary(name, part, "average_precision", "AP"))
    theme.label_outer(axes, "Recall\n(sensitivity)", "Precision\n(PPV)")
    theme.heading(figure, f"Precision and recall{_note(dataset)}")
    return figure


def _panels(
    dataset: xr.Dataset, curve: str, axis: str, area: str
) -> tuple[Figure, list[Axes], list[tuple[str, xr.Dataset]]]:
    function = "roc" if axis == "false_positive_rate" else "precision_recall"
    require_variables(dataset, "dataset", (curve, area), f"{_SCORING}.{function}")
    require_dims(dataset[curve], f"dataset[{curve!r}]", ("class", axis))
    names = [str(name) for name in dataset["class"].values]
    shown = [1] if len(names) == 2 else range(len(names))
    parts = [(names[index], dataset.isel({"class": index})) for index in shown]
    size, margin = (4.6, 0.8) if len(parts) == 1 else (3.1, 1.3)
    figure, axes = theme.grid_of_panels(len(parts), 3, size, size, margins=(0.4, margin))
    for ax in axes:
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        ax.set_aspect("equal")
        theme.clean(ax, grid="both")
    return figure, axes, parts


def _curve(ax: Axes, part: xr.Dataset, curve: str, axis: str) -> None:
    x = part[axis].to_numpy()
    if f"{curve}_lower" in part:
        ends = part[f"{curve}_lower"], part[f"{curve}_upper"]
        ax.fill_between(x, *ends, color=theme.BAND, linewidth=0, zorder=1, label="_band")
    if f"{curve}_per_draw" in part:
        draws = part[f"{curve}_per_draw"].stack(sample=("chain", "draw")).transpose("sample", axis)
        chosen = theme.evenly(np.arange(draws.sizes["sample"]), _MOST_DRAWS)
        for y in draws.to_numpy()[chosen] if draws.sizes["sample"] > 1 else ():
            ax.plot(x, y, color=theme.SERIES[5], linewidth=0.7, alpha=0.35, zorder=2, label="_draw")
    ax.plot(x, part[curve], color=theme.SERIES[0], linewidth=2, zorder=3, label="curve")


def _summary(name: str, part: xr.Dataset, area: str, short: str) -> str:
    value = float(part[area])
    if not np.isfinite(value):
        return f"{theme.plain(name, 22)} · {short} not defined"
    text = f"{theme.plain(name, 22)} · {short} {value:.3f}"
    if f"{area}_lower" in part and np.isfinite(part[f"{area}_lower"]):
        text += f" [{float(part[f'{area}_lower']):.3f}, {float(part[f'{area}_upper']):.3f}]"
    return text


def _note(dataset: xr.Dataset) -> str:
    if "level" not in dataset.attrs:
        return ""
    unit = {"case": "cases", "patient": "patients"}.get(str(dataset.attrs["unit"]), "groups")
    level = 100 * float(dataset.attrs["level"])
    return f" · grey: {level:g} % over {dataset.attrs['num_units']} {unit}"
