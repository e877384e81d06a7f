"""The tables and the figures."""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ppl_med import storage
from ppl_med.analysis.statistics.group_resampling import chosen_groups
from ppl_med.plots import theme

RESAMPLES = 1000
HEAD = (
    "laboratory", "guide", "reading", "Dice nucleus", "Dice cytoplasm", "Dice, 95 %",
    "recovered, 95 %", "NLL, 95 %", "ECE", "source share",
)  # fmt: skip


def over_seeds(found: dict[tuple[str, str, int], xr.Dataset], name: str, guide: str) -> xr.Dataset:
    """All seeds of one laboratory and guide, over (seed, reading, case, class)."""
    parts = {seed: one for (lab, kind, seed), one in found.items() if (lab, kind) == (name, guide)}
    return xr.concat(parts.values(), xr.Variable("seed", list(parts)))


def table(
    found: dict[tuple[str, str, int], xr.Dataset], blind: dict[str, xr.Dataset]
) -> tuple[str, xr.Dataset]:
    """A line for every laboratory, guide and reading; cases are resampled for the intervals."""
    names = list(dict.fromkeys(name for name, _, _ in found))
    guides = list(dict.fromkeys(guide for _, guide, _ in found))
    order = max((list(one["reading"].values) for one in found.values()), key=len)
    lines, parts, gains = [], [], []
    for name in names:
        own_parts = []
        for guide in guides:
            one = over_seeds(found, name, guide)
            own = over_seeds(found, "own", guide) if "own" in names else one
            line = summary(one, own, paired=name != "second", shifted=name != "own")
            own_parts.append(line.reindex(reading=order))
            lines += rows(line, name, guide)
            gains += compared(one, name, guide)
        parts.append(xr.concat(own_parts, xr.Variable("guide", guides)))
        trivial = blind[name].expand_dims(reading=["mean mask"], seed=[0])
        lines += rows(summary(trivial, trivial, paired=True, shifted=False), name, "none")
    text = storage.markdown_table(HEAD, lines) + "\n\n" + storage.markdown_table(GAINS, gains)
    return text, xr.concat(parts, xr.Variable("laboratory", names))


def resampled(values: xr.DataArray, chosen: np.ndarray) -> np.ndarray:
    """Means over resampled cases (resample, ...) of values (case, ...), absent ones left out."""
    array = values.transpose("case", ...).values
    known = ~np.isnan(array)
    weight = np.array([np.bincount(one, minlength=len(array)) for one in chosen], float)
    total = np.tensordot(weight, np.where(known, array, 0), 1)
    return total / np.tensordot(weight, known.astype(float), 1)


def cases_of(number: int) -> np.ndarray:
    """Resamples (resample, case); the same cases for every reading."""
    return np.array(list(chosen_groups(number, RESAMPLES, 0)))


def summary(one: xr.Dataset, own: xr.Dataset, *, paired: bool, shifted: bool) -> xr.Dataset:
    """Figures of every reading, with the spread over seeds and intervals over cases."""
    chosen = cases_of(one.sizes["case"])
    dice, nll = one["dice"].mean("seed"), one["nll"].mean("seed")
    drawn = resampled(dice, chosen).mean(-1)  # (resample, reading)
    freedom = min(1, one.sizes["seed"] - 1)
    result = xr.Dataset({
        "dice": dice.mean("case"),
        "dice_seeds": one["dice"].mean(("case", "class")).std("seed", ddof=freedom),
        "dice_mean": dice.mean("case").mean("class"),
        "nll": nll.mean("case"), "ece": one["ece"].mean("seed"),
        "ece_seeds": one["ece"].std("seed", ddof=freedom),
        "source_share": one["source_share"].mean("seed"),
    })  # fmt: skip
    put_interval(result, "dice_mean", drawn)
    put_interval(result, "nll", resampled(nll, chosen))
    result["recovered"] = result["dice_mean"] * np.nan
    put_interval(result, "recovered", np.full(drawn.shape, np.nan))
    if shifted and "source" in one["reading"]:
        best = own["dice"].sel(reading="source").mean("seed")
        again = chosen if paired else cases_of(own.sizes["case"])[::-1]
        top = resampled(best, again).mean(-1)
        at = list(one["reading"].values).index("source")
        lost = top - drawn[:, at]
        whole = float(best.mean("case").mean("class") - result["dice_mean"][at])
        result["recovered"] = (result["dice_mean"] - result["dice_mean"][at]) / whole
        put_interval(result, "recovered", (drawn - drawn[:, [at]]) / lost[:, None])
    return result


