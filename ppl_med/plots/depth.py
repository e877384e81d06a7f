"""Predicted depths: maps of the two uncertainties, and learnt noise against known noise."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ppl_med.analysis import uncertainty
from ppl_med.analysis.tree import find_distribution, find_group
from ppl_med.axes import SAMPLES
from ppl_med.checks import reject
from ppl_med.plots import theme
from ppl_med.plots.inputs import (
    case_positions,
    one_of,
    require_dims,
    require_named,
    require_variables,
)
from ppl_med.plots.pictures import map_rows, require_images

_TITLES = {"learnt noise, sd": theme.ALEATORIC, "epistemic, sd": theme.EPISTEMIC}
_MAP = ("case", "row", "col")
_DEPTH, _NOISE, _EPISTEMIC = "viridis", "Oranges", "Blues"


def depth_maps(
    tree: xr.DataTree,
    images: ArrayLike,
    case: Hashable | Sequence[Hashable] | None = None,
    *,
    noise_sd: ArrayLike | None = None,
    unit: str = "m",
) -> Figure:
    """Draw image, measured and predicted depth, and the standard deviation of either kind.

    The learnt noise is the square root of the aleatoric variance. Measured and predicted depth
    share a scale, true and learnt noise another. Pixels without a measurement are grey.

    Args:
        tree: The tree of ``predict`` on maps of numbers.
        images: (case, channel, row, col), 1 or 3 channels, any intensity unit; the tree's cases in
            their order.
        case: Ids of the cases to show; the first four by default.
        noise_sd: True standard deviation of the noise (case, row, col), where it is known.
        unit: Of the depths.

    Returns:
        One row of panels per case.

    Raises:
        TypeError, ValueError: No maps of numbers, unknown cases, or arrays that do not fit.
    """
    group = find_distribution(tree)
    if group is None:
        reject("tree", "a tree of predict on maps of numbers", type(tree).__name__)
    require_variables(group, "tree", ("loc",), "ppl_med.inference.predict")
    chosen = case_positions(group["loc"], case)
    pictures = require_images(images, group.sizes["case"])
    part = group[[name for name in ("loc", "scale", "variance") if name in group]]
    part = part.isel(case=chosen)
    parts = uncertainty.variance(part, mcse=False)
    predicted = part["loc"].mean(SAMPLES)
    panels: dict[str, tuple[NDArray, str]] = {}
    observed = find_group(tree, "observed_data")
    if "depth" in observed:
        measured: Any = observed["depth"].isel(case=chosen)
        panels["measured depth"] = (_maps(measured, "observed depth"), _DEPTH)
    panels["predicted depth"] = (_maps(predicted, "loc"), _DEPTH)
    if noise_sd is not None:
        panels["true noise, sd"] = (_truth(noise_sd, group, chosen), _NOISE)
    panels["learnt noise, sd"] = (np.sqrt(_maps(parts["aleatoric"], "aleatoric")), _NOISE)
    panels["epistemic, sd"] = (np.sqrt(_maps(parts["epistemic"], "epistemic")), _EPISTEMIC)
    ids = group["case"].to_numpy()[chosen]
    scaled = {title: (*one, *_limits(panels, one[1])) for title, one in panels.items()}
    figure = map_rows(pictures[chosen], ids.tolist(), scaled, unit, 1.45, _TITLES)
    theme.heading(figure, "Predicted depth, its noise and its epistemic uncertainty")
    return figure


def noise_recovery(tables: xr.Dataset | Mapping[str, xr.Dataset], *, unit: str = "m") -> Figure:
    """Draw the learnt standard deviation of the noise against the true one.

    Args:
        tables: ``learnt`` and ``true`` (bin), each the square root of the mean variance of the
            entries of a bin, and scalars ``correlation`` and ``sd_error``; a mapping from name to
            Dataset overlays several.
        unit: Of the numbers.

    Returns:
        One square panel; below the diagonal, the noise is underestimated.

    Raises:
        TypeError, ValueError: No Dataset, or a variable or dimension is missing.
    """
    needed = ("learnt", "true", "correlation", "sd_error")
    named = require_named(tables, "tables", needed, "the study")
    for name, one in named.items():
        for variable in needed[:2]:
            require_dims(one[variable], f"{one_of('tables', name)}[{variable!r}]", ("bin",))
    figure, ax = theme.new_panel(5.4, 6.0, grid="both")
    top = 1.08 * max(float(np.maximum(one["learnt"], one["true"]).max()) for one in named.values())
    theme.diagonal(ax, top)
    for index, (name, one) in enumerate(named.items()):
        text = f"correlation {float(one['correlation']):.3f}, off by {float(one['sd_error']):.3f}"
        label = f"{theme.plain(name, 24)} · {text} {unit}" if name else f"{text} {unit}"
        style = {**theme.series(index), "marker": "o"}
        ax.plot(one["true"], one["learnt"], markersize=5, linewidth=1.4, label=label, zorder=3,
                **style)  # fmt: skip
    ax.set(xlim=(0, top), ylim=(0, top), aspect="equal")
    ax.set_xlabel(f"True standard deviation of the noise [{unit}]")
    ax.set_ylabel(f"Learnt standard deviation [{unit}]")
    theme.legend(figure)
    theme.heading(figure, "Noise, learnt and true")
    return figure


def _maps(array: xr.DataArray, name: str) -> NDArray[np.float64]:
    return require_dims(array, name, _MAP).to_numpy().astype(np.float64)


def _truth(noise_sd: ArrayLike, group: xr.Dataset, chosen: list[int]) -> NDArray[np.float64]:
    truth = np.asarray(noise_sd, np.float64)
    shape = tuple(group.sizes[dim] for dim in _MAP)
    if truth.shape != shape:
        raise ValueError(
            f"noise_sd has shape {truth.shape}, the tree's maps {shape}; pass the scenes that were "
            "predicted, in their order"
        )
    return truth[chosen]


def _limits(panels: dict[str, tuple[NDArray, str]], colors: str) -> tuple[float, float]:
    """One scale for all maps of a colour map; standard deviations start at 0."""
    values = [one for one, name in panels.values() if name == colors]
    joined = np.concatenate([one[np.isfinite(one)].ravel() for one in values])
    low, high = np.quantile(joined, [0.002, 0.998]) if joined.size else (0.0, 1.0)
    return (float(low) if colors == _DEPTH else 0.0), float(high) or 1.0
