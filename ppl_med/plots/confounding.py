"""Confounders: the relevance that lies on them, by method, and the effect of swapping them."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ppl_med.plots import theme
from ppl_med.plots.inputs import one_of, require_named

_ENDS = ("", "_lower", "_upper")
_MASS = "expected_mass_share"
_EFFECT = "expected_effect"


def relevance_mass(exposures: xr.Dataset | Mapping[str, xr.Dataset]) -> Figure:
    """Draw the share of relevance on a confounder as bars, by method and network.

    Args:
        exposures: As ``ppl_med.explain.confounding.exposure`` returns them, by the network's name;
            the same methods in each.

    Returns:
        One group of bars per method, with the interval over draws, in percent; the dashed line is
        the share of the image that the confounder covers, which evenly spread relevance would have.

    Raises:
        TypeError: One is no Dataset.
        ValueError: There is none, a variable is missing, or methods differ.
    """
    needed = (*(f"{_MASS}{end}" for end in _ENDS), "area_share")
    named = require_named(exposures, "exposures", needed, "ppl_med.explain.confounding.exposure")
    methods = [str(name) for name in next(iter(named.values()))["method"].values]
    for name, one in named.items():
        if [str(method) for method in one["method"].values] != methods:
            raise ValueError(
                f"{one_of('exposures', name)} has the methods {one['method'].values.tolist()}, "
                f"another {methods}; explain all networks by the same ones"
            )
    figure, ax = theme.new_panel(max(6.0, 1.1 * len(methods) + 1.5), 3.9)
    width, bars = 0.8 / len(named), []
    for position, (name, one) in enumerate(named.items()):
        mean, low, high = (100 * one[f"{_MASS}{end}"].values for end in _ENDS)
        place = np.arange(len(methods)) + (position - (len(named) - 1) / 2) * width
        color = theme.SERIES[position % len(theme.SERIES)]
        bars.append(ax.bar(place, mean, 0.92 * width, color=color, label=theme.plain(name)))
        ax.vlines(place, low, high, color=theme.MUTED, linewidth=1.4)
    area = 100 * float(next(iter(named.values()))["area_share"].mean())
    even = ax.axhline(
        area, color=theme.INK, linestyle="--", linewidth=1.0, label="if spread evenly"
    )
    ax.set_xticks(range(len(methods)), [theme.plain(name.replace("_", "\n")) for name in methods])
    ax.set_ylabel("Relevance on the confounder [%]")
    ax.set_ylim(bottom=0)
    keys = [*bars, even] if len(bars) > 1 else [even]  # one network needs no name
    theme.legend(figure, handles=keys, ncols=len(keys))
    theme.heading(figure, "Relevance on the confounder")
    return figure


def swap_effects(effects: xr.Dataset | Mapping[str, xr.Dataset]) -> Figure:
    """Draw the mean effect of a swap for several networks or swaps, one line each.

    Args:
        effects: As ``ppl_med.explain.confounding.swap_test`` returns them, by name; all on one
            scale.

    Returns:
        A mark for the mean over draws and cases, a thick line for the interval over draws, a thin
        one for two standard errors over cases to either side; no effect is 0.

    Raises:
        TypeError: One is no Dataset.
        ValueError: There is none, a variable is missing, or units differ.
    """
    needed = (*(f"{_EFFECT}{end}" for end in _ENDS), f"{_EFFECT}_se")
    named = require_named(effects, "effects", needed, "ppl_med.explain.confounding.swap_test")
    units = {str(one[_EFFECT].attrs.get("units", "probability")) for one in named.values()}
    if len(units) > 1:
        raise ValueError(f"effects have different units {sorted(units)}; draw them apart")
    figure, ax = theme.new_panel(6.4, 0.42 * len(named) + 1.4, grid="x")
    for row, one in enumerate(named.values()):
        mean, low, high, error = (float(one[f"{_EFFECT}{end}"]) for end in (*_ENDS, "_se"))
        color = theme.SERIES[0]
        ax.hlines(row, mean - 2 * error, mean + 2 * error, color=theme.MUTED, linewidth=1.1)
        ax.hlines(row, low, high, color=color, linewidth=4, alpha=0.55)
        ax.plot(mean, row, theme.MARKERS[0], color=color, markersize=6)
    ax.axvline(0, color=theme.INK, linestyle="--", linewidth=1.0)
    ax.set_yticks(range(len(named)), [theme.plain(name, 44) for name in named])
    ax.set_ylim(len(named) - 0.5, -0.5)
    ax.set_xlabel(f"Change by the swap [{theme.plain(units.pop())}]")
    theme.heading(figure, "What the swap changes")
    return figure