def put_interval(result: xr.Dataset, name: str, drawn: np.ndarray) -> None:
    """Add the ends of a 95 % percentile interval of resampled figures (resample, reading)."""
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    result[f"{name}_lower"], result[f"{name}_upper"] = ("reading", low), ("reading", high)


def rows(line: xr.Dataset, name: str, guide: str) -> list[list[str]]:
    """Cells of the table."""
    found = []
    for reading in line["reading"].values:
        at = line.sel(reading=reading)
        value = {str(n): float(at[n]) for n in at.data_vars if at[n].ndim == 0}
        dice = dict(zip(at["class"].values, at["dice"].values, strict=True))
        found.append([
            name, guide, str(reading), f"{dice['nucleus']:.3f}", f"{dice['cytoplasm']:.3f}",
            f"{value['dice_mean']:.3f} ± {value['dice_seeds']:.3f} "
            f"({value['dice_mean_lower']:.3f} to {value['dice_mean_upper']:.3f})",
            "" if np.isnan(value["recovered"]) else (
                f"{100 * value['recovered']:.0f} % ({100 * value['recovered_lower']:.0f} to "
                f"{100 * value['recovered_upper']:.0f})"
            ),
            f"{value['nll']:.3f} ({value['nll_lower']:.3f} to {value['nll_upper']:.3f})",
            f"{value['ece']:.3f}",
            "" if np.isnan(value["source_share"]) else f"{value['source_share']:.2f}",
        ])  # fmt: skip
    return found


GAINS = ("laboratory", "guide", "reading", "better of source and domain, by Dice",
         "difference in Dice, 95 %", "better, by NLL", "difference in NLL, 95 %")  # fmt: skip


def compared(one: xr.Dataset, name: str, guide: str) -> list[list[str]]:
    """Pooled readings against the better of source and domain, on the same resampled cases."""
    chosen = cases_of(one.sizes["case"])
    dice, nll = one["dice"].mean("seed"), one["nll"].mean("seed")
    drawn = {"dice": resampled(dice, chosen).mean(-1), "nll": resampled(nll, chosen)}
    mean = {"dice": dice.mean("case").mean("class"), "nll": nll.mean("case")}
    names = list(one["reading"].values)
    ends = [names.index("source"), names.index("domain")]
    best = {"dice": ends[int(np.argmax(mean["dice"].values[ends]))],
            "nll": ends[int(np.argmin(mean["nll"].values[ends]))]}  # fmt: skip
    found = []
    for reading in ("prior cases", "share, prior", "share, posterior"):
        if reading not in names:
            continue
        at, cells = names.index(reading), [name, guide, reading]
        for figure in ("dice", "nll"):
            gap = drawn[figure][:, at] - drawn[figure][:, best[figure]]
            low, high = np.quantile(gap, [0.025, 0.975])
            middle = float(mean[figure][at] - mean[figure][best[figure]])
            cells += [names[best[figure]], f"{middle:+.3f} ({low:+.3f} to {high:+.3f})"]
        found.append(cells)
    return found


def draw(
    folder: Path, result: xr.Dataset, curves: xr.Dataset, shares: dict[str, Any], smoke: bool
) -> None:
    """Write the figures."""
    for name, figure in (
        ("dice.png", bars(result)), ("tent.png", descents(curves)), ("shares.png", grids(shares)),
    ):  # fmt: skip
        if smoke:
            theme.heading(figure, "A trial run, whose figures mean nothing")
        figure.savefig(folder / name, dpi=150)


