"""Scores of a forecast, their table, and the picture of all of them."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ppl_med.analysis.calibration import coverage
from ppl_med.analysis.scoring import crps, elpd_heldout
from ppl_med.plots.theme import EPISTEMIC, INK, MUTED, new_figure
from ppl_med.storage import markdown_table

NAMES = {
    "persistence": "last year again",
    "seasonal naive": "last year and mean growth",
    "plain": "plain dropout",
    "dropout": "Bayesian dropout",
    "mean_field": "mean field",
    "heteroscedastic": "dropout, noise by input",
    "ensemble": "ensemble of 3",
    "gp": "Gaussian process",
}
INPUT_NAMES = {"time": "time", "season": "time and season", "-": "–"}
FIGURES = ("coverage", "rmse", "crps", "nll", "width")


def moments(tree: xr.DataTree) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of a measurement in ppm, dims (case,).

    The variance is Gal's: 1/tau, the mean noise of the draws, and the draws' own sample variance.
    """
    posterior: Any = tree["posterior"]
    over = ("chain", "draw")
    variance = (posterior["scale"] ** 2).mean(over) + posterior["loc"].var(over)
    return posterior["loc"].mean(over).values, np.sqrt(variance.values)


def scores(tree: xr.DataTree) -> dict[str, float]:
    """Of held-out months: coverage of 90 % intervals, errors in ppm, nats a month."""
    truth = tree["observed_data"]["value"].values
    mean, sd = moments(tree)
    inside = coverage(tree, levels=[0.9], distribution="normal")["coverage"]
    return {
        "coverage": float(inside.values[0]),
        "rmse": float(np.sqrt(np.mean((mean - truth) ** 2))),
        "crps": float(crps(tree)["crps_mean"]),
        "nll": -float(elpd_heldout(tree, mcse=False)["elpd"].mean()),
        "width": float(2 * 1.645 * sd.mean()),
    }


def table(found: dict[tuple[str, str], list[dict[str, float]]]) -> str:
    """Mean and range over seeds, a line for each method and its inputs."""
    lines = []
    for (method, kind), by_seed in found.items():
        line = [NAMES[method], INPUT_NAMES[kind]]
        for figure in FIGURES:
            values = [one[figure] for one in by_seed]
            spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
            line.append(f"{np.mean(values):.2f}{spread}")
        lines.append(line)
    head = ["method", "inputs", "coverage of 90 % intervals", "RMSE ppm", "CRPS ppm"]
    return markdown_table([*head, "NLL, nats a month", "mean width of 90 % ppm"], lines)


def picture(
    trees: dict[tuple[str, str], xr.DataTree], record: xr.DataArray, first_held_out: float
) -> Figure:
    """Mean and bands of one and two standard deviations; what was held out stays grey."""
    rows = [list(trees)[i : i + 2] for i in range(0, len(trees), 2)]
    figure = new_figure(8.2, 1.75 * len(rows))
    axes = figure.subplots(len(rows), 2, sharex=True, sharey=True, squeeze=False)
    months = record["month"].values
    for row, line in zip(axes, rows, strict=True):
        for axis, cell in zip(row, line, strict=False):
            mean, sd = moments(trees[cell])
            for reach, alpha in ((2, 0.18), (1, 0.3)):
                low, high = mean - reach * sd, mean + reach * sd
                axis.fill_between(months, low, high, color=EPISTEMIC, alpha=alpha, linewidth=0)
            axis.plot(months, mean, color=EPISTEMIC, linewidth=1)
            axis.plot(months, record.values, color=INK, linewidth=0.6)
            axis.axvline(first_held_out, color=MUTED, linestyle=":", linewidth=1)
            name = NAMES[cell[0]]
            kind = "" if cell[1] == "-" else f", {INPUT_NAMES[cell[1]]}"
            axis.set_title(name + kind, fontsize=10, loc="left")
            axis.set_ylim(305, 385)
        for axis in row[len(line) :]:
            axis.set_axis_off()
        row[0].set_ylabel("CO₂ (ppm)")
    for axis in axes[-1]:
        axis.set_xlabel("year")
    handles = [Line2D([], [], color=INK, linewidth=0.6), Line2D([], [], color=EPISTEMIC)]
    handles += [Patch(color=EPISTEMIC, alpha=alpha) for alpha in (0.43, 0.18)]
    labels = ["record, held out from 1982", "mean", "±1 sd", "±2 sd"]
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure
