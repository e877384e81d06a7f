"""Scores of what a net has never seen, beside those of what it knows, and figures by severity."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ppl_med.checks import reject
from ppl_med.plots import theme
from ppl_med.plots.inputs import require_dims, require_named, require_variables

_BINS = 30
_INSIDE = "in-distribution"
_SCORE = "ppl_med.analysis.ood.score"


def pvalue_steps(
    inside: xr.Dataset, outside: xr.Dataset | Mapping[str, xr.Dataset], *, level: float = 0.05
) -> Figure:
    """Draw which share of the cases has a p-value below each level: how many would be called novel.

    In-distribution cases lie on the diagonal: at level a a share a of them is a false alarm. The
    higher a line above it, the more of those cases are found.

    Args:
        inside: What ``ood.score`` or ``ood.novelty`` gave for in-distribution cases.
        outside: The same for cases from elsewhere, or several such sets by name.
        level: Level that is marked and for which the legend gives the shares.

    Returns:
        One panel; both axes are probabilities.

    Raises:
        TypeError, ValueError: No Dataset, or it holds no p-values.
    """
    sets = _sets(inside, outside, "pvalue")
    figure, ax = theme.new_panel(5.6, 4.6, grid="both")
    theme.diagonal(ax)
    for index, (name, one) in enumerate(sets.items()):
        values = np.sort(one["pvalue"].values)
        place = np.concatenate([[0.0], values, [1.0]])
        share = np.concatenate([[0.0], np.arange(1, len(values) + 1) / len(values), [1.0]])
        found = 100 * (values <= level).mean()
        ax.step(place, share, where="post", label=f"{name}: {found:.0f} % of {len(values)}",
                color=theme.series(index)["color"])  # fmt: skip
    ax.axvline(level, color=theme.MUTED, linewidth=1, linestyle=theme.DASHED)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="p-value", ylabel="Share of cases at or below")
    theme.remark(ax, f"legend: called novel at {level:g}")
    theme.legend(figure, ncols=2)
    theme.heading(figure, "How many cases are called novel")
    return figure


def unlike_scores(
    inside: xr.Dataset, outside: xr.Dataset | Mapping[str, xr.Dataset], *, label: str = ""
) -> Figure:
    """Draw the distribution of a score in and off the distribution.

    Args:
        inside: What ``ood.score`` gave for in-distribution cases.
        outside: The same for cases from elsewhere, or several such sets by name.
        label: What the score is called; by default as the Dataset says.

    Returns:
        One panel a set, the known cases behind each.

    Raises:
        TypeError, ValueError: No Dataset, or no scores in it.
    """
    sets = _sets(inside, outside, "score")
    known = sets.pop(_INSIDE)["score"].values
    both = np.concatenate([known, *(one["score"].values for one in sets.values())])
    low, high = np.quantile(both, [0.0, 0.99])
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1).tolist()
    figure, axes = theme.grid_of_panels(len(sets), 3, 3.0, 2.3, (0.4, 0.9))
    for ax, (name, one) in zip(axes, sets.items(), strict=True):
        theme.clean(ax)
        for values, color, title in (
            (known, theme.HIT, _INSIDE),
            (one["score"].values, theme.MISS, "from elsewhere"),
        ):
            shares = np.full(len(values), 1 / len(values))
            ax.hist(
                values.clip(edges[0], edges[-1]), edges, weights=shares, color=color, alpha=0.55,
                label=title if ax is axes[0] else None,
            )  # fmt: skip
        theme.subtitle(ax, f"{name} ({len(one['score'])})")
    name = label or str(inside.attrs.get("score", "score"))
    theme.label_outer(axes, f"{name}, larger is more unlike", "Share of cases")
    theme.legend(figure, ncols=2)
    theme.heading(figure, "Known cases and cases from elsewhere")
    return figure


def severity_curves(dataset: xr.Dataset, figures: Sequence[str]) -> Figure:
    """Draw figures against the severity of corruptions: a box over the corruptions, by guide.

    Boxes hold the middle half of the corruptions, whiskers all of them (Ovadia et al., NeurIPS
    2019).

    Args:
        dataset: Variables over (guide, corruption, severity), averaged over everything else.
        figures: Names of the variables to draw; ``long_name`` and ``units`` of each label its axis.

    Returns:
        One panel a figure.

    Raises:
        TypeError, ValueError: No Dataset, or a variable or dimension is missing.
    """
    if not figures:
        reject("figures", "names of one variable or more", figures)
    require_variables(dataset, "dataset", tuple(figures), "a study over severities")
    for name in figures:
        require_dims(dataset[name], f"dataset[{name!r}]", ("guide", "corruption", "severity"))
    guides = [str(name) for name in dataset["guide"].values]
    across = min(3, len(figures))
    down = -(-len(figures) // across)
    figure = theme.new_figure(3.6 * across + 0.4, 2.5 * down + 0.9)
    axes = figure.subplots(down, across, squeeze=False).ravel().tolist()
    for ax, name in zip(axes, figures, strict=False):
        theme.clean(ax)
        part = dataset[name].transpose("guide", "corruption", "severity")
        for index, guide in enumerate(guides):
            color = theme.series(index)["color"]
            place = part["severity"].values + 0.14 * (index - (len(guides) - 1) / 2)
            values = part.values[index]
            boxes = ax.boxplot(
                values, positions=place, widths=0.11, whis=(0, 100), showfliers=False,
                patch_artist=True, manage_ticks=False,
            )  # fmt: skip
            for kind in ("boxes", "whiskers", "caps", "medians"):
                for piece in boxes[kind]:
                    piece.set(color=color, linewidth=0.8)
            for piece in boxes["boxes"]:
                piece.set_alpha(0.35)
            ax.plot(place, np.median(values, 0), color=color, linewidth=1.2,
                    label=guide.replace("_", "-") if ax is axes[0] else None)  # fmt: skip
        ax.set_xticks(part["severity"].values)
        unit = theme.unit_of(part, "")
        ax.set(xlabel="Severity", ylabel=f"[{unit}]" if unit else "")
        theme.subtitle(ax, str(part.attrs.get("long_name", name)))
    for ax in axes[len(figures) :]:
        ax.set_visible(False)
    theme.legend(figure, ncols=len(guides))
    theme.heading(figure, "By severity of the corruption")
    return figure


def _sets(
    inside: xr.Dataset, outside: xr.Dataset | Mapping[str, xr.Dataset], variable: str
) -> dict[str, xr.Dataset]:
    """Known cases first, then those from elsewhere, by name."""
    require_variables(inside, "inside", (variable,), _SCORE)
    others = require_named(outside, "outside", (variable,), _SCORE)
    sets = {_INSIDE: inside} | {name or "from elsewhere": one for name, one in others.items()}
    for name, one in sets.items():
        require_dims(one[variable], f"{variable} of {name}", ("case",))
    return sets
