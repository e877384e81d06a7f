"""Training curves: the objective and its two parts, in nats per case."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ppl_med.plots import theme
from ppl_med.plots.inputs import require_variables

_PARTS = {
    "elbo": ("ELBO", "#1f2933", "higher is better"),
    "bound": ("bound", "#1f2933", "importance-weighted, what was trained; higher is better"),
    "nll": ("NLL", "#CC79A7", "misfit to the labels, lower is better"),
    "kl": ("KL", "#009E73", "distance from the prior, the cost of what was learnt"),
}
_VALIDATION = "#D55E00"


def elbo(history: xr.Dataset) -> Figure:
    """Draw ELBO, or the tighter bound that was trained, NLL and KL against the training step.

    The thin line is every step, the thick line a centred running mean over 2 % of the steps; of an
    ensemble each member has its own. Steps that would squash the rest are left outside the frame,
    and the panel says how many.

    Args:
        history: As ``ppl_med.inference.fit`` returns it: ``elbo``, ``nll``, ``kl``, ``kl_weight``
            (step) in nats per case, optionally ``bound`` and the coordinate ``epoch`` (step), and
            ``validation_nll`` (validation_epoch); of an ensemble also with dim chain.

    Returns:
        Three panels above each other, and a fourth for the KL weight where it changes.

    Raises:
        ValueError: A variable is missing, or there is no step.
    """
    require_variables(
        history, "history", ("elbo", "nll", "kl", "kl_weight"), "ppl_med.inference.fit"
    )
    if not history.sizes.get("step"):
        raise ValueError("history has no step; run fit for at least one epoch")
    by_member = _by_member(history["kl_weight"])
    weight = by_member[np.isfinite(by_member).sum(1).argmax()]  # of the one that trained longest
    varies = bool(np.ptp(weight) > 0)
    figure = theme.new_figure(8.0, 7.4 if varies else 6.6)
    axes = figure.subplots(
        3 + varies, 1, sharex=True, height_ratios=[1, 1, 1] + [0.4] * varies, squeeze=False
    )[:, 0]
    step = history["step"].to_numpy().astype(np.float64)
    names = ("bound" if "bound" in history else "elbo", "nll", "kl")
    for ax, name in zip(axes, names, strict=False):
        _curve(ax, history, step, name)
    if varies:
        axes[3].plot(step, weight, color=theme.INK, linewidth=1.4, label="kl_weight")
        axes[3].set(ylabel="KL weight\n[no unit]", ylim=(-0.05 * weight.max(), 1.15 * weight.max()))
        theme.clean(axes[3])
    axes[-1].set_xlabel("Training step [count]")
    figure.align_ylabels(axes)
    _epoch_axis(axes[0], history, step)
    members = history.sizes.get("chain", 1)
    who = f"{members} members, " if members > 1 else ""
    theme.heading(figure, f"Training in nats per case · {who}{_weight_note(weight)}")
    return figure


def _weight_note(weight: NDArray[np.float64]) -> str:
    if np.ptp(weight) > 0:
        return f"KL weight {weight[0]:.3g} to {weight[-1]:.3g}"
    note = "" if weight[0] == 1 else " in the loss, 1 in the ELBO shown"
    return f"KL weight {weight[0]:.3g}{note}"


def _by_member(values: xr.DataArray) -> NDArray[np.float64]:
    """Values of every member of an ensemble, or of the one fit: dims (member, step)."""
    stacked = values if "chain" in values.dims else values.expand_dims("chain")
    return stacked.transpose("chain", ...).to_numpy().astype(np.float64)


def _curve(ax: Axes, history: xr.Dataset, step: NDArray[np.float64], name: str) -> None:
    title, color, meaning = _PARTS[name]
    values = _by_member(history[name])
    smooth = values.shape[1] >= 50
    for member in values:
        ax.plot(
            step, member, color=color, linewidth=0.7 if smooth else 1.5,
            alpha=0.35 / len(values) ** 0.5 if smooth else 1.0,
            marker="o" if len(step) < 3 else None, label=name,
        )  # fmt: skip
    for member in values if smooth else ():
        ax.plot(step, _running_mean(member), color=color, linewidth=1.6, label="running mean")
    shown = [*values]
    if name == "nll" and "validation_nll" in history:
        shown += [*_validation(ax, history, step)]
    low, high = _limits(shown)
    ax.set(ylim=(low, high), ylabel=f"{title}\n[nats per case]")
    outside = int(((values < low) | (values > high)).sum())
    if outside:
        meaning += f" · {outside} of {values.size} steps outside the frame"
    theme.remark(ax, meaning, pad=3)
    theme.clean(ax)


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    half = max(1, len(values) // 100)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    start, stop = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[stop] - total[start]) / (stop - start)


def _validation(ax: Axes, history: xr.Dataset, step: NDArray[np.float64]) -> NDArray[np.float64]:
    values = _by_member(history["validation_nll"])
    if "epoch" in history.coords:
        epoch = history["epoch"].to_numpy()
        last = np.searchsorted(epoch, history["validation_epoch"].to_numpy(), side="right") - 1
        position = step[np.clip(last, 0, len(step) - 1)]
    else:
        position = np.linspace(step[0], step[-1], values.shape[1] + 1)[1:]
    ax.plot(position, values.T, color=_VALIDATION, marker="o", markersize=4, linewidth=1.4,
            label="validation_nll")  # fmt: skip
    theme.legend(ax, "upper right", handles=[ax.lines[-1]], labels=["validation NLL"], fontsize=8.5)
    return values


def _epoch_axis(ax: Axes, history: xr.Dataset, step: NDArray[np.float64]) -> None:
    if "epoch" not in history.coords:
        return
    epoch = np.floor(history["epoch"].to_numpy()).astype(int)
    starts = np.flatnonzero(np.diff(epoch, prepend=epoch[0] - 1))
    starts = starts[:: int(np.ceil(len(starts) / 10))]
    top = ax.secondary_xaxis("top")
    top.set_xticks(step[starts], labels=[str(e) for e in epoch[starts]])
    top.tick_params(labelsize=8.5, colors=theme.MUTED, length=3)
    top.set_xlabel("Epoch (at its first step)", fontsize=8.5, color=theme.MUTED, loc="left")
    top.spines["top"].set_visible(False)


def _limits(curves: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Limits that the first steps of training cannot stretch, with a margin of 6 %.

    The whole range is shown unless it is more than three times the range without the first tenth
    of each curve; then that one is shown. Values that are not finite are ignored.
    """
    whole = np.concatenate([v[np.isfinite(v)] for v in curves])
    tails = [v[int(np.ceil(0.1 * len(v))) :] if len(v) > 1 else v for v in curves]
    tail = np.concatenate([v[np.isfinite(v)] for v in tails])
    if not whole.size:
        return 0.0, 1.0
    kept = tail if tail.size and np.ptp(whole) > 3 * np.ptp(tail) > 0 else whole
    low, high = float(kept.min()), float(kept.max())
    margin = 0.06 * (high - low) or 0.06 * max(abs(high), 1.0)
    return low - margin, high + margin