def bars(result: xr.Dataset) -> Any:
    """Dice by reading, one panel a laboratory."""
    names, guides = list(result["laboratory"].values), list(result["guide"].values)
    order = [r for r in ("source", "batch", "domain", "prior cases", "share, prior",
                         "share, posterior", "TENT, braked", "mirrors")
             if r in result["reading"].values]  # fmt: skip
    figure = theme.new_figure(2.6 * len(names) + 1.2, 4.6)
    axes = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
    for ax, name in zip(axes, names, strict=True):
        theme.clean(ax, grid="x")
        for index, guide in enumerate(guides):
            part = result.sel(laboratory=name, guide=guide).reindex(reading=order)
            place = np.arange(len(order)) + 0.18 * (index - (len(guides) - 1) / 2)
            ends = theme.bars_to(part["dice_mean"], part["dice_mean_lower"],
                                 part["dice_mean_upper"])  # fmt: skip
            style = {**theme.series(index), "linestyle": "", "markersize": 4.5, "linewidth": 1.2}
            label = str(guide).replace("_", " ")
            ax.errorbar(part["dice_mean"], place, xerr=ends, label=label, **style)
        theme.subtitle(ax, str(name))
        ax.set(xlabel="Dice", yticks=range(len(order)), yticklabels=order)
    axes[0].set_ylim(len(order) - 0.5, -0.5)
    handles, labels = axes[0].get_legend_handles_labels()
    theme.legend(figure, handles=handles, labels=labels, ncols=len(guides))
    theme.heading(figure, "Cells of other laboratories: Dice by reading, 95 % over cases")
    return figure


def descents(curves: xr.Dataset) -> Any:
    """Entropies by step and Dice by pass, free and braked."""
    figure = theme.new_figure(8.4, 3.6)
    axes = figure.subplots(1, 3)
    for index, brakes in enumerate(curves["brakes"].values):
        part, style = curves.sel(brakes=brakes), theme.series((0, 2, 1)[index])
        style = {"color": style["color"], "label": str(brakes)}
        for ax, name in zip(axes, ("entropy", "marginal_entropy"), strict=False):
            ax.plot(np.arange(part.sizes["step"]) + 1, part[name], linewidth=1.4, **style)
        axes[2].plot(part["epoch"], part["dice"].mean("class"), marker="o", markersize=4, **style)
    titles = ("mean entropy [nats]", "marginal entropy [nats]", "Dice")
    for ax, title in zip(axes, titles, strict=True):
        theme.clean(ax)
        theme.subtitle(ax, title)
        ax.set_xlabel("step" if ax is not axes[2] else "passes")
        ax.set_ylim(bottom=0)
    theme.legend(figure, handles=axes[2].get_legend_handles_labels()[0],
                 labels=[str(name) for name in curves["brakes"].values], ncols=3)  # fmt: skip
    theme.heading(figure, "Entropy carried on: certain, and wrong")
    return figure


def grids(shares: dict[str, xr.Dataset]) -> Any:
    """Dice, and what tells the share without labels, against the share."""
    figure = theme.new_figure(8.4, 3.6)
    axes = figure.subplots(1, 3)
    for index, (name, grid) in enumerate(shares.items()):
        style = {**theme.series(index), "markersize": 4, "linewidth": 1.3}
        axes[0].plot(grid["share"], grid["dice"].mean("class"), label=name, **style)
        axes[1].plot(grid["share"], grid["nll"], **style)
        ratio = np.log(grid["between"] / grid["within"])
        axes[2].plot(grid["share"], ratio - ratio.max(), **style)
    for ax, title in zip(axes, ("Dice", "NLL [nats per pixel]", "log I/J, less its maximum"),
                         strict=True):  # fmt: skip
        theme.clean(ax)
        theme.subtitle(ax, title)
        ax.set_xlabel("share of the source")
    handles, labels = axes[0].get_legend_handles_labels()
    theme.legend(figure, handles=handles, labels=labels, ncols=len(labels))
    theme.heading(figure, "Which share is best, and what says so without labels (validation)")
    return figure
