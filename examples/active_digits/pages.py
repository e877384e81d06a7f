"""Tables and pictures of the study."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from active_digits.figures import interval
from ppl_med.plots import theme
from ppl_med.storage import markdown_table

COLOURS = {
    "dropout-bald": theme.EPISTEMIC,
    "dropout-variation_ratio": theme.SERIES[1],
    "dropout-max_entropy": theme.SERIES[3],
    "dropout-random": theme.SERIES[0],
    "dropout-batch_bald": theme.SERIES[2],
    "dropout-power_bald": theme.SERIES[4],
    "dropout-mean_sd": theme.SERIES[5],
    "point-max_entropy": theme.SERIES[3],
    "point-random": theme.SERIES[0],
    "point-least_confidence": theme.SERIES[1],
}
BASELINE = "dropout-random"
LABELS = {
    "error": "test error [%]",
    "ece": "expected calibration error [%]",
    "nll": "NLL [nats per digit]",
    "coverage": "digits inside 90 % sets [%]",
}
"""Figures that are drawn, and their axes."""

_SHORT = {"bald": "BALD", "batch_bald": "BatchBALD", "power_bald": "PowerBALD"}
Histories = Mapping[str, Mapping[int, xr.Dataset]]


def _rule(name: str) -> str:
    """An acquisition in words."""
    rule = name.split("-", 1)[1]
    return _SHORT.get(rule, rule.replace("_", " "))


def _method(name: str) -> str:
    """Net and acquisition in words."""
    return f"{name.split('-', 1)[0]}, {_rule(name)}"


def labels_table(summaries: Mapping[str, xr.Dataset], most: int) -> str:
    """Labels for an error, and the area under the budget curve less that of random."""
    base = summaries.get(BASELINE)
    lines = []
    for name, one in summaries.items():
        cells = [_method(name), str(one.sizes["seed"])]
        for error in (10, 5):
            values = one[f"labels_for_{error}"].values
            known = values[~np.isnan(values)]
            missed = len(values) - len(known)
            median = np.median(np.where(np.isnan(values), np.inf, values))
            last = int(one["last"][0])
            text = f"{median:.0f}" if np.isfinite(median) else f"> {last}"
            if len(known):
                text += f" ({known.min():.0f} to {known.max():.0f}"
                text += f", {missed} not by {last})" if missed else ")"
            cells.append(text)
        cells.append(f"{100 * float(one['area'].mean()):.2f}")
        cells.append(_difference(one["area"], base["area"]) if base is not None else "")
        lines.append(cells)
    head = ("net, acquisition", "seeds", "labels for 10 % error", "for 5 %")
    return markdown_table((*head, f"mean error up to {most} labels, %", "less random's"), lines)


def _difference(one: xr.DataArray, base: xr.DataArray, factor: float = 100.0) -> str:
    """Mean of paired differences over the seeds that both have, and its 95 % interval."""
    if one is base or one.equals(base):
        return ""
    first, second = xr.align(one, base, join="inner")
    if first.sizes["seed"] < 2:
        return ""
    mean, half = interval(factor * (first - second).values)
    return f"{mean:+.2f} ± {half:.2f}"


def calibration_table(summaries: Mapping[str, xr.Dataset]) -> str:
    """Error and calibration at equal numbers of labels, less random's."""
    base, lines = summaries.get(BASELINE), []
    for name, one in summaries.items():
        for at in one["at"].values if "at" in one.dims else ():
            here = one.sel(at=at)
            cells = [_method(name), str(int(at))]
            for figure, factor in (("error", 100), ("nll", 1), ("ece", 100), ("coverage", 100)):
                text = f"{factor * float(here[figure].mean()):.2f}"
                if base is not None and "at" in base.dims and at in base["at"].values:
                    apart = _difference(here[figure], base.sel(at=at)[figure], factor)
                    text += f" ({apart})" if apart else ""
                cells.append(text)
            cells.append(f"{float(here['set_size'].mean()):.2f}")
            lines.append(cells)
    head = ("net, acquisition", "labels", "error, %", "NLL, nats", "ECE, %")
    return markdown_table((*head, "coverage of 90 % sets, %", "classes in a set"), lines)


def curves(histories: Histories, figure_name: str, label: str, factor: float = 100.0) -> Figure:
    """A figure against the labels in hand: mean over seeds, band from the least to the most."""
    nets = [net for net in ("dropout", "point") if any(n.startswith(net) for n in histories)]
    figure, axes = theme.grid_of_panels(len(nets), 2, 4.4, 3.6, (0.2, 0.3))
    titles = {"dropout": "Bayesian: dropout", "point": "deterministic"}
    for ax, net in zip(axes, nets, strict=True):
        theme.clean(ax)
        for name, runs in histories.items():
            if not name.startswith(net) or not runs:
                continue
            number = np.unique(np.concatenate([one["num_labelled"] for one in runs.values()]))
            number = number[number <= min(int(one["num_labelled"][-1]) for one in runs.values())]
            table = factor * np.array(
                [np.interp(number, o["num_labelled"], o[figure_name]) for o in runs.values()]
            )
            colour = COLOURS.get(name, theme.INK)
            ax.plot(number, table.mean(0), color=colour, linewidth=1.6, label=_rule(name))
            ax.fill_between(number, table.min(0), table.max(0), color=colour, alpha=0.12, lw=0)
        ax.set_title(titles[net], fontsize=11)
        ax.set_xlabel("labels", fontsize=11)
        if figure_name == "error":
            ax.set_yscale("log")
            ax.set_yticks([3, 5, 10, 20, 40], ["3", "5", "10", "20", "40"])
            ax.minorticks_off()
            for level in (5, 10):
                ax.axhline(level, color=theme.MUTED, linewidth=0.8, linestyle=theme.DASHED)
        ax.legend(fontsize=9, frameon=False)
    axes[0].set_ylabel(label, fontsize=11)
    return figure
