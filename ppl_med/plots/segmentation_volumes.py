"""Measured sizes against true ones: which intervals hold the truth, and how wide they are."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppl_med.plots.checks import require_named
from ppl_med.plots.theme import INK, MUTED, clean, heading, new_figure, plain

_INSIDE, _OUTSIDE = "#1f2933", "#D55E00"
_NEEDED = ("lower", "upper", "grader_size")
_SOURCE = "ppl_med.analysis.segmentation.sizes"


def size_intervals(
    sizes: xr.Dataset | Mapping[str, xr.Dataset], class_name: str | None = None
) -> Figure:
    """Draw every case's interval over its true size; one that meets the diagonal holds the truth.

    Args:
        sizes: As ``ppl_med.analysis.segmentation.sizes`` returns it with annotations: ``lower``,
            ``upper`` (case, class) and ``grader_size`` (case, grader, class); the graders' mean is
            the truth. A mapping from name to Dataset draws a panel each, on the same scales, such
            as of several ways to an interval.
        class_name: The structure; the first by default.

    Returns:
        A panel a Dataset; above it the share of cases inside and the mean width.

    Raises:
        ValueError: There is no Dataset, a variable is missing, sizes are not finite, the class is
            unknown, or units differ.
    """
    named = require_named(sizes, "sizes", _NEEDED, _SOURCE)
    parts = {name: _part(one, class_name) for name, one in named.items()}
    units = {str(one["lower"].attrs.get("units", "pixels")) for one in parts.values()}
    if len(units) > 1:
        raise ValueError(f"sizes have different units {sorted(units)}; draw them apart")
    unit = plain(units.pop()).replace("^2", "²").replace("^3", "³")
    figure = new_figure(max(4.4, 3.3 * len(parts) + 0.4), 4.1)
    axes = figure.subplots(1, len(parts), squeeze=False, sharex=True, sharey=True)[0]
    for ax, (name, one) in zip(axes, parts.items(), strict=True):
        _panel(ax, one, name, unit)
    ends = [float(one[name].min()) for one in parts.values() for name in ("lower", "truth")]
    tops = [float(one[name].max()) for one in parts.values() for name in ("upper", "truth")]
    margin = 0.04 * (max(tops) - min(ends)) or 1.0
    limits = (max(0.0, min(ends) - margin), max(tops) + margin)
    for ax in axes:
        ax.plot(limits, limits, color=MUTED, linewidth=0.9, zorder=1)
    truths = np.concatenate([one["truth"].values for one in parts.values()])
    spread = 0.06 * np.ptp(truths) or margin
    axes[0].set_xlim(truths.min() - spread, truths.max() + spread)
    axes[0].set_ylim(limits)
    axes[0].set_ylabel(f"Interval [{unit}]", color=INK)
    kind = "volume" if "³" in unit else "area" if "²" in unit else "size"
    structure = next(iter(parts.values()))["class"].item()
    heading(figure, f"{kind.capitalize()} of {plain(structure)} against the truth")
    return figure


def _part(sizes: xr.Dataset, class_name: str | None) -> xr.Dataset:
    """One structure: ``lower``, ``upper`` and ``truth`` (case)."""
    names = [str(name) for name in sizes["class"].values]
    if class_name is not None and class_name not in names:
        raise ValueError(f"class_name is {class_name!r}; sizes has {names}")
    part = sizes[list(_NEEDED)].isel(
        {"class": 0 if class_name is None else names.index(class_name)}
    )
    part["truth"] = part["grader_size"].mean("grader")
    for name in ("lower", "upper", "truth"):
        if not np.isfinite(part[name].values).all():
            raise ValueError(f"{name} holds NaN or infinite sizes; leave those cases out")
    return part


def _panel(ax: Axes, part: xr.Dataset, name: str, unit: str) -> None:
    low, high, truth = (part[each].values for each in ("lower", "upper", "truth"))
    inside = (truth >= low) & (truth <= high)
    for chosen, color in ((inside, _INSIDE), (~inside, _OUTSIDE)):
        ax.vlines(truth[chosen], low[chosen], high[chosen], color=color, linewidth=1.6, zorder=2)
        middle = (low + high)[chosen] / 2
        ax.plot(truth[chosen], middle, "o", color=color, markersize=2.6, zorder=3)
    share, width = 100 * inside.mean(), (high - low).mean()
    ax.set_title(
        f"{plain(name)}\n{share:.0f} % of {len(truth)} inside, {width:.0f} {unit} wide".strip(),
        fontsize=9.5, color=INK,
    )  # fmt: skip
    ax.set_xlabel(f"True size [{unit}]")
    clean(ax)
