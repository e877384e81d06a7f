"""Reliability curves without bins, one panel per class, and before and after recalibration."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ppl_med.plots import theme
from ppl_med.plots.inputs import require_dims, require_variables

_PAVA = "ppl_med.analysis.calibration.pava"
_CLASS = "Probability of the class [probability]"
_CONFIDENCE = "Confidence [probability]"
_CLASSWISE = "ppl_med.analysis.calibration.reliability_classwise"


def pava(dataset: xr.Dataset) -> Figure:
    """Draw the isotonic reliability curve in the band that calibrated probabilities stay in.

    The curve is the frequency of the event given its probability; outside the grey band the
    difference is larger than chance explains. The title gives the miscalibration: the part of the
    Brier score of the event that recalibration could remove. Bars below are a histogram of the
    cases; faint blue lines are single draws.

    Args:
        dataset: As ``ppl_med.analysis.calibration.pava`` returns it: ``probability``,
            ``frequency`` (rank), or (class, rank) for one panel per class; optionally ``lower``,
            ``upper``, and ``probability_per_draw``, ``frequency_per_draw``.

    Returns:
        One panel, or one per class.

    Raises:
        TypeError, ValueError: No Dataset, or a variable or dimension is missing.
    """
    require_variables(dataset, "dataset", ("probability", "frequency"), _PAVA)
    per_class = "class" in dataset["probability"].dims
    dims = ("class", "rank") if per_class else ("rank",)
    for name in ("probability", "frequency"):
        require_dims(dataset[name], f"dataset[{name!r}]", dims)
    parts = _split(dataset) if per_class else [("", dataset)]
    figure, axes = _panels(len(parts))
    for ax, (name, part) in zip(axes, parts, strict=True):
        _square(ax)
        _curve(ax, part)
        _ticks_of_cases(ax, part["probability"].to_numpy())
        theme.subtitle(ax, _summary(name, part))
    if per_class:
        theme.label_outer(axes, _CLASS, "Frequency [proportion]")
    else:
        theme.label_outer(axes, _CONFIDENCE, "Accuracy [proportion]")
    theme.heading(
        figure, ("Reliability by class" if per_class else "Reliability") + _band_note(dataset)
    )
    return figure


def classwise(dataset: xr.Dataset) -> Figure:
    """Draw binned reliability of every class with exact 95 % intervals.

    Args:
        dataset: As ``ppl_med.analysis.calibration.reliability_classwise`` returns it:
            ``probability``, ``frequency``, ``lower``, ``upper``, ``count``, all (class, bin), and
            ``ece`` (class).

    Returns:
        One panel per class, counts below each.

    Raises:
        TypeError, ValueError: No Dataset, or a variable or dimension is missing.
    """
    needed = ("probability", "frequency", "lower", "upper", "count", "ece")
    require_variables(dataset, "dataset", needed, _CLASSWISE)
    for name in needed[:-1]:
        require_dims(dataset[name], f"dataset[{name!r}]", ("class", "bin"))
    parts = _split(dataset)
    figure, axes = _panels(len(parts))
    for ax, (name, part) in zip(axes, parts, strict=True):
        _square(ax)
        used = part.isel(bin=np.flatnonzero(part["count"].to_numpy()))
        frequency = used["frequency"].to_numpy()
        bars = theme.bars_to(frequency, used["lower"], used["upper"])
        _share_of_cases(ax, used["probability"].to_numpy(), used["count"].to_numpy())
        ax.errorbar(
            used["probability"], frequency, yerr=bars, markersize=5, linewidth=1.2, elinewidth=1.4,
            zorder=3, **theme.series(0),
        )  # fmt: skip
        theme.subtitle(ax, f"{theme.plain(name, 28)} · ECE {float(part['ece']):.3f}")
    theme.label_outer(axes, _CLASS, "Frequency [proportion],\n95 % interval")
    theme.heading(figure, "Reliability by class")
    return figure


def recalibration(datasets: Mapping[str, xr.Dataset]) -> Figure:
    """Draw isotonic reliability curves side by side, such as before and after recalibration.

    Args:
        datasets: By title, as ``ppl_med.analysis.calibration.pava`` returns them, one curve each:
            {"before": ..., "temperature": ...}, all of the same cases.

    Returns:
        One panel for each.

    Raises:
        TypeError, ValueError: Fewer than two, or one is no Dataset, or lacks a variable.
    """
    if len(datasets) < 2:
        raise ValueError(f"datasets holds {len(datasets)}; give two or more to compare")
    for name, dataset in datasets.items():
        argument = f"datasets[{name!r}]"
        require_variables(dataset, argument, ("probability", "frequency"), _PAVA)
        require_dims(dataset["probability"], f"{argument}['probability']", ("rank",))
    figure, axes = _panels(len(datasets))
    for ax, (name, part) in zip(axes, datasets.items(), strict=True):
        _square(ax)
        _curve(ax, part)
        _ticks_of_cases(ax, part["probability"].to_numpy())
        theme.subtitle(ax, _summary(name, part))
    theme.label_outer(axes, _CONFIDENCE, "Accuracy [proportion]")
    note = _band_note(next(iter(datasets.values())))
    theme.heading(figure, "Recalibration" + note)
    return figure


def _split(dataset: xr.Dataset) -> list[tuple[str, xr.Dataset]]:
    names = [str(name) for name in dataset["class"].values]
    return [(name, dataset.isel({"class": index})) for index, name in enumerate(names)]


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """Square panels in rows of up to four; one alone is larger."""
    size, margin = (5.6, 0.5) if count == 1 else (3.1, 0.7)
    return theme.grid_of_panels(count, 4, size, size, margins=(0.4, margin))


def _square(ax: Axes) -> None:
    theme.diagonal(ax)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    ax.set_aspect("equal")
    theme.clean(ax, grid="both")


def _curve(ax: Axes, part: xr.Dataset) -> None:
    probability = part["probability"].to_numpy()
    if "lower" in part and "upper" in part:
        ax.fill_between(
            probability, part["lower"], part["upper"], color=theme.BAND, linewidth=0, zorder=1,
            label="_band",
        )  # fmt: skip
    if "frequency_per_draw" in part:
        draws = [part[name].stack(sample=("chain", "draw")).transpose("sample", "rank").to_numpy()
                 for name in ("probability_per_draw", "frequency_per_draw")]  # fmt: skip
        for x, y in zip(*draws, strict=True):
            ax.plot(x, y, color=theme.SERIES[5], linewidth=0.7, alpha=0.35, zorder=2, label="_draw")
    ax.plot(
        probability, part["frequency"], color=theme.SERIES[0], linewidth=2, zorder=3, label="curve"
    )


def _ticks_of_cases(ax: Axes, probability: NDArray[np.float64]) -> None:
    count, edges = np.histogram(probability, np.linspace(0, 1, 41))
    _bars(ax, edges[:-1], count, float(edges[1] - edges[0]), "edge")


def _share_of_cases(ax: Axes, probability: NDArray[np.float64], count: NDArray[np.int64]) -> None:
    _bars(ax, probability, count, 0.03, "center")


def _bars(
    ax: Axes, x: NDArray[np.float64], count: NDArray[np.int64], width: float, align: str
) -> None:
    """Where the cases are: the tallest bar is an eighth of the panel."""
    height = count / max(int(count.max()), 1) / 8
    ax.bar(x, height, width, bottom=-0.02, align=align, color=theme.MUTED, alpha=0.35, zorder=0.5)  # type: ignore[arg-type]


def _summary(name: str, part: xr.Dataset) -> str:
    """Name of the panel and the part of the Brier score that recalibration could remove."""
    parts = [theme.plain(name, 20)] if name else []
    if "miscalibration" in part:
        parts.append(f"miscalibration {float(part['miscalibration']):.3f}")
    return " · ".join([*parts, f"n = {part.sizes['rank']}"] if not name else parts)


def _band_note(dataset: xr.Dataset) -> str:
    if "lower" not in dataset:
        return ""
    level = dataset.attrs.get("level")
    return f" · grey: {f'{100 * level:g} % ' if level else ''}if calibrated"
